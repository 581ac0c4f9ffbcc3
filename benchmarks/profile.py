"""Where a job's time goes: `python -m benchmarks.profile [CONTENDER …]` prints Markdown for NOTES.md.

Three runs of the no-op backlog per contender, because each instrument changes what it measures: one plain with
pg_stat_statements, one under py-spy (client), one under auto_explain (the plans that were really used, with ANALYZE,
BUFFERS and WAL). Shares are of samples; microseconds are shares of what the plain run took.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders.registry import REFERENCE, Contender, contenders
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.server import RUN_DATABASE, SETTINGS, running_server
from benchmarks.harness.stage import Stage, work, work_on

CELL = Cell(
    question="profile",
    name="noop",
    title="",
    measure=work,
    task={"workers": 2000, "settings": "tuned"},
    contenders=(),
    content=Content(backlog=100_000),
)
EXPLAIN = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_wal": "on",
    "auto_explain.log_timing": "off",
    "log_line_prefix": "",
}
RATE_PER_SECOND = 250
SPY = str(Path(sys.executable).with_name("py-spy"))
TOP = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Profile and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("contenders", nargs="*", default=[], metavar="CONTENDER")
    args = parser.parse_args(argv)
    everybody = contenders()
    names = args.contenders or [name for name in everybody if name.startswith("riverq-")] + [REFERENCE]
    for name in names:
        if name not in everybody or everybody[name].family != "river":
            sys.exit(f"profile: {name!r} does not work River's tables")
    if not shutil.which(SPY):
        sys.exit(f"profile: {SPY} is not installed (pip install 'riverq[bench]')")
    for name in names:
        print(f"## {name}\n", flush=True)
        print("\n\n".join(_sections(everybody, everybody[name])), flush=True)
        print()
    return 0


def _sections(everybody: dict[str, Contender], contender: Contender) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        with running_server() as server:
            stage = Stage(server, everybody, logs)
            plain = _work_and_read(stage, contender)
            yield _headline(plain)
            yield _statements(plain)
            if contender.name != REFERENCE:
                samples = _spied(stage, contender, logs / "spy.txt")
                yield _client(samples, plain["client_cpu_us"])
        with running_server({**SETTINGS, **EXPLAIN}) as server:
            work(Stage(server, everybody, logs), contender, CELL)
            yield _plans((server.folder / "log").read_text(errors="replace"))


def _headline(plain: Figures) -> str:
    return (
        f"{plain['rate']:,.0f} jobs/s; a job takes {plain['client_cpu_us']:.1f} µs of client CPU, "
        f"{plain['postgres_cpu_us']:.1f} µs of Postgres CPU, {plain['wal_bytes']:.0f} B of WAL, "
        f"{plain['statements']:.4f} statements; client {plain['client_cores']:.2f} and Postgres "
        f"{plain['postgres_cores']:.2f} cores busy, others {plain['foreign_share']:.1%}."
    )


# -- Postgres


STATEMENTS = """
    SELECT calls, rows, total_exec_time, wal_bytes::bigint, shared_blks_hit, shared_blks_dirtied, query
    FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
    WHERE d.datname = %s AND s.userid = 'bench'::regrole ORDER BY total_exec_time DESC LIMIT 6
"""


def _work_and_read(stage: Stage, contender: Contender) -> Figures:
    """The plain run, with the statements read before the run's database goes."""
    with stage.database(contender, CELL.content) as conn:
        figures = work_on(stage, contender, CELL, conn)
        return {**figures, "rows": stage.server.admin.execute(STATEMENTS.encode(), (RUN_DATABASE,)).fetchall()}


