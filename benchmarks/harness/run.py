"""The loop: cell by cell, round by round, contender by contender.

Within a round the contenders take turns on fresh databases, so that what the machine does meanwhile (heat, a noisy
neighbour) meets them alike; ratios are taken within rounds. The order rotates from round to round. A round that was
disturbed by other load is repeated, at most twice; what then still is disturbed is kept and marked.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contenders.registry import Contender
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness.cell import Cell, Figures
from benchmarks.harness.process import ChildUnsupported
from benchmarks.harness.stage import Stage
from benchmarks.harness.store import Record, Store

REPETITIONS = 2


@dataclass(frozen=True)
class Turn:
    """One contender's turn."""

    cell: Cell
    contender: Contender
    round: int


def turns(cells: Sequence[Cell], contenders: Sequence[Contender], rounds: int | None) -> list[Turn]:
    """Everything that is to be run, in order."""
    found = []
    for cell in cells:
        taking_part = [contender for contender in contenders if contender.name in cell.contenders]
        most = max((cell.rounds_for(contender, rounds) for contender in taking_part), default=0)
        for number in range(1, most + 1):
            shift = (number - 1) % max(len(taking_part), 1)
            found += [
                Turn(cell, contender, number)
                for contender in taking_part[shift:] + taking_part[:shift]
                if number <= cell.rounds_for(contender, rounds)
            ]
    return found


def run(stage: Stage, store: Store, everything: Sequence[Turn]) -> None:
    """Run what is not in the store yet."""
    left = missing(store, everything, stage.place)
    done = len(everything) - len(left)
    if done:
        say(f"{done} of {len(everything)} rounds are there already")
    began = time.monotonic()
    for position, turn in enumerate(left, done + 1):
        record = take(stage, turn)
        store.write(record)
        say(f"[{position}/{len(everything)} {time.monotonic() - began:5.0f} s] {describe(turn, record)}")


def missing(store: Store, everything: Sequence[Turn], place: str) -> list[Turn]:
    """What is not in the store yet, or is there from another machine, another version or another definition."""
    return [
        turn
        for turn in everything
        if not store.has(turn.cell, turn.contender.name, turn.round, fingerprint(turn, place))
    ]


def fingerprint(turn: Turn, place: str) -> str:
    """What a figure depends on and a resumed run must have in common with the first: where, who, and what was asked."""
    cell, contender = turn.cell, turn.contender
    asked = [dict(cell.task), cell.content_for(contender.name).counts, cell.backlogs.get(contender.name)]
    parts = [place, contender.name, contender.version(), dict(contender.extra), asked]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def take(stage: Stage, turn: Turn) -> Record:
    """One turn, repeated while others disturb it."""
    cell, contender = turn.cell, turn.contender

    def record(figures: Figures | None, **more: object) -> Record:
        mark = fingerprint(turn, stage.place)
        return Record(cell.question, cell.name, contender.name, turn.round, figures, mark, **more)  # type: ignore[arg-type]

    attempts, figures = 0, None
    try:
        while figures is None or (figures["disturbed"] and attempts <= REPETITIONS):
            attempts += 1
            again: Figures = {"foreign_share": 0.0, "disturbed": False, **cell.measure(stage, contender, cell)}
            figures = min(figures or again, again, key=lambda attempt: float(attempt["foreign_share"]))
    except ChildUnsupported as reason:
        return record(None, unsupported=str(reason))
    except ContenderUnavailable as reason:
        return record(None, unsupported=str(reason), unavailable=True)
    except Exception as reason:  # noqa: BLE001  # one contender's failure is a result; the others still have their turns
        return record(None, failed=f"{type(reason).__name__}: {reason}", attempts=attempts)
    disturbed = bool(figures.pop("disturbed"))
    return record(figures, attempts=attempts, disturbed=disturbed)


def describe(turn: Turn, record: Record) -> str:
    """One line of progress."""
    what = f"{turn.cell.key} {turn.contender.name} #{turn.round}"
    if record.figures is None:
        return f"{what}: {'cannot' if record.unsupported else 'FAILED'}: {record.unsupported or record.failed}"
    marks = (
        f" (attempt {record.attempts}{', still disturbed' if record.disturbed else ''})" if record.attempts > 1 else ""
    )
    foreign = record.figures.get("foreign_share", 0.0)
    return f"{what}: {record.figures[turn.cell.main] or 0:,.6g} {turn.cell.unit}, others {foreign:.1%}{marks}"


def say(text: str) -> None:
    """Progress goes to stdout as it happens."""
    print(text, flush=True)
