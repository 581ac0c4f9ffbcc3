"""What one exchange with the server takes, and what a commit adds."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from riverq.bench.figures import Trips
from riverq.bench.plan import Countdown, Limit, Progress
from riverq.database import Database
from riverq.query.measure import select_one
from riverq.query.queue import queue_create_or_touch, queue_get

if TYPE_CHECKING:
    from sqlalchemy import Connection

QUEUE = "bench_trips"
STEPS = 5
"""The exchanges for a statement that is not one: BEGIN, parsing, binding, executing, COMMIT."""

ROUNDS = 300
IN_A_ROW = 5


async def measure_trips(db: Database, limit: Limit, progress: Progress) -> Trips:
    """Read and write one row by turns, so that a disturbance meets both alike."""
    await db.run(queue_create_or_touch, QUEUE)
    countdown = Countdown(Limit(ROUNDS, limit.seconds))
    round_trips: list[float] = []
    reads: list[float] = []
    writes: list[float] = []
    while countdown.goes_on(len(reads)):
        round_trips += await db.run(_round_trips)
        began = perf_counter()
        await db.run_single(queue_get, QUEUE)
        between = perf_counter()
        await db.run_single(queue_create_or_touch, QUEUE)
        reads.append(between - began)
        writes.append(perf_counter() - between)
        progress.advance(countdown.share(len(reads)), len(reads))
    statement = median(reads)
    return Trips(
        round_trip=median(round_trips),
        statement=statement,
        commit=max(0.0, median(writes) - statement),
        exchanges=1 if db.driver.capabilities.autocommit else STEPS,
    )


def _round_trips(conn: Connection, schema: str) -> list[float]:
    """Within a transaction that has begun, so that each is one exchange."""
    select_one(conn, schema)
    taken = []
    for _ in range(IN_A_ROW):
        began = perf_counter()
        select_one(conn, schema)
        taken.append(perf_counter() - began)
    return taken