def _statements(plain: Figures) -> str:
    lines = [
        "| statement | calls | rows/call | ms/call | µs/job | WAL B/job | blocks hit/job |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    jobs = plain["jobs"]
    for calls, rows, total, wal, hit, _dirtied, query in plain["rows"]:
        lines.append(
            f"| `{_short(query)}` | {calls} | {rows / calls:.0f} | {total / calls:.2f} | {total * 1e3 / jobs:.1f} "
            f"| {wal / jobs:.0f} | {hit / jobs:.1f} |"
        )
    return "\n".join(lines)


def _short(query: str) -> str:
    flat = re.sub(r"\s+", " ", query).replace("|", "\\|").strip()
    return flat if len(flat) <= 72 else flat[:50] + " … " + flat[-20:]


def _plans(log: str) -> str:
    """The slowest plan of each of the two statements that matter, as the server logged it."""
    found: dict[str, tuple[float, str]] = {}
    for match in re.finditer(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", log):
        lines = textwrap.dedent(match[2].replace("\t", "")).splitlines()
        first = next((number for number, line in enumerate(lines) if "(cost=" in line), 0)
        which, milliseconds = _which(" ".join(lines[:first]).upper()), float(match[1])
        if which and milliseconds > found.get(which, (0.0, ""))[0]:
            found[which] = (milliseconds, "\n".join(lines[first:]))
    return "\n\n".join(
        f"The slowest {which}, {milliseconds:.1f} ms:\n\n```\n{plan}\n```"
        for which, (milliseconds, plan) in sorted(found.items())
    )


def _which(query: str) -> str | None:
    """Both lock rows with SKIP LOCKED, in riverq and in Go River; only a claim has a limit."""
    if "UPDATE" not in query or "RIVER_JOB" not in query or "RUNNING" not in query:
        return None
    return "claim" if "LIMIT" in query else "state write"


# -- client


def _spied(stage: Stage, contender: Contender, path: Path) -> list[str]:
    """A run with py-spy beside the child; its stacks."""
    # Without --gil, threads that wait for work or for the interpreter's lock would count as busy.
    command = [
        SPY,
        "record",
        "--gil",
        "--rate",
        str(RATE_PER_SECOND),
        "--format",
        "raw",
        "--output",
        str(path),
        "--pid",
    ]
    running: list[subprocess.Popen[bytes]] = []

    def fasten(pid: int) -> None:
        running.append(subprocess.Popen([*command, str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        work(replace(stage, at_start=fasten), contender, CELL)
        for process in running:
            process.wait(30)  # it writes when the child has gone
    finally:
        for process in running:
            process.kill()
            process.wait()
    return path.read_text().splitlines()


def _client(samples: list[str], microseconds: float) -> str:
    """Two tables: by package (of the innermost frame), and the functions with the most time of their own."""
    packages: collections.Counter[str] = collections.Counter()
    functions: collections.Counter[str] = collections.Counter()
    for line in samples:
        stack, _, count = line.rpartition(" ")
        leaf = stack.rpartition(";")[2]
        functions[_function(leaf)] += int(count)
        packages[_package(leaf)] += int(count)
    total = sum(packages.values()) or 1
    lines = ["| package | share | µs/job |", "|---|--:|--:|"]
    lines += [f"| {name} | {n / total:.0%} | {n / total * microseconds:.1f} |" for name, n in packages.most_common(8)]
    lines += ["", "| function | share | µs/job |", "|---|--:|--:|"]
    lines += [
        f"| `{name}` | {n / total:.0%} | {n / total * microseconds:.1f} |" for name, n in functions.most_common(TOP)
    ]
    return "\n".join(lines)


def _function(frame: str) -> str:
    match = re.match(r"(.*) \((.*?)(?::\d+)?\)$", frame)
    if match is None:
        return frame
    return f"{'/'.join(Path(match[2]).parts[-2:])} {match[1]}"


def _package(frame: str) -> str:
    match = re.search(
        r"\((?:.*?/)?(riverq\w*|sqlalchemy|asyncpg|psycopg\w*|pg8000|scramp|uvloop|msgspec|asyncio|benchmarks)/", frame
    )
    return match[1] if match else "other"


if __name__ == "__main__":
    sys.exit(main())
