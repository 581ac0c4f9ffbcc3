"""What a transaction that stays open costs: for ten minutes it keeps Postgres from removing any dead row, while 800
jobs a second come and go. riverq and Go River run beside each other, each on a Postgres of its own with such a
transaction, so that CPU can be told apart. A job's wait counts from just before its insert to its claim (start) and to
the commit that ends it (end).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from benchmarks.contenders.registry import REFERENCE, ROOT, Contender
from benchmarks.harness import proc
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.meter import CORES, FOREIGN_LIMIT
from benchmarks.harness.process import ChildProcess
from benchmarks.harness.quiet import wait_for_quiet
from benchmarks.harness.server import RUN_DATABASE, Server, running_server
from benchmarks.harness.stage import Stage

RATE = 800
MINUTES = 10
STEP_SECONDS = 60.0
PAIR = ("riverq-asyncpg", REFERENCE)

# Both clients write attempted_at by the database's clock, which is that of the machine, as is `at`.
SERIES = """
    SELECT count(*),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY start_ms),
           percentile_cont(0.99) WITHIN GROUP (ORDER BY start_ms),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY end_ms),
           percentile_cont(0.99) WITHIN GROUP (ORDER BY end_ms)
    FROM (SELECT extract(epoch FROM attempted_at - at) * 1e3 AS start_ms,
                 extract(epoch FROM pg_xact_commit_timestamp(xmin) - at) * 1e3 AS end_ms
          FROM (SELECT *, xmin, to_timestamp((args ->> 'at')::float8) AS at FROM river_job) jobs
          WHERE kind = 'bench' AND state = 'completed' AND at >= to_timestamp(%s) AND at < to_timestamp(%s)) waits
"""


def cells() -> list[Cell]:
    """All of this question's: one, and it takes its ten minutes."""
    return [
        Cell(
            question="horizon",
            name="pinned",
            title=f"{MINUTES} minutes at {RATE} jobs/s with the horizon pinned, 500 workers, default settings",
            measure=measure,
            task={
                "rate": RATE,
                "seconds": MINUTES * 60,
                "workers": 500,
                "settings": "default",
                "samples": False,
                "batch": 20,
            },
            contenders=PAIR,
            content=Content(),
            main="end_p99",
            unit="ms",
            higher_is_better=False,
            rounds=1,
        )
    ]


