"""Every adapter, through a real PgBouncer in both modes that riverq supports: insert in a session, work, complete."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq.driver import AnyEngine
from tests.fix_database import ASYNC_ADAPTERS
from tests.fix_pgbouncer import PgBouncers

pytestmark = pytest.mark.pgbouncer

JOBS = 20
PATIENCE_SECONDS = 60.0


@riverq.job_args("smoke")
@dataclass
class Smoke:
    number: int


class Tally:
    """Which jobs ran; `done` is set when all have."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.done = threading.Event()

    def workers(self) -> riverq.Workers:
        workers = riverq.Workers()

        @workers.work
        def smoke(job: riverq.Job[Smoke]) -> None:
            self.seen.append(job.args.number)
            if len(self.seen) >= JOBS:
                self.done.set()

        return workers


def pooled_engine(url: str, adapter: str) -> AnyEngine:
    """An engine as riverq itself makes it for this adapter."""
    name = "psycopg" if adapter == "psycopg_async" else adapter
    driver: Any = entry_points(group="riverq.drivers")[name].load()
    engine: AnyEngine = driver.make_engine(
        sa.make_url(url), asynchronous=adapter in ASYNC_ADAPTERS, application_name="riverq_smoke"
    )
    return engine


def _config(tally: Tally, schema: str) -> riverq.Config:
    return riverq.Config(schema=schema, workers=tally.workers(), queues={"default": riverq.QueueConfig(max_workers=5)})


def _run_sync(engine: sa.Engine, tally: Tally, schema: str) -> list[int]:
    client = riverq.Client(engine, _config(tally, schema))
    with client.running():
        with engine.begin() as connection:
            ids = [client.insert(Smoke(number), session=connection).job.id for number in range(JOBS)]
        assert tally.done.wait(PATIENCE_SECONDS)
    return ids


async def _run_async(engine: AsyncEngine, tally: Tally, schema: str) -> list[int]:
    client = riverq.AsyncClient(engine, _config(tally, schema))
    async with client.running():
        async with engine.begin() as connection:
            ids = [(await client.insert(Smoke(number), session=connection)).job.id for number in range(JOBS)]
        assert await asyncio.to_thread(tally.done.wait, PATIENCE_SECONDS)
    return ids


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_jobs_are_inserted_and_worked_once_through_pgbouncer(
    pool_mode: str, adapter: str, pgbouncers: PgBouncers, schema: str, engine: sa.Engine
) -> None:
    through = pooled_engine(pgbouncers.url(pool_mode), adapter)
    tally = Tally()
    if isinstance(through, AsyncEngine):
        try:
            ids = await _run_async(through, tally, schema)
        finally:
            await through.dispose()
    else:
        try:
            ids = await asyncio.to_thread(_run_sync, through, tally, schema)
        finally:
            through.dispose()
    assert sorted(tally.seen) == list(range(JOBS))
    with engine.connect() as connection:  # not through PgBouncer, and not through riverq
        rows = connection.execute(sa.text(f"SELECT id, state::text, attempt FROM {schema}.river_job ORDER BY id"))
        assert [tuple(row) for row in rows] == [(job_id, "completed", 1) for job_id in sorted(ids)]
