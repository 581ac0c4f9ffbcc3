"""Each finished round is one JSON file, written at once, so that a run that was cut off can be continued."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.cell import Cell


@dataclass(frozen=True)
class Record:
    """One contender's round of one cell.

    `figures` is None where the contender cannot do it (`unsupported`; `unavailable` if only this machine is to blame)
    or broke down (`failed`). `attempts` counts the repetitions that a disturbed round had; `disturbed` says that the
    one that stands was, too.
    """

    question: str
    cell: str
    contender: str
    round: int
    figures: dict[str, Any] | None
    fingerprint: str = ""
    unsupported: str | None = None
    unavailable: bool = False
    failed: str | None = None
    attempts: int = 1
    disturbed: bool = False


class Store:
    """A folder with `run.json` (facts) and `rounds/*.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self._rounds = folder / "rounds"
        self._make_folders()

    def _make_folders(self) -> None:
        self._rounds.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)

    def set_aside(self) -> None:
        """Begin a new run; the last one is kept beside it until the next."""
        if not any(self._rounds.iterdir()):
            return
        before = self.folder.with_name(f"{self.folder.name}-before")
        shutil.rmtree(before, ignore_errors=True)
        self.folder.rename(before)
        self._make_folders()

    def has(self, cell: Cell, contender: str, number: int, fingerprint: str) -> bool:
        """Whether that round is there and need not be run again; one that failed or could not be run is tried again."""
        path = self._path(cell.question, cell.name, contender, number)
        if not path.exists():
            return False
        record = Record(**json.loads(path.read_text()))
        return record.fingerprint == fingerprint and record.failed is None and not record.unavailable

    def write(self, record: Record) -> None:
        """Keep one round; the file is there whole or not at all."""
        _write(self._path(record.question, record.cell, record.contender, record.round), asdict(record))

    def records(self) -> list[Record]:
        """All rounds, in the order of their names."""
        return [Record(**json.loads(path.read_text())) for path in sorted(self._rounds.glob("*.json"))]

    def write_facts(self, facts: dict[str, Any]) -> None:
        """What the machine, the server and the contenders are; added to what is known."""
        _write(self.folder / "run.json", {**self.facts(), **facts})

    def facts(self) -> dict[str, Any]:
        """What `write_facts` wrote, {} before."""
        path = self.folder / "run.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _path(self, *parts: object) -> Path:
        return self._rounds / f"{'.'.join(str(part) for part in parts)}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)
