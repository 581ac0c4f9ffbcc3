"""Stops and starts that overlap, or whose caller gave up waiting: both clients, on every adapter."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from tests.client.faces import Greet, make_client, settle
from tests.fix_database import EngineMaker

pytestmark = pytest.mark.usefixtures("schema")


def _config(schema: str, work: Any = None) -> riverq.Config:
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        if work is not None:
            work()

    return riverq.Config(schema=schema, workers=workers, queues={"default": riverq.QueueConfig(max_workers=2)})


async def _call(client: Any, name: str, **options: Any) -> None:
    """The method of either client, without blocking the test's loop."""
    method = getattr(client, name)
    if isinstance(client, riverq.Client):
        await asyncio.to_thread(method, **options)
    else:
        await method(**options)


async def test_starts_anew_after_a_stop_that_nobody_waited_for(
    adapter: str, make_engine: EngineMaker, schema: str
) -> None:
    may_end, worked = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        worked.release()
        may_end.wait(20)

    client = make_client(make_engine(adapter), _config(schema, work))
    await _call(client, "start")
    try:
        await settle(client.insert(Greet("first")))
        assert await asyncio.to_thread(worked.acquire, timeout=20)
        with pytest.raises(TimeoutError, match=r"has not stopped within 0:00:00.05.*call stop again"):
            await _call(client, "stop", timeout=timedelta(milliseconds=50))
        starting = asyncio.create_task(_call(client, "start"))
        await asyncio.wait({starting}, timeout=0.1)
        assert not starting.done()
        may_end.set()
        await starting
        await settle(client.insert(Greet("second")))
        assert await asyncio.to_thread(worked.acquire, timeout=20)
    finally:
        may_end.set()
        await _call(client, "stop")


async def test_a_stop_during_the_start_stops_what_is_started(
    adapter: str, make_engine: EngineMaker, schema: str
) -> None:
    client = make_client(make_engine(adapter), _config(schema))
    make_runtime, is_starting, may_start = client._make_runtime, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def held() -> Any:
        loop.call_soon_threadsafe(is_starting.set)
        await asyncio.to_thread(may_start.wait)
        return await make_runtime()

    client._make_runtime = held
    starting = asyncio.create_task(_call(client, "start"))
    await is_starting.wait()
    stopping = asyncio.create_task(_call(client, "stop"))
    await asyncio.wait({stopping}, timeout=0.1)
    assert not stopping.done()
    may_start.set()
    await starting
    await stopping
    assert client._runtime is None


async def test_many_may_stop_at_once(adapter: str, make_engine: EngineMaker, schema: str) -> None:
    client = make_client(make_engine(adapter), _config(schema))
    for _ in range(5):
        await _call(client, "start")
        await asyncio.gather(*(_call(client, name) for name in ["stop", "stop_and_cancel"] * 4))
        assert client._runtime is None


async def test_a_stop_whose_caller_was_cancelled_goes_on(make_engine: EngineMaker, schema: str) -> None:
    client = make_client(make_engine("asyncpg"), _config(schema))
    await client.start()
    stopping = asyncio.create_task(client.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await client.start()
    assert client._runtime is not None
    assert not client._runtime.is_stopping
    await client.stop()


async def test_a_hard_end_in_the_middle_of_a_claim_leaves_the_clients_row(
    make_engine: EngineMaker, schema: str, engine: sa.Engine
) -> None:
    """Rows that the claim took are in no list here; only the client's row lets a leader see that their run is over."""
    config = dataclasses.replace(_config(schema), leader_election=False)  # a leader's work would wait for the lock too
    client = make_client(make_engine("asyncpg"), config)
    await client.start()
    runtime = client._runtime
    assert runtime is not None
    with engine.begin() as other:
        other.execute(sa.text(f'LOCK TABLE "{schema}".river_job IN EXCLUSIVE MODE'))
        blocked = sa.text("SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))")
        async with asyncio.timeout(20):
            # The claim of the next poll; nothing signals that it waits for a lock.
            while not other.execute(blocked).scalar_one():  # noqa: ASYNC110  # see above
                await asyncio.sleep(0.02)
        assert await runtime.abort(timedelta(seconds=1)) == []
        await runtime.stop()
    with engine.connect() as conn:
        registered = sa.text(f'SELECT client_id FROM "{schema}".riverq_client')
        assert conn.execute(registered).scalars().all() == [client.id]


def test_a_forked_child_cannot_stop_its_parents_client(engine: sa.Engine, schema: str) -> None:
    client = riverq.Client(engine, _config(schema))
    with client.running():
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # waiting for a thread that is not there would have no end
            try:
                client.stop()
            except riverq.UsageError as error:
                os._exit(0 if "after the fork" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["control_engine", "listener_engine"])
async def test_the_engines_beside_the_clients_own_must_fit_it(
    adapter: str, make_engine: EngineMaker, name: str
) -> None:
    engine = make_engine(adapter)
    other = make_engine("pg8000" if adapter == "psycopg" else "psycopg")
    client: Any = riverq.AsyncClient if isinstance(engine, AsyncEngine) else riverq.Client
    for wrong in (other, "postgresql://"):
        with pytest.raises(riverq.ConfigError, match=f"expected {name} to be an .*Engine of postgresql"):
            client(engine, **{name: wrong})
