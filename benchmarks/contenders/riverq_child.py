"""riverq as a contender, on the adapter that the task names: asyncpg, psycopg (async), psycopg-sync or pg8000.

The first two are an AsyncClient with `async def` workers; the others a Client with `def` workers, a thread each, as
sync applications use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import riverq
from benchmarks.contenders.child import Child, main
from riverq.driver import load_driver_class

FILL_BATCH = 5000
INSERT_THREADS = 8
"""Threads that a sync application inserts from in the latency question."""

APP_ROW = text("INSERT INTO bench_app (number) VALUES (:number)")


@riverq.job_args("bench")
@dataclass
class Bench:
    """`at` is when it was inserted, by the machine's clock."""

    number: int
    at: float = 0


Client = riverq.Client | riverq.AsyncClient


def is_async(task: Mapping[str, Any]) -> bool:
    """Whether the adapter is used through its async engine."""
    return task["driver"] in ("asyncpg", "psycopg")


def make_client(child: Child, config: riverq.Config | None = None) -> Client:
    """A client on an engine of the task's adapter, as its documentation says to make one."""
    driver = child.task["driver"].removesuffix("-sync")
    url = make_url(child.url).set(drivername=f"postgresql+{driver}")
    if child.task.get("pgbouncer"):
        engine = load_driver_class(driver).make_engine(url, asynchronous=is_async(child.task), application_name="bench")
    else:
        engine = create_async_engine(url) if is_async(child.task) else create_engine(url)
    if isinstance(engine, AsyncEngine):
        return riverq.AsyncClient(engine, config)
    return riverq.Client(engine, config)


def engine_of(client: Client) -> Engine | AsyncEngine:
    """The engine that `make_client` made."""
    return client._core.engine


async def migrate(child: Child) -> None:
    """River's tables."""
    await child.go()
    engine = engine_of(make_client(child))
    if isinstance(engine, AsyncEngine):
        await riverq.migrate.up_async(engine)
    else:
        await asyncio.to_thread(riverq.migrate.up, engine)
    child.emit("result")


async def fill(child: Child) -> None:
    """A backlog, by COPY."""
    count = child.task["count"]
    client = make_client(child)
    await child.go()
    for start in range(0, count, FILL_BATCH):
        jobs = [Bench(number) for number in range(start, min(start + FILL_BATCH, count))]
        if isinstance(client, riverq.AsyncClient):
            await client.insert_many_fast(jobs)
        else:
            await asyncio.to_thread(client.insert_many_fast, jobs)
    child.emit("result", count=count)


# -- insert


async def insert(child: Child) -> None:
    """One call after the other until the time is up."""
    client = make_client(child)
    await child.go()
    if isinstance(client, riverq.AsyncClient):
        count = await _insert_async(child, client)
    else:
        count = await asyncio.to_thread(_insert_sync, child, client)
    child.emit("result", count=count)


async def _insert_async(child: Child, client: riverq.AsyncClient) -> int:
    mode, batch = child.task["mode"], child.task["batch"]
    engine = engine_of(client)
    assert isinstance(engine, AsyncEngine)
    deadline = time.monotonic() + child.task["seconds"]
    count = 0
    while time.monotonic() < deadline:
        if mode == "single":
            await client.insert(Bench(count))
            count += 1
        elif mode == "single_tx":
            async with engine.begin() as conn:
                await conn.execute(APP_ROW, {"number": count})
                await client.insert(Bench(count), session=conn)
            count += 1
        else:
            verb = client.insert_many if mode == "batch" else client.insert_many_fast
            await verb([Bench(number) for number in range(count, count + batch)])
            count += batch
    return count


def _insert_sync(child: Child, client: riverq.Client) -> int:
    mode, batch = child.task["mode"], child.task["batch"]
    engine = engine_of(client)
    assert isinstance(engine, Engine)
    deadline = time.monotonic() + child.task["seconds"]
    count = 0
    while time.monotonic() < deadline:
        if mode == "single":
            client.insert(Bench(count))
            count += 1
        elif mode == "single_tx":
            with engine.begin() as conn:
                conn.execute(APP_ROW, {"number": count})
                client.insert(Bench(count), session=conn)
            count += 1
        else:
            verb: Callable[[list[Bench]], object] = client.insert_many if mode == "batch" else client.insert_many_fast
            verb([Bench(number) for number in range(count, count + batch)])
            count += batch
    return count


# -- work


