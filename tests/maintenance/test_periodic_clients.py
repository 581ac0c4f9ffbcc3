"""Periodic jobs of whole clients, of both kinds: from the registry through middleware to a worker."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.client.async_client import AsyncClient
from riverq.client.client import Client
from riverq.config import Config, QueueConfig
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult, Job
from riverq.job_args import RawArgs
from riverq.periodic import PeriodicJob
from riverq.registry import Workers
from riverq.schedule import never
from tests.fix_database import EngineMaker

Done = queue.SimpleQueue[dict[str, Any]]


class Spy:
    """Middleware that notes in which thread it was called."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def insert(
        self, params: Sequence[InsertParams], call_next: Callable[[Sequence[InsertParams]], list[InsertResult]]
    ) -> list[InsertResult]:
        self.threads.append(threading.current_thread().name)
        return call_next(params)


def started(name: str) -> PeriodicJob:
    """A job that runs when leadership begins, or when it is added to a leader."""
    return PeriodicJob(never(), lambda: RawArgs("tick", {"name": name}), id=name, run_on_start=True, durable=True)


def settings(schema: str, spy: Spy, done: Done) -> Config:
    workers = Workers()

    @workers.work(kind="tick")
    def tick(job: Job[dict[str, Any]]) -> None:
        done.put({**job.args, **job.row.metadata})

    return Config(
        workers=workers,
        queues={"default": QueueConfig(max_workers=2)},
        schema=schema,
        middleware=[spy],
        periodic_jobs=[started("configured")],
    )


def check(first: dict[str, Any], second: dict[str, Any]) -> None:
    for found, name in ((first, "configured"), (second, "added")):
        assert found == {"name": name, "periodic": True, "river:periodic_job_id": name}


@pytest.mark.parametrize("adapter", ["psycopg", "pg8000"])
def test_a_sync_client_inserts_and_works_them(make_engine: EngineMaker, schema: str, adapter: str) -> None:
    engine = make_engine(adapter)
    assert isinstance(engine, sa.Engine)
    spy, done = Spy(), Done()
    client = Client(engine, settings(schema, spy, done))
    with client.running():
        first = done.get(timeout=20)
        client.periodic_jobs.add(started("added"))
        check(first, done.get(timeout=20))
    assert all(name.startswith("riverq_periodic") for name in spy.threads)


@pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg"])
async def test_an_async_client_inserts_and_works_them(make_engine: EngineMaker, schema: str, adapter: str) -> None:
    engine = make_engine(adapter)
    assert isinstance(engine, AsyncEngine)
    spy, done = Spy(), Done()
    client = AsyncClient(engine, settings(schema, spy, done))
    async with client.running():
        first = await asyncio.to_thread(done.get, timeout=20)
        client.periodic_jobs.add(started("added"))
        check(first, await asyncio.to_thread(done.get, timeout=20))
    assert set(spy.threads) == {threading.current_thread().name}
