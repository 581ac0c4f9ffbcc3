"""`make bench`: choose questions and contenders, run what is missing, write the report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contenders.registry import CACHE, ROOT, Contender, contenders
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness.cell import Cell
from benchmarks.harness.machine import facts
from benchmarks.harness.report import render, summary
from benchmarks.harness.run import Turn, run, say, turns
from benchmarks.harness.server import running_server
from benchmarks.harness.stage import Stage
from benchmarks.harness.store import Store
from benchmarks.questions.all import QUESTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every round has a figure or a reason why there is none."""
    args = make_parser().parse_args(argv)
    everybody = contenders()
    chosen = _chosen("contender", args.contenders, everybody)
    cells = [cell for name in _chosen("question", args.questions, QUESTIONS) for cell in QUESTIONS[name].cells()]
    cells = [cell for cell in cells if args.cell is None or args.cell in cell.key]
    if not cells:
        sys.exit(f"bench: no cell's name holds {args.cell!r}")
    store = Store(args.folder)
    if args.report:
        return _write_report(store, args.output, cells_of_all(), everybody)
    everything = turns(cells, [everybody[name] for name in chosen], args.rounds)
    if args.list:
        for turn in everything:
            say(f"{turn.cell.key} {turn.contender.name} #{turn.round}")
        return 0
    if not args.resume:
        store.clear()
    _measure(store, everything)
    return _write_report(store, args.output, cells_of_all(), everybody)


def make_parser() -> argparse.ArgumentParser:
    """The options of `make bench ARGS=…`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}; all when none is named"
    )
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="only these (all)")
    parser.add_argument("--cell", metavar="TEXT", help="only cells with this in their name")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds a cell")
    parser.add_argument("--resume", action="store_true", help="continue the last run instead of beginning a new one")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report of what is there")
    parser.add_argument("--list", action="store_true", help="print the rounds that would be run")
    parser.add_argument("--folder", type=Path, default=CACHE / "bench" / "run", help="where the rounds' JSON is kept")
    parser.add_argument("--output", type=Path, help="write the report here, and its figures beside it as .json")
    return parser


def cells_of_all() -> list[Cell]:
    """Every cell there is; the report knows which of them have rounds."""
    return [cell for module in QUESTIONS.values() for cell in module.cells()]


def _measure(store: Store, everything: Sequence[Turn]) -> None:
    began, earlier = time.monotonic(), float(store.facts().get("minutes", 0))
    with running_server() as server:
        described = {contender.name: _describe(contender) for contender in contenders().values()}
        store.write_facts({**facts(server), "contenders": described})
        try:
            run(Stage(server, contenders(), store.logs), store, everything)
        finally:
            store.write_facts({"minutes": earlier + (time.monotonic() - began) / 60})


def _describe(contender: Contender) -> dict[str, object]:
    try:
        version = contender.version()
    except ContenderUnavailable as reason:
        return {"unavailable": str(reason)}
    return {"version": version, "notes": dict(contender.notes)}


def _write_report(store: Store, output: Path | None, cells: list[Cell], everybody: dict[str, Contender]) -> int:
    sections = {name: (module.__doc__ or "").strip() for name, module in QUESTIONS.items()}
    text = render(store, cells, everybody, store.facts(), sections)
    path = output or store.folder / "RESULTS.md"
    path.write_text(text)
    path.with_suffix(".json").write_text(json.dumps(summary(store, cells, everybody, store.facts()), indent=1) + "\n")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    say(f"report: {shown}")
    return 1 if any(record.failed for record in store.records()) else 0


def _chosen(what: str, names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    for name in names:
        if name not in known:
            sys.exit(f"bench: no {what} {name!r} (there are {', '.join(known)})")
    return [name for name in known if not names or name in names]
