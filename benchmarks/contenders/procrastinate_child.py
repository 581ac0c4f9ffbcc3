"""procrastinate as a contender: its PsycopgConnector (psycopg and psycopg_pool)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

BATCH = 1000
FILL_BATCH = 5000
LARGEST_POOL = 10
POLL_SECONDS = 0.02
LAST_JOBS_SECONDS = 10.0

NOTES = {
    "tuned": (
        "psycopg, uvloop, concurrency = the workers; an own pool, in autocommit and without a check at each checkout,"
        f" with the documented connection per worker and one more, but {LARGEST_POOL} at most"
    ),
    "default": "psycopg, asyncio's own loop, concurrency = the workers, the pool's default of 4 connections",
    "unequal": (
        "jobs are fetched and finished one by one, each in its own transaction; triggers log every change of a job's"
        " state in a table of events; nothing is retried unless the task asks"
    ),
}

FINISHED_SQL = "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'bench' AND status = 'succeeded'"

REMAINING_SQL = """
    SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE task_name = 'bench' AND status IN ('todo', 'doing'))
"""

# The event's row, not the job's: when a worker ends, the jobs it has worked are updated once more.
ENDED_SQL = """
    SELECT (job.args ->> 'number')::bigint, extract(epoch FROM pg_xact_commit_timestamp(event.xmin))::float8
    FROM procrastinate_events event JOIN procrastinate_jobs job ON job.id = event.job_id
    WHERE event.type = 'succeeded' AND job.task_name = 'bench'
"""

Insert = Callable[[int], Awaitable[object]]


class Bench:
    """The app with its task "bench", not yet connected."""

    def __init__(self, child: Child, job: Callable[[int, float], Awaitable[None]] | None = None) -> None:
        if child.task.get("schema"):
            raise Unsupported("only the connection's own schema is measured")
        self.child = child
        procrastinate = import_module("procrastinate")
        self.psycopg_pool = import_module("psycopg_pool")
        self.listens: bool = child.task.get("listen", True)
        # Behind a pooler that shares connections, prepared statements must not be kept.
        kwargs = {} if self.listens else {"prepare_threshold": None}
        self.pool: dict[str, Any] = {"conninfo": child.url, "kwargs": kwargs}
        self.app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(**self.pool))
        self.task: Any = self.app.task(name="bench")(job or _never_run)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """The app open, on the connector's own pool or (tuned) on one that it is given."""
        if not self.child.tuned:
            async with self.app.open_async():
                yield
            return
        size = min(self.child.task.get("workers", 0) + 1, LARGEST_POOL)
        pool = self.psycopg_pool.AsyncConnectionPool(
            **self.pool, min_size=size, max_size=size, configure=_set_autocommit, open=False
        )
        async with pool, self.app.open_async(pool):
            yield

    def start(self) -> asyncio.Task[None]:
        """The worker, which ends gracefully when the task is cancelled."""
        options: dict[str, Any] = {"concurrency": self.child.task["workers"], "install_signal_handlers": False}
        if not self.listens:
            options["listen_notify"] = False
            if self.child.tuned:
                options["fetch_job_polling_interval"] = POLL_SECONDS
        return asyncio.create_task(self.app.run_worker_async(**options))

    async def defer(self, start: int, count: int) -> None:
        """Insert the jobs `start` to `start + count - 1` with one call."""
        await self.task.batch_defer_async(*[{"number": number, "at": 0} for number in range(start, start + count)])

    async def defer_one(self, number: int) -> None:
        """Insert one job, with the time at which that begins."""
        await self.task.defer_async(number=number, at=time.time())

    async def defer_all(self, count: int, batch: int) -> None:
        """Insert the jobs 0 to `count - 1`."""
        for start in range(0, count, batch):
            await self.defer(start, min(batch, count - start))


async def _set_autocommit(connection: Any) -> None:
    await connection.set_autocommit(True)


async def _never_run(number: int, at: float) -> None:
    raise AssertionError("this process only inserts")


async def migrate(child: Child) -> None:
    """`procrastinate schema --apply`."""
    bench = Bench(child)
    await child.go()
    async with bench.connected():
        await bench.app.schema_manager.apply_schema_async()
    child.emit("result")


async def fill(child: Child) -> None:
    """The bulk insert."""
    bench = Bench(child)
    await child.go()
    async with bench.connected():
        await bench.defer_all(child.task["count"], FILL_BATCH)
    child.emit("result", count=child.task["count"])


async def insert(child: Child) -> None:
    """One call after the other for some seconds."""
    bench = Bench(child)
    psycopg = import_module("psycopg")
    mode, size = child.task["mode"], 1
    if mode == "copy":
        raise Unsupported("procrastinate has no COPY")
    await child.go()
    async with bench.connected(), await psycopg.AsyncConnection.connect(child.url) as connection:

        async def single(number: int) -> None:
            await bench.task.defer_async(number=number, at=0)

        async def single_tx(number: int) -> None:
            await connection.execute("INSERT INTO bench_app (number) VALUES (%s)", [number])
            await bench.task.configure(connection=connection).defer_async(number=number, at=0)
            await connection.commit()

        calls: dict[str, Insert] = {"single": single, "single_tx": single_tx}
        if mode == "batch":
            size = child.task["batch"]
            calls["batch"] = lambda number: bench.defer(number, size)
        call, count = calls[mode], 0
        end = time.monotonic() + child.task["seconds"]
        while time.monotonic() < end:
            await call(count)
            count += size
        child.emit("result", count=count)  # the clock stops here, not after closing


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel them and wait; what one of them failed with is raised."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def work(child: Child) -> None:
    """Work a backlog, or what this process inserts meanwhile."""
    seconds = child.task["sleep_ms"] / 1000 if child.task["job"] == "sleep" else 0.0

    async def noop(number: int, at: float) -> None:
        child.done()

    async def sleep(number: int, at: float) -> None:
        await asyncio.sleep(seconds)
        child.done()

    bench = Bench(child, sleep if seconds else noop)
    await child.go()
    async with bench.connected():
        worker = bench.start()
        others = [asyncio.create_task(child.report_progress())]
        if child.task.get("insert"):
            others.append(asyncio.create_task(bench.defer_all(child.task["insert"], BATCH)))
        await child.stop_requested_beside(worker, *others)
        await end(*others, worker)
    child.stopped()


async def latency(child: Child) -> None:
    """Insert at a fixed rate, and note when each job starts."""
    count = round(child.task["rate"] * child.task["seconds"])
    samples: list[tuple[int, float, float]] = []
    complete = asyncio.Event()

    async def job(number: int, at: float) -> None:
        samples.append((number, at, time.time()))
        child.done()
        if len(samples) == count:
            complete.set()

    bench = Bench(child, job)
    await child.go()
    async with bench.connected():
        worker = bench.start()
        await asyncio.sleep(1)
        await child.insert_evenly(count, bench.defer_one)
        await asyncio.wait(
            {worker, asyncio.create_task(complete.wait())},
            timeout=LAST_JOBS_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        child.emit("result", samples=samples)
        await child.stop_requested_beside(worker)
        await end(worker)
    child.stopped()


if __name__ == "__main__":
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: task.get("settings") == "tuned",
    )
