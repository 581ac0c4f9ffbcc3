"""How many no-op jobs one client works per second from a backlog, and what one costs the client in CPU."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema

import riverq
from riverq.demo.postgres import ThrowawayPostgres

SCHEMA = "riverq_bench"
BATCH = 5000


@riverq.job_args("bench_noop")
@dataclass
class Noop:
    """A job that does nothing."""

    number: int


async def measure(engine: AsyncEngine, *, jobs: int, workers: int, tuned: bool) -> str:
    """Insert `jobs`, work them all, and say how it went."""
    registry = riverq.Workers()
    finished = asyncio.Event()
    left = jobs

    @registry.work
    async def noop(job: riverq.Job[Noop]) -> None:
        nonlocal left
        left -= 1
        if not left:
            finished.set()

    waits = {"fetch_cooldown": timedelta(milliseconds=2), "fetch_poll_interval": timedelta(milliseconds=20)}
    client = riverq.AsyncClient(
        engine,
        riverq.Config(
            schema=SCHEMA,
            workers=registry,
            queues={"default": riverq.QueueConfig(max_workers=workers, **(waits if tuned else {}))},
        ),
    )
    for start in range(0, jobs, BATCH):
        await client.insert_many_fast([Noop(number) for number in range(start, min(start + BATCH, jobs))])
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        await conn.exec_driver_sql(f"ANALYZE {SCHEMA}.river_job")
    began, cpu = time.monotonic(), time.process_time()
    async with client.running():
        await finished.wait()
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return f"{jobs / seconds:,.0f} jobs/s, {cpu / jobs * 1e6:.1f} µs of client CPU a job"


async def run(url: URL, *, jobs: int, workers: int, tuned: bool) -> None:
    """Measure in a schema of our own, dropped at the end."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as conn:
            await conn.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))
            await conn.execute(CreateSchema(SCHEMA))
        await riverq.migrate.up_async(engine, schema=SCHEMA)
        print(await measure(engine, jobs=jobs, workers=workers, tuned=tuned))
    finally:
        async with engine.begin() as conn:
            await conn.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))
        await engine.dispose()


def main() -> None:
    """Parse the arguments and measure once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--database-url", help="use this Postgres, in a schema of its own")
    parser.add_argument("--driver", choices=["asyncpg", "psycopg"], default="asyncpg")
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=1000, help="jobs that may run at once")
    parser.add_argument("--tuned", action="store_true", help="cooldown 2 ms and polling 20 ms, as Go River's own bench")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        given = args.database_url or stack.enter_context(ThrowawayPostgres()).url()
        url = make_url(given).set(drivername=f"postgresql+{args.driver}")
        asyncio.run(run(url, jobs=args.jobs, workers=args.workers, tuned=args.tuned))
