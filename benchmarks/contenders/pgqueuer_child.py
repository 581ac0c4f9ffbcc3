"""PgQueuer as a contender: asyncpg, one connection for the worker and others for inserting."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

BATCH = 1000
FILL_BATCH = 5000
DEFAULT_BATCH_SIZE = 10
LARGEST_BATCH_SIZE = 1000
PRODUCER_POOL = {"min_size": 5, "max_size": 20}
POLL_SECONDS = 0.02
LAST_JOBS_SECONDS = 10.0

NOTES = {
    "tuned": (
        "asyncpg, uvloop; a connection for the queue manager, a pool for overlapping inserts; batch_size half of the"
        f" workers (the most it allows, {LARGEST_BATCH_SIZE} at most); tables set with `pgq autovac`"
    ),
    "default": (
        "asyncpg; uvloop where it works jobs, as `pgq run` does; batch_size 10 (half of the workers if that is less)"
    ),
    "unequal": (
        "finished jobs are deleted and only their id is logged; args are bytes that the no-op job does not decode;"
        " nothing is retried unless the job asks; a finished job takes up a worker's place until it is written"
    ),
}

FINISHED_SQL = "SELECT count(*) FROM pgqueuer_log WHERE entrypoint = 'bench' AND status = 'successful'"

REMAINING_SQL = "SELECT EXISTS (SELECT FROM pgqueuer WHERE entrypoint = 'bench')"

# The log has a job's id, not its payload, so a job's number is its place among the ids; a single connection inserts in
# that order, and the latency task reports its samples by it. A row is rewritten when it is added to the statistics
# (every 30 s or so), which leaves only the start of the transaction that ended the job.
ENDED_SQL = """
    SELECT job_id - (SELECT min(job_id) FROM pgqueuer_log),
           extract(epoch FROM CASE WHEN aggregated THEN created ELSE pg_xact_commit_timestamp(xmin) END)::float8
    FROM pgqueuer_log WHERE entrypoint = 'bench' AND status = 'successful'
