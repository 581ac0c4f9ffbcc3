"""The faces of running jobs across the bridge: middleware on both sides of it, and errors that come through."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import riverq
from tests.client.faces import Greet, SyncAccount, jobs
from tests.client.working import Watch
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker


def _config(schema: str, workers: riverq.Workers, *middleware: Any) -> riverq.Config:
    queues = {"default": riverq.QueueConfig(max_workers=2)}
    return riverq.Config(schema=schema, workers=workers, queues=queues, middleware=middleware, max_attempts=1)


class Passing:
    """Counts the inserts that go through it."""

    def __init__(self) -> None:
        self.inserted = 0

    async def insert(self, params: Any, call_next: Any) -> Any:
        self.inserted += len(params)
        return await call_next(params)


class Reaching:
    """Uses the job's sync client where only the event loop runs."""

    async def work(self, job: Any, call_next: Any) -> None:
        job.client.insert(Greet("from middleware"))
        await call_next(job)


@pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)
@pytest.mark.parametrize("how", ["own", "session", "raise"])
async def test_a_def_worker_inserts_through_async_middleware(
    adapter: str, make_engine: EngineMaker, engine: sa.Engine, schema: str, watch: Watch, how: str
) -> None:
    workers, passing = riverq.Workers(), Passing()

    @workers.work
    def sync_account(job: riverq.Job[SyncAccount]) -> None:
        if how == "own":
            job.client.insert(Greet("through"), queue="elsewhere")
            return
        with Session(engine) as session, session.begin():
            if how == "raise":
                sa.event.listen(session.connection(), "before_cursor_execute", _stop_iteration)
            job.client.insert(Greet("through"), queue="elsewhere", session=session)

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None: ...

    client = riverq.AsyncClient(_async(make_engine(adapter)), _config(schema, workers, passing))
    async with client.running():
        await client.insert(SyncAccount(1))
        await watch.until(lambda rows: rows[0]["state"] in ("completed", "discarded"))
    rows = jobs(watch._url, schema)
    assert passing.inserted == 2
    assert rows[0]["state"] == ("discarded" if how == "raise" else "completed")
    assert [row["args"] for row in rows[1:]] == ([] if how == "raise" else [{"name": "through"}])


def _stop_iteration(*_: object, **__: object) -> None:
    raise StopIteration("from a listener")


@pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)
async def test_the_sync_client_in_the_event_loop_is_an_error_and_no_deadlock(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()

    @workers.work
    def sync_account(job: riverq.Job[SyncAccount]) -> None: ...

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None: ...

    client = riverq.AsyncClient(_async(make_engine(adapter)), _config(schema, workers, Reaching()))
    async with client.running():
        await client.insert(SyncAccount(1))
        await watch.until(lambda rows: rows[0]["state"] == "discarded")
    assert "would block the event loop" in jobs(watch._url, schema)[0]["errors"][0]["error"]


def _async(engine: Any) -> AsyncEngine:
    assert isinstance(engine, AsyncEngine)
    return engine
