"""`make bench`: choose questions and contenders, run what is missing, write the report."""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contenders.registry import CACHE, ROOT, Contender, contenders
from benchmarks.harness.machine import facts
from benchmarks.harness.report import render, summary
from benchmarks.harness.run import Turn, missing, run, say, turns
from benchmarks.harness.server import running_server
from benchmarks.harness.stage import Stage
from benchmarks.harness.store import Store
from benchmarks.questions.all import QUESTIONS
from riverq.demo.postgres import PostgresStartError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every round has a figure or a reason why there is none, 130 if it was interrupted."""
    args = make_parser().parse_args(argv)
    everybody = contenders()
    chosen = [everybody[name] for name in _chosen("contender", args.contenders, everybody)]
    cells = [cell for name in _chosen("question", args.questions, QUESTIONS) for cell in QUESTIONS[name].cells()]
    everything = turns([cell for cell in cells if args.cell in cell.key], chosen, args.rounds)
    store = Store(args.folder)
    if args.report:
        return _write_report(store, args.output, everybody)
    if not everything:
        sys.exit("bench: nothing to run: no cell of these questions has that name and asks these contenders")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else what is open would not be closed
    try:
        with _alone(args.folder):
            _measure(args, store, everything)
    except PostgresStartError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        say("interrupted; RESUME=1 goes on from here")
        return 130
    return 0 if args.list else _write_report(store, args.output, everybody)


def make_parser() -> argparse.ArgumentParser:
    """The options of `make bench ARGS=…`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}; all when none is named"
    )
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="only these (all)")
    parser.add_argument("--cell", default="", metavar="TEXT", help="only cells with this in their name")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds a cell")
    parser.add_argument("--resume", action="store_true", help="continue the last run instead of beginning a new one")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report of what is there")
    parser.add_argument(
        "--list", action="store_true", help="print the rounds that would be run, with --resume those that are left"
    )
    parser.add_argument("--folder", type=Path, default=CACHE / "bench" / "run", help="where the rounds' JSON is kept")
    parser.add_argument("--output", type=Path, help="write the report here, and its figures beside it as .json")
    return parser


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two at once would measure each other, and write over each other's rounds."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("bench: another run is under way (wait for it, or stop it)")
        yield


def _measure(args: argparse.Namespace, store: Store, everything: Sequence[Turn]) -> None:
    began = time.monotonic()
    with running_server() as server:
        known = facts(server)
        if known["machine"]["filesystem"] == "tmpfs":
            sys.exit("bench: /tmp is in memory, where fsync means nothing (run where it is on a disk)")
        place = json.dumps([known["machine"]["cpu"], known["machine"]["cores"], known["postgres"]["version"]])
        if args.list:
            for turn in missing(store, everything, place) if args.resume else everything:
                say(f"{turn.cell.key} {turn.contender.name} #{turn.round}")
            return
        if not args.resume:
            store.set_aside()
        described = {contender.name: _describe(contender) for contender in contenders().values()}
        store.write_facts({**known, "contenders": described, "command": _command(args)})
        earlier = float(store.facts().get("minutes", 0))
        try:
            run(Stage(server, contenders(), store.logs, place), store, everything)
        finally:
            store.write_facts({"minutes": earlier + (time.monotonic() - began) / 60})


def _command(args: argparse.Namespace) -> str:
    """What to type for the same run."""
    named = f' ONLY="{" ".join(args.questions)}"' if args.questions else ""
    rest = [f"--contenders {' '.join(args.contenders)}"] if args.contenders else []
    rest += [f"--cell {args.cell}"] if args.cell else []
    rest += [f"--rounds {args.rounds}"] if args.rounds else []
    return f"make bench{named}" + (f' ARGS="{" ".join(rest)}"' if rest else "")


def _describe(contender: Contender) -> dict[str, object]:
    return {"version": contender.version(), "notes": dict(contender.notes)}


def _write_report(store: Store, output: Path | None, everybody: dict[str, Contender]) -> int:
    records = store.records()
    if not records:
        sys.exit(f"bench: no rounds in {store.folder} to report")
    cells = [cell for module in QUESTIONS.values() for cell in module.cells()]
    sections = {name: (module.__doc__ or "").strip() for name, module in QUESTIONS.items()}
    path = output or store.folder / "RESULTS.md"
    path.write_text(render(store, cells, everybody, store.facts(), sections))
    path.with_suffix(".json").write_text(one_line_each(summary(store, cells, everybody, store.facts())) + "\n")
    say(f"report: {path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path}")
    return 1 if any(record.failed for record in records) else 0


def one_line_each(value: object, depth: int = 4, indent: str = "\n") -> str:
    """JSON with a line for each thing at `depth` (a contender's figures in a cell), so that diffs can be read."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    items = (f"{json.dumps(name)}: {one_line_each(item, depth - 1, inner)}" for name, item in value.items())
    return "{" + inner + f",{inner}".join(items) + indent + "}"


def _chosen(what: str, names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    for name in names:
        if name not in known:
            sys.exit(f"bench: no {what} {name!r} (there are {', '.join(known)})")
    return [name for name in known if not names or name in names]