"""

Insert = Callable[[int], Awaitable[object]]


def _payload(number: int, at: float = 0) -> bytes:
    return json.dumps({"number": number, "at": at}).encode()


class Bench:
    """The libraries, imported, and what is made of them once the clock runs."""

    def __init__(self, child: Child) -> None:
        if child.task.get("schema"):
            raise Unsupported("only the connection's own schema is measured")
        self.child = child
        self._listens: bool = child.task.get("listen", True)
        self.asyncpg = import_module("asyncpg")
        self.pgqueuer = import_module("pgqueuer")
        self.queries = import_module("pgqueuer.queries")

    async def connect(self) -> Any:
        """A new connection."""
        return await self.asyncpg.connect(self.child.url, **self._options())

    async def inserter(self) -> Any:
        """What enqueues, on a connection of its own."""
        return self.queries.Queries.from_asyncpg_connection(await self.connect())

    async def overlapping_inserter(self) -> Any:
        """The same for calls that may overlap, which a connection makes one after the other."""
        if not self.child.tuned:
            return await self.inserter()
        pool = await self.asyncpg.create_pool(self.child.url, **PRODUCER_POOL, **self._options())
        return self.queries.Queries.from_asyncpg_pool(pool)

    async def tune_tables(self) -> None:
        """What `pgq autovac` does, which is a step of the installation and so not measured."""
        if self.child.tuned:
            connection = await self.connect()
            await self.queries.Queries.from_asyncpg_connection(connection).optimize_autovacuum()
            await connection.close()

    async def start(self, job: Callable[[Any], Awaitable[None]]) -> tuple[Any, asyncio.Task[None]]:
        """The manager, and the task in which it works."""
        manager = self.pgqueuer.PgQueuer.from_asyncpg_connection(await self.connect())
        workers: int = self.child.task["workers"]
        # A manager takes no fewer than two jobs at once; an entrypoint's own limit goes down to one.
        manager.entrypoint("bench", concurrency_limit=1 if workers == 1 else 0)(job)
        batch_size = LARGEST_BATCH_SIZE if self.child.tuned else DEFAULT_BATCH_SIZE
        options: dict[str, Any] = {"batch_size": max(1, min(batch_size, workers // 2))}
        if workers > 1:
            options["max_concurrent_tasks"] = workers
        if self.child.tuned and not self._listens:
            options["dequeue_timeout"] = timedelta(seconds=POLL_SECONDS)
        return manager, asyncio.create_task(manager.run(**options))

    def _options(self) -> dict[str, int]:
        """Behind a pooler that shares connections, prepared statements must not be kept."""
        return {} if self._listens else {"statement_cache_size": 0}


async def enqueue(queries: Any, start: int, count: int) -> None:
    """Insert the jobs `start` to `start + count - 1` with one statement."""
    payloads = [_payload(number) for number in range(start, start + count)]
    await queries.enqueue(["bench"] * count, payloads, [0] * count)


async def insert_all(bench: Bench, count: int, batch: int) -> None:
    """Insert the jobs 0 to `count - 1`."""
    queries = await bench.inserter()
    for start in range(0, count, batch):
        await enqueue(queries, start, min(batch, count - start))


async def migrate(child: Child) -> None:
    """`pgq install`."""
    bench = Bench(child)
    await child.go()
    await (await bench.inserter()).install()
    child.emit("result")


async def fill(child: Child) -> None:
    """The bulk insert."""
    bench = Bench(child)
    await child.go()
    await insert_all(bench, child.task["count"], FILL_BATCH)
    child.emit("result", count=child.task["count"])


async def insert(child: Child) -> None:
    """One call after the other for some seconds."""
    bench = Bench(child)
    mode, size = child.task["mode"], 1
    if mode == "copy":
        raise Unsupported("PgQueuer has no COPY")
    await bench.tune_tables()
    await child.go()
    connection = await bench.connect()
    queries = bench.queries.Queries.from_asyncpg_connection(connection)

    async def single(number: int) -> None:
        await queries.enqueue("bench", _payload(number))

    async def single_tx(number: int) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO bench_app (number) VALUES ($1)", number)
            await queries.enqueue("bench", _payload(number))

    calls: dict[str, Insert] = {"single": single, "single_tx": single_tx}
    if mode == "batch":
        size = child.task["batch"]
        calls["batch"] = lambda number: enqueue(queries, number, size)
    call, count = calls[mode], 0
    end = time.monotonic() + child.task["seconds"]
    while time.monotonic() < end:
        await call(count)
        count += size
    child.emit("result", count=count)


async def work(child: Child) -> None:
    """Work a backlog, or what this process inserts meanwhile."""
    bench = Bench(child)
    seconds = child.task["sleep_ms"] / 1000 if child.task["job"] == "sleep" else 0.0

    async def noop(job: Any) -> None:
        child.done()

    async def sleep(job: Any) -> None:
        await asyncio.sleep(seconds)
        child.done()

    await bench.tune_tables()
    await child.go()
    manager, worker = await bench.start(sleep if seconds else noop)
    others = [asyncio.create_task(child.report_progress())]
    if child.task.get("insert"):
        others.append(asyncio.create_task(insert_all(bench, child.task["insert"], BATCH)))
    await child.stop_requested_beside(worker, *others)
    for task in others:
        task.cancel()
    manager.shutdown.set()
    await worker
    child.stopped()


async def latency(child: Child) -> None:
    """Insert at a fixed rate, and note when each job starts."""
    bench = Bench(child)
    count = round(child.task["rate"] * child.task["seconds"])
    samples: list[tuple[int, float, float]] = []
    complete = asyncio.Event()

    async def job(job: Any) -> None:
        now = time.time()
        samples.append((job.id, json.loads(job.payload)["at"], now))
        child.done()
        if len(samples) == count:
            complete.set()

    await bench.tune_tables()
    await child.go()
    manager, worker = await bench.start(job)
    queries = await bench.overlapping_inserter()

    numbers: list[int] = []

    async def insert_one(number: int) -> None:
        numbers.extend(int(job) for job in await queries.enqueue("bench", _payload(number, time.time())))

    await asyncio.sleep(1)
    await child.insert_evenly(count, insert_one)
    first = min(numbers)
    await asyncio.wait(
        {worker, asyncio.create_task(complete.wait())}, timeout=LAST_JOBS_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    child.emit("result", samples=[(inserted - first, at, started) for inserted, at, started in samples])
    await child.stop_requested_beside(worker)
    manager.shutdown.set()
    await worker
    child.stopped()


if __name__ == "__main__":
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: task.get("settings") == "tuned" or task["task"] in ("work", "latency"),
    )
