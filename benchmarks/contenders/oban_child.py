"""Oban for Python as a contender: one Oban instance with one queue, embedded, on psycopg.

It needs Python 3.12, so it has an environment of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

NOTES = {
    "tuned": "debounce_interval 1 ms, a pool of 10 connections opened beforehand, LISTEN, uvloop",
    "default": "all defaults: debounce_interval 5 ms, 1 to 10 connections, LISTEN; uvloop, as in `oban start`",
    "unequal": (
        "runs on Python 3.12 or newer; results are written between two fetches, one UPDATE a row in one transaction; "
        "many jobs at once are inserted one INSERT a row (bulk statements and unique jobs are Oban Pro's)"
    ),
}

FINISHED_SQL = "SELECT count(*) FROM oban_jobs WHERE worker = 'bench.Bench' AND state = 'completed'"
REMAINING_SQL = (
    "SELECT EXISTS (SELECT FROM oban_jobs WHERE worker = 'bench.Bench'"
    " AND state IN ('available', 'scheduled', 'executing', 'retryable', 'suspended'))"
)
ENDED_SQL = (
    "SELECT (args ->> 'number')::bigint, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    " FROM oban_jobs WHERE worker = 'bench.Bench' AND state = 'completed'"
)

POOL_SIZE = 10
INSERT_BATCH = 1000


def make_worker(child: Child, entered: Callable[[int, float], None] | None = None) -> Any:
    """Register the worker class for "bench" and give it."""
    seconds = child.task["sleep_ms"] / 1000 if child.task.get("job") == "sleep" else 0.0

    class Bench:
        # Oban finds a worker by these two, whichever way this program was started.
        __module__ = "bench"
        __qualname__ = "Bench"

        async def process(self, job: Any) -> None:
            if entered is not None:
                entered(job.args["number"], job.args["at"])
            if seconds:
                await asyncio.sleep(seconds)
            child.done()

    return import_module("oban").worker()(Bench)


def make_jobs(bench: Any, start: int, stop: int) -> list[Any]:
    """Jobs numbered from `start` to `stop` - 1."""
    return [bench.new({"number": number, "at": 0}) for number in range(start, stop)]


async def open_pool(child: Child) -> Any:
    """Oban's own pool, which connects at once."""
    oban = import_module("oban")
    if child.tuned:
        return await oban.Oban.create_pool(child.url, min_size=POOL_SIZE, max_size=POOL_SIZE)
    return await oban.Oban.create_pool(child.url)


async def migrate(child: Child) -> None:
    """Oban's tables."""
    schema = import_module("oban.schema")
    await child.go()
    pool = await open_pool(child)
    await schema.install(pool)
    await pool.close()
    child.emit("result")


def batches(count: int) -> Iterator[tuple[int, int]]:
    """From and to of each batch."""
    for start in range(0, count, INSERT_BATCH):
        yield start, min(start + INSERT_BATCH, count)


async def fill(child: Child) -> None:
    """A backlog."""
    bench = make_worker(child)
    await child.go()
    pool = await open_pool(child)
    oban = import_module("oban").Oban(pool=pool)
    for start, stop in batches(child.task["count"]):
        await oban.enqueue_many(make_jobs(bench, start, stop))
    await pool.close()
    child.emit("result", count=child.task["count"])


async def insert(child: Child) -> None:
    """One call after the other until the time is up."""
    mode, batch = child.task["mode"], child.task["batch"]
    if mode == "copy":
        raise Unsupported("Oban does not insert by COPY")
    bench = make_worker(child)
    await child.go()
    pool = await open_pool(child)
    oban = import_module("oban").Oban(pool=pool)
    deadline = time.monotonic() + child.task["seconds"]
    count = 0
    while time.monotonic() < deadline:
        if mode == "single":
            await oban.enqueue(bench.new({"number": count, "at": 0}))
            count += 1
        elif mode == "single_tx":
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO bench_app (number) VALUES (%s)", (count,))
                await oban.enqueue(bench.new({"number": count, "at": 0}), conn=conn)
            count += 1
        else:
            await oban.enqueue_many(make_jobs(bench, count, count + batch))
            count += batch
    child.emit("result", count=count)  # the clock stops here, not after closing
    await pool.close()


def make_oban(child: Child, pool: Any) -> Any:
    """An instance that works the queue."""
    queue: dict[str, Any] = {"limit": child.task["workers"]}
    options: dict[str, Any] = {}
    if child.tuned:
        queue["debounce_interval"] = 0.001
    if not child.task.get("listen", True):
        raise Unsupported("Oban has no setting to do without LISTEN")
    return import_module("oban").Oban(pool=pool, queues={"default": queue}, **options)


async def work(child: Child) -> None:
    """Work until told to stop; with `insert`, also insert as many meanwhile."""
    bench = make_worker(child)
    await child.go()
    pool = await open_pool(child)
    oban = make_oban(child, pool)
    reporter = asyncio.create_task(child.report_progress())
    await oban.start()
    inserter = asyncio.create_task(_insert_meanwhile(child, oban, bench))
    await child.stop_requested()
    inserter.cancel()
    with suppress(asyncio.CancelledError):
        await inserter
    await oban.stop()
    await pool.close()
    reporter.cancel()
    child.stopped()


async def _insert_meanwhile(child: Child, oban: Any, bench: Any) -> None:
    for start, stop in batches(child.task.get("insert", 0)):
        await oban.enqueue_many(make_jobs(bench, start, stop))


async def latency(child: Child) -> None:
    """Insert at an even rate and note when each job starts."""
    samples: list[tuple[int, float, float]] = []
    all_in = asyncio.Event()
    wanted = int(child.task["rate"] * child.task["seconds"])

    def entered(number: int, at: float) -> None:
        samples.append((number, at, time.time()))
        if len(samples) >= wanted:
            all_in.set()

    bench = make_worker(child, entered)
    await child.go()
    pool = await open_pool(child)
    oban = make_oban(child, pool)
    await oban.start()
    await asyncio.sleep(1)

    async def enqueue_one(number: int) -> None:
        await oban.enqueue(bench.new({"number": number, "at": time.time()}))

    await child.insert_evenly(wanted, enqueue_one)
    with suppress(TimeoutError):
        await asyncio.wait_for(all_in.wait(), 10)
    child.emit("result", samples=samples)
    await child.stop_requested()
    await oban.stop()
    await pool.close()
    child.stopped()


if __name__ == "__main__":
    # `oban start`, the way to run it that its guide recommends, has uvloop as well.
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: True,
    )
