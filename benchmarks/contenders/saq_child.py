"""SAQ as a contender: a Worker and a PostgresQueue in one process, on psycopg."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

NOTES = {
    "tuned": "LISTEN, a pool of 20 connections that are not checked whenever they are taken from it, uvloop",
    "default": "all defaults: LISTEN, a pool of 4 to 20 connections, each checked whenever it is taken from it",
    "unequal": (
        "after the claim three UPDATEs a job, one row each; no bulk insert (jobs are enqueued singly over the pool), "
        "none in the application's transaction; an insert and its NOTIFY are two transactions"
    ),
}

FINISHED_SQL = "SELECT count(*) FROM saq_jobs WHERE status = 'complete'"
REMAINING_SQL = "SELECT EXISTS (SELECT FROM saq_jobs WHERE status IN ('new', 'queued', 'active', 'aborting'))"
ENDED_SQL = (
    "SELECT (convert_from(job, 'UTF8')::jsonb -> 'kwargs' ->> 'number')::bigint,"
    " extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    " FROM saq_jobs WHERE status = 'complete'"
)

POOL_SIZE = 20
INSERT_BATCH = 1000
STOP_SECONDS = 5.0
POLL_SECONDS = {"tuned": 0.02, "default": 1.0}
"""Where a task asks for polling. SAQ has no default for that."""


def make_queue(child: Child, *, tuned: bool) -> Any:
    """A queue, which connects later."""
    postgres = import_module("saq.queue.postgres")
    if not tuned:
        return postgres.PostgresQueue.from_url(child.url)
    pool = import_module("psycopg_pool").AsyncConnectionPool(child.url, open=False, kwargs={"autocommit": True})
    return postgres.PostgresQueue(pool=pool, min_size=POOL_SIZE, max_size=POOL_SIZE, manage_pool_lifecycle=True)


async def migrate(child: Child) -> None:
    """SAQ's tables, which it makes when it connects."""
    queue = make_queue(child, tuned=child.tuned)
    await child.go()
    await queue.connect()
    await queue.disconnect()
    child.emit("result")


async def enqueue_all(queue: Any, count: int) -> None:
    """Enqueue jobs 0 to count - 1, as many at a time as the pool has connections, since there is no bulk insert."""
    for start in range(0, count, INSERT_BATCH):
        numbers = range(start, min(start + INSERT_BATCH, count))
        await asyncio.gather(*(queue.enqueue("bench", number=number, at=0) for number in numbers))


async def fill(child: Child) -> None:
    """A backlog, in the quickest way whatever the settings."""
    queue = make_queue(child, tuned=True)
    await child.go()
    await queue.connect()
    await enqueue_all(queue, child.task["count"])
    await queue.disconnect()
    child.emit("result", count=child.task["count"])


async def insert(child: Child) -> None:
    """One call after the other until the time is up."""
    mode = child.task["mode"]
    if mode == "single_tx":
        raise Unsupported("SAQ enqueues on its own connection, in autocommit; it takes no other")
    if mode != "single":
        raise Unsupported("SAQ has no bulk insert")
    queue = make_queue(child, tuned=child.tuned)
    await child.go()
    await queue.connect()
    deadline = time.monotonic() + child.task["seconds"]
    count = 0
    while time.monotonic() < deadline:
        await queue.enqueue("bench", number=count, at=0)
        count += 1
    child.emit("result", count=count)  # the clock stops here, not after closing
    await queue.disconnect()


class Working:
    """A queue and a worker of it, from `start` to `stop`."""

    def __init__(self, child: Child) -> None:
        self.queue = make_queue(child, tuned=child.tuned)
        self.samples: list[tuple[int, float, float]] = []
        self.wanted = int(child.task["rate"] * child.task["seconds"]) if child.task["task"] == "latency" else 0
        self.all_in = asyncio.Event()
        seconds = child.task["sleep_ms"] / 1000 if child.task.get("job") == "sleep" else 0.0

        async def bench(ctx: Any, *, number: int, at: float) -> None:
            if self.wanted:
                self.samples.append((number, at, time.time()))
            if seconds:
                await asyncio.sleep(seconds)
            child.done()

        listens = child.task.get("listen", True)
        self._worker = import_module("saq").Worker(
            self.queue,
            functions=[("bench", bench)],
            concurrency=child.task["workers"],
            after_process=self._written if self.wanted else None,
            poll_interval=0.0 if listens else POLL_SECONDS["tuned" if child.tuned else "default"],
        )
        self._running: asyncio.Task[None] | None = None

    async def _written(self, ctx: Any) -> None:
        """Called when a job's end is in the database; before that, stopping would cancel it."""
        if self.queue.complete >= self.wanted:
            self.all_in.set()

    async def start(self) -> None:
        """Connect and begin to work."""
        await self.queue.connect()
        self._running = asyncio.create_task(self._worker.start())

    async def stop(self) -> None:
        """Stop as on a signal. What still runs is cancelled at once and queued again: that is SAQ's default.

        A worker that is stopped amid work sometimes misses that it was cancelled and waits for ever, hence the limit.
        """
        stopping = asyncio.create_task(self._worker.stop())
        await asyncio.wait({stopping}, timeout=STOP_SECONDS)
        if self._running is not None and self._running.done():
            self._running.result()
        await self.queue.disconnect()


async def work(child: Child) -> None:
    """Work until told to stop; with `insert`, also insert as many meanwhile."""
    working = Working(child)
    await child.go()
    reporter = asyncio.create_task(child.report_progress())
    await working.start()
    inserter = asyncio.create_task(enqueue_all(working.queue, child.task.get("insert", 0)))
    await child.stop_requested()
    inserter.cancel()
    with suppress(asyncio.CancelledError):
        await inserter
    await working.stop()
    reporter.cancel()
    child.stopped()


async def latency(child: Child) -> None:
    """Insert at an even rate and note when each job starts."""
    working = Working(child)
    await child.go()
    await working.start()
    await asyncio.sleep(1)

    async def enqueue_one(number: int) -> None:
        await working.queue.enqueue("bench", number=number, at=time.time())

    await child.insert_evenly(working.wanted, enqueue_one)
    with suppress(TimeoutError):
        await asyncio.wait_for(working.all_in.wait(), 10)
    child.emit("result", samples=working.samples)
    await child.stop_requested()
    await working.stop()
    child.stopped()


if __name__ == "__main__":
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: task.get("settings") == "tuned",
    )