def make_config(child: Child, workers: riverq.Workers) -> riverq.Config:
    """Settings for working; "tuned" is what River's own bench command uses."""
    task = child.task
    options: dict[str, Any] = {}
    if child.tuned:
        options = {
            "fetch_cooldown": timedelta(milliseconds=2),
            "fetch_poll_interval": timedelta(milliseconds=20),
        }
    return riverq.Config(
        workers=workers,
        queues={"default": riverq.QueueConfig(max_workers=task["workers"])},
        fetch_eager=task["eager"],
        poll_only=not task.get("listen", True),
        schema=task.get("schema"),
        **options,
    )


def make_workers(child: Child, entered: Callable[[Bench], None] | None = None) -> riverq.Workers:
    """One worker for the kind "bench": `async def` for async clients, `def` for sync ones."""
    registry = riverq.Workers()
    seconds = child.task["sleep_ms"] / 1000 if child.task.get("job") == "sleep" else 0.0
    if is_async(child.task):

        @registry.work
        async def work_async(job: riverq.Job[Bench]) -> None:
            if entered is not None:
                entered(job.args)
            if seconds:
                await asyncio.sleep(seconds)
            child.done()

    else:

        @registry.work
        def work_sync(job: riverq.Job[Bench]) -> None:
            if entered is not None:
                entered(job.args)
            if seconds:
                time.sleep(seconds)
            child.done()

    return registry


async def start(client: Client) -> None:
    """Start working."""
    if isinstance(client, riverq.AsyncClient):
        await client.start()
    else:
        await asyncio.to_thread(client.start)


async def stop(client: Client) -> None:
    """Stop; jobs that still run are cancelled, which happens only when the time was up."""
    if isinstance(client, riverq.AsyncClient):
        await client.stop_and_cancel()
    else:
        await asyncio.to_thread(client.stop_and_cancel)


async def work(child: Child) -> None:
    """Work until told to stop; with `insert`, also insert as many meanwhile."""
    client = make_client(child, make_config(child, make_workers(child)))
    await child.go()
    reporter = asyncio.create_task(child.report_progress())
    inserter = asyncio.create_task(_insert_meanwhile(child, client))
    await start(client)
    await child.stop_requested()
    inserter.cancel()
    await asyncio.gather(inserter, return_exceptions=True)
    await stop(client)
    reporter.cancel()
    child.stopped()


async def _insert_meanwhile(child: Child, client: Client) -> None:
    count = child.task.get("insert", 0)
    for start_at in range(0, count, 1000):
        jobs = [Bench(number) for number in range(start_at, min(start_at + 1000, count))]
        if isinstance(client, riverq.AsyncClient):
            await client.insert_many(jobs)
        else:
            await asyncio.to_thread(client.insert_many, jobs)


# -- latency


async def latency(child: Child) -> None:
    """Insert at an even rate and note when each job starts."""
    samples: list[tuple[int, float, float]] = []
    entries = itertools.count(1)
    keeps = child.task.get("samples", True)
    all_in = asyncio.Event()
    loop = asyncio.get_running_loop()
    total = int(child.task["rate"] * child.task["seconds"])

    def entered(args: Bench) -> None:
        if keeps:
            samples.append((args.number, args.at, time.time()))
        if next(entries) >= total:
            loop.call_soon_threadsafe(all_in.set)

    client = make_client(child, make_config(child, make_workers(child, entered)))
    await child.go()
    await start(client)
    await asyncio.sleep(1)
    await _insert_evenly(child, client, total)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_in.wait(), 10)
    child.emit("result", samples=samples)
    await child.stop_requested()
    await stop(client)
    child.stopped()


async def _insert_evenly(child: Child, client: Client, total: int) -> None:
    """Job `i` is due at i/rate (or `batch` jobs in one call); who is late goes at once, and inserts may overlap."""
    threads = ThreadPoolExecutor(INSERT_THREADS)
    loop = asyncio.get_running_loop()
    batch = child.task.get("batch", 1)

    def jobs_from(number: int) -> list[Bench]:
        at = time.time()
        return [Bench(job, at) for job in range(number, min(number + batch, total))]

    def insert_sync(number: int) -> None:
        assert isinstance(client, riverq.Client)
        if batch == 1:
            client.insert(Bench(number, time.time()))
        else:
            client.insert_many(jobs_from(number))

    async def insert_some(number: int) -> None:
        if not isinstance(client, riverq.AsyncClient):
            await loop.run_in_executor(threads, insert_sync, number)
        elif batch == 1:
            await client.insert(Bench(number, time.time()))
        else:
            await client.insert_many(jobs_from(number))

    await child.insert_evenly(total, insert_some, step=batch)
    threads.shutdown()


if __name__ == "__main__":
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: task.get("settings") == "tuned" and find_spec("uvloop") is not None,
    )