def measure(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Both run at once; the second one asked for gets what was measured beside the first, a failure too."""
    if contender.name not in stage.beside:
        try:
            stage.beside.update(_measure_pair(stage, cell))
        except Exception as error:  # noqa: BLE001  # raised below, for each of the two
            stage.beside.update(dict.fromkeys(PAIR, error))
    found = stage.beside.pop(contender.name)
    if isinstance(found, Exception):
        raise found
    return found


@dataclass(frozen=True)
class _Look:
    """CPU seconds so far, and when."""

    at: float
    client: float
    postgres: float
    wal: int


@dataclass(frozen=True)
class _Side:
    """One of the two: its server, its process, and what was seen every minute."""

    contender: Contender
    server: Server
    conn: psycopg.Connection[Any]
    child: ChildProcess
    seen: list[_Look] = field(default_factory=list)

    def look(self, times: dict[int, proc.ProcessTimes]) -> None:
        """Note what it has used so far."""
        client = proc.tree_cpu_seconds([self.child.pid], times)
        postgres = proc.tree_cpu_seconds([self.server.postmaster_pid], times)
        self.seen.append(_Look(time.time(), client, postgres, self.server.wal_position()))


def _measure_pair(stage: Stage, cell: Cell) -> dict[str, Figures]:
    with ExitStack() as stack:
        sides = [stack.enter_context(_side(stage, stage.contenders[name], cell)) for name in PAIR]
        wait_for_quiet()
        foreign = _run(sides, float(cell.task["seconds"]))
        for side in sides:
            side.child.expect("result", 90)
            side.child.stop()
        return {side.contender.name: {**_figures(side, cell), **foreign} for side in sides}


def _run(sides: list[_Side], seconds: float) -> Figures:
    """Let them go, look every minute, and say what others used meanwhile."""
    began, busy = time.monotonic(), proc.machine_busy_seconds()
    harness = proc.all_times()[os.getpid()].own
    for side in sides:
        side.child.go()
    while True:
        times = proc.all_times()
        for side in sides:
            side.child.check()
            side.look(times)
        left = began + seconds + 3 - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(STEP_SECONDS, left))
    used = sum(
        side.seen[-1].client + side.seen[-1].postgres - side.seen[0].client - side.seen[0].postgres for side in sides
    )
    used += times[os.getpid()].own - harness
    foreign = (proc.machine_busy_seconds() - busy - used) / ((time.monotonic() - began) * CORES)
    return {"foreign_share": foreign, "disturbed": False, "noisy": foreign > FOREIGN_LIMIT}


@contextmanager
def _side(stage: Stage, contender: Contender, cell: Cell) -> Iterator[_Side]:
    with running_server() as server:
        template = replace(stage, server=server).template(contender, cell.content)
        server.copy(template, RUN_DATABASE)
        url = server.url(RUN_DATABASE, user="postgres")
        task = {"task": "latency", "url": server.url(RUN_DATABASE), **cell.task, **contender.extra}
        log = stage.logs / f"horizon-{contender.name}.log"
        with (
            _pinned_horizon(url),
            psycopg.connect(url, autocommit=True) as conn,
            ChildProcess(contender.command(), task, log, ROOT) as child,
        ):
            child.ready()
            yield _Side(contender, server, conn, child)


@contextmanager
def _pinned_horizon(url: str) -> Iterator[None]:
    """A transaction with a snapshot, as a forgotten session or a long report holds it."""
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM river_job")
        yield


def _figures(side: _Side, cell: Cell) -> Figures:
    first, last = side.seen[0], side.seen[-1]
    steps = list(zip(side.seen, side.seen[1:], strict=False))
    series = [_step(side.conn, before, after, first.at) for before, after in steps]
    whole = _row(side.conn, first.at, last.at + 60)
    jobs, wanted = int(whole["jobs"]), int(cell.task["rate"] * cell.task["seconds"])
    table = side.conn.execute(
        "SELECT pg_total_relation_size(relid) / 1e6, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'river_job'"
    ).fetchone()
    size, dead = table or (0.0, 0)
    missing = f"; {wanted - jobs} of {wanted} jobs were not done in time" if jobs != wanted else ""
    return {
        "jobs": jobs,
        "seconds": last.at - first.at,
        "rate": jobs / float(cell.task["seconds"]),
        "client_cpu_us": (last.client - first.client) / max(jobs, 1) * 1e6,
        "postgres_cpu_us": (last.postgres - first.postgres) / max(jobs, 1) * 1e6,
        "wal_bytes": (last.wal - first.wal) / max(jobs, 1),
        **{name: value for name, value in whole.items() if name != "jobs"},
        "series": [step for step in series if step["jobs"]],
        "note": f"at the end: table and indexes {float(size):,.0f} MB, {int(dead)} dead rows{missing}",
    }


def _step(conn: psycopg.Connection[Any], before: _Look, after: _Look, zero: float) -> dict[str, Any]:
    row = _row(conn, before.at, after.at)
    count = max(int(row["jobs"]), 1)
    client, postgres = (after.client - before.client) / count * 1e6, (after.postgres - before.postgres) / count * 1e6
    return {"second": round(after.at - zero), **row, "client_us": client, "postgres_us": postgres}


def _row(conn: psycopg.Connection[Any], begin: float, end: float) -> dict[str, Any]:
    row = conn.execute(SERIES.encode(), (begin, end)).fetchone()
    names = ("jobs", "start_p50", "start_p99", "end_p50", "end_p99")
    return dict(zip(names, (None if value is None else float(value) for value in row or ()), strict=False))
