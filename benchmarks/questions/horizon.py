"""What a transaction that stays open costs: for ten minutes it keeps Postgres from removing any dead row, while 800
jobs a second come and go. riverq and Go River run beside each other, each on a database of its own with such a
transaction. A job's start is here the moment of its claim, by Postgres's clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.contenders.registry import REFERENCE, ROOT, Contender
from benchmarks.harness import proc
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.process import ChildFailed, ChildProcess
from benchmarks.harness.stage import Stage

RATE = 800
MINUTES = 10
STEP_SECONDS = 30.0
PAIR = ("riverq-asyncpg", REFERENCE)

# The claim's wait is told by the rows themselves: both clients write attempted_at by the database's clock.
SERIES = """
    SELECT count(*),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY start_ms),
           percentile_cont(0.99) WITHIN GROUP (ORDER BY start_ms),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY end_ms),
           percentile_cont(0.99) WITHIN GROUP (ORDER BY end_ms)
    FROM (SELECT extract(epoch FROM attempted_at - created_at) * 1e3 AS start_ms,
                 extract(epoch FROM pg_xact_commit_timestamp(xmin) - created_at) * 1e3 AS end_ms
          FROM river_job
          WHERE kind = 'bench' AND state = 'completed'
            AND created_at >= to_timestamp(%s) AND created_at < to_timestamp(%s)) jobs
"""


def cells() -> list[Cell]:
    """All of this question's: one, and it takes its ten minutes."""
    return [
        Cell(
            question="horizon",
            name="pinned",
            title=f"{MINUTES} minutes at {RATE} jobs/s with the horizon pinned, 100 workers, default settings",
            measure=measure,
            task={
                "rate": RATE,
                "seconds": MINUTES * 60,
                "workers": 100,
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
    """Both run at once; the second one asked for gets what was measured beside the first."""
    if contender.name not in stage.beside:
        try:
            stage.beside.update(_measure_pair(stage, cell))
        except (ChildFailed, TimeoutError) as error:
            stage.beside.update(dict.fromkeys(PAIR, error))
    found = stage.beside.pop(contender.name)
    if isinstance(found, Exception):
        raise found
    return found


@dataclass
class _Side:
    """One of the two: its database, its process, and what was seen every half a minute."""

    contender: Contender
    database: str
    conn: psycopg.Connection[Any]
    child: ChildProcess
    seen: list[tuple[float, float, float]]

    def look(self, url: str) -> None:
        """Note the time, and the CPU that client and backends had so far."""
        times = proc.all_times()
        with psycopg.connect(url) as conn:
            rows = conn.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", (self.database,)).fetchall()
        backends = sum(times[pid].own for (pid,) in rows if pid in times)
        self.seen.append((time.time(), proc.tree_cpu_seconds([self.child.pid], times), backends))


def _measure_pair(stage: Stage, cell: Cell) -> dict[str, Figures]:
    seconds = float(cell.task["seconds"])
    admin = stage.server.url("postgres", user="postgres")
    with ExitStack() as stack:
        sides = [stack.enter_context(_side(stage, stage.contenders[name], cell)) for name in PAIR]
        for side in sides:
            side.child.go()
        deadline = time.monotonic() + seconds + 3
        while time.monotonic() < deadline:
            for side in sides:
                side.child.check()
                side.look(admin)
            time.sleep(max(0.0, min(STEP_SECONDS, deadline - time.monotonic())))
        for side in sides:
            side.look(admin)
        for side in sides:
            side.child.expect("result", 60)
            side.child.stop()
        return {side.contender.name: _figures(side, cell) for side in sides}


@contextmanager
def _side(stage: Stage, contender: Contender, cell: Cell) -> Iterator[_Side]:
    database = f"bench_{contender.family}_{contender.name.replace('-', '_')}"
    url = stage.server.url(database, user="postgres")
    stage.server.copy(stage.template(contender, cell.content), database)
    try:
        task = {"task": "latency", "url": stage.server.url(database), **cell.task, **contender.extra}
        with (
            _pinned_horizon(url),
            psycopg.connect(url, autocommit=True) as conn,
            ChildProcess(contender.command(), task, stage.logs / f"horizon-{contender.name}.log", ROOT) as child,
        ):
            child.ready()
            yield _Side(contender, database, conn, child, [])
    finally:
        stage.server.drop(database)


@contextmanager
def _pinned_horizon(url: str) -> Iterator[None]:
    """A transaction with a snapshot, as a forgotten session or a long report holds it."""
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM river_job")
        yield


def _figures(side: _Side, cell: Cell) -> Figures:
    first, last = side.seen[0], side.seen[-1]
    series = [
        _step(side.conn, before, after, first[0]) for before, after in zip(side.seen, side.seen[1:], strict=False)
    ]
    whole = _row(side.conn, first[0], last[0] + 60)
    jobs = int(whole["jobs"])
    table = side.conn.execute(
        "SELECT pg_total_relation_size(relid) / 1e6, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'river_job'"
    ).fetchone()
    size, dead = table or (0.0, 0)
    return {
        "jobs": jobs,
        "seconds": last[0] - first[0],
        "rate": jobs / float(cell.task["seconds"]),
        "client_cpu_us": (last[1] - first[1]) / max(jobs, 1) * 1e6,
        "postgres_cpu_us": (last[2] - first[2]) / max(jobs, 1) * 1e6,
        **{name: value for name, value in whole.items() if name != "jobs"},
        "series": [step for step in series if step["jobs"]],
        "note": f"at the end: table and indexes {float(size):,.0f} MB, {int(dead)} dead rows",
    }


def _step(
    conn: psycopg.Connection[Any], before: tuple[float, ...], after: tuple[float, ...], zero: float
) -> Mapping[str, Any]:
    row = _row(conn, before[0], after[0])
    count = max(int(row["jobs"]), 1)
    cpu = {"client_us": (after[1] - before[1]) / count * 1e6, "postgres_us": (after[2] - before[2]) / count * 1e6}
    return {"second": round(after[0] - zero), **row, **cpu}


def _row(conn: psycopg.Connection[Any], begin: float, end: float) -> dict[str, Any]:
    row = conn.execute(SERIES.encode(), (begin, end)).fetchone()
    names = ("jobs", "start_p50", "start_p99", "end_p50", "end_p99")
    return dict(zip(names, (None if value is None else float(value) for value in row or ()), strict=False))
