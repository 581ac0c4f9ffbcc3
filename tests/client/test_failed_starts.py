"""Starts that fail while jobs run already, and what a stop leaves for rescue: both clients, on every adapter."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

import riverq
from riverq.client.lifecycle import Runtime
from riverq.liveness import Liveness
from riverq.notifier import Notifier
from riverq.service import Service
from riverq.worker import completer
from riverq.worker.producer import Producer
from tests.client.faces import make_client, settle
from tests.client.unhurried import be_patient
from tests.client.working import Act, Watch, acting_workers, call, config
from tests.fix_database import EngineMaker

pytestmark = pytest.mark.usefixtures("schema")

LONG = 20.0
TWO = {name: riverq.QueueConfig(max_workers=2) for name in ("default", "second")}


@contextmanager
def second_producer_fails(when: threading.Event, error: BaseException) -> Iterator[None]:
    """The second producer of a start raises `error` as soon as `when` is set; the first has begun by then."""
    real = Service.start

    async def start(service: Service) -> None:
        if isinstance(service, Producer) and service.queue == "second":
            await asyncio.to_thread(when.wait, LONG)
            raise error
        await real(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "start", start)
        yield


def registered(url: str, schema: str) -> int:
    """How many clients are in the registry."""
    with psycopg.connect(url) as conn:
        row = conn.execute(SQL("SELECT count(*) FROM {}.riverq_client").format(Identifier(schema))).fetchone()
    assert row is not None
    return int(row[0])


@asynccontextmanager
async def locked_rows(url: str, schema: str) -> AsyncIterator[None]:
    """All jobs, locked by somebody's transaction."""
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.execute(SQL("SELECT id FROM {}.river_job FOR UPDATE").format(Identifier(schema)))
        yield
        await conn.rollback()


async def test_failed_start_cancels_the_jobs_it_began_and_gives_them_back(
    adapter: str,
    make_engine: EngineMaker,
    schema: str,
    watch: Watch,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    be_patient(monkeypatch)
    began, workers = threading.Event(), riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        began.set()
        await asyncio.sleep(3600)

    client = make_client(make_engine(adapter), config(schema, workers, queues=TWO))
    await settle(client.insert(Act("complete")))
    with second_producer_fails(began, ConnectionError("not today")), pytest.raises(ConnectionError, match="not today"):
        async with asyncio.timeout(LONG):
            await call(client.start)
    assert [row["state"] for row in await watch.state("available")] == ["available"]
    assert registered(database_url, schema) == 0


async def test_failed_start_is_not_waited_for_by_a_job_that_it_waits_for(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    """The job changes the queues of its client while that start is being undone."""
    began, workers, results = threading.Event(), riverq.Workers(), []
    undone = threading.Event()

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        began.set()
        assert undone.wait(LONG)
        job.client.queues.add("third", riverq.QueueConfig(max_workers=1))
        results.append(list(job.client.queues.list()))

    client = make_client(make_engine(adapter), config(schema, workers, queues=TWO))
    await settle(client.insert(Act("complete")))
    real = Runtime.cancel_jobs

    def cancel_jobs(runtime: Runtime) -> None:
        real(runtime)
        undone.set()

    with pytest.MonkeyPatch.context() as patch, second_producer_fails(began, ConnectionError("not today")):
        patch.setattr(Runtime, "cancel_jobs", cancel_jobs)
        with pytest.raises(ConnectionError, match="not today"):
            async with asyncio.timeout(LONG):
                await call(client.start)
    await watch.state("completed")
    assert results == [["default", "second", "third"]]  # worked from the next start on


async def test_job_of_a_start_under_way_may_change_the_queues(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    may_go_on, workers = threading.Event(), riverq.Workers()

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        if job.args.how == "add":
            job.client.queues.add("third", riverq.QueueConfig(max_workers=1))
            may_go_on.set()

    client = make_client(make_engine(adapter), config(schema, workers, queues=TWO))
    await settle(client.insert(Act("add")))
    await settle(client.insert(Act("complete"), queue="third"))
    real = Service.start

    async def start(service: Service) -> None:
        if isinstance(service, Producer) and service.queue == "second":
            assert await asyncio.to_thread(may_go_on.wait, LONG)
        await real(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "start", start)
        await call(client.start)
    try:
        await watch.state("completed", 2)
        assert {queue.name for queue in client.stats().queues} == {"default", "second", "third"}
    finally:
        await call(client.stop)


@pytest.mark.parametrize("is_locked", [True, False])
async def test_row_of_the_registry_stays_where_an_outcome_was_not_written(
    make_engine: EngineMaker,
    schema: str,
    watch: Watch,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    is_locked: bool,
) -> None:
    be_patient(monkeypatch)
    began, may_end, workers = threading.Event(), threading.Event(), riverq.Workers()

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        began.set()
        assert may_end.wait(LONG)

    impatient = partial(completer.CompleterConfig, stop_grace=timedelta(milliseconds=100))
    client = make_client(make_engine("psycopg"), config(schema, workers))
    with pytest.MonkeyPatch.context() as patch:
        if is_locked:  # else the outcome is to be written, however slow the database is
            patch.setattr(completer, "CompleterConfig", impatient)
        await call(client.start)
    await settle(client.insert(Act("complete")))
    assert await asyncio.to_thread(began.wait, LONG)
    assert registered(database_url, schema) == 1
    if is_locked:
        async with locked_rows(database_url, schema):
            may_end.set()
            await call(client.stop)
    else:
        may_end.set()
        await call(client.stop)
    await watch.state("running" if is_locked else "completed")
    assert registered(database_url, schema) == int(is_locked)


@pytest.mark.parametrize("failing", [Producer, Notifier, Liveness])
async def test_service_that_fails_to_stop_spares_none_of_the_others(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, failing: type[Service]
) -> None:
    client = make_client(make_engine(adapter), config(schema, acting_workers("async def")))
    await call(client.start)
    services = client._runtime.services
    real = failing.stop

    async def stop(service: Service) -> None:
        await real(service)
        raise LookupError("cannot say goodbye")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failing, "stop", stop)
        with pytest.raises(LookupError, match="goodbye"):
            await call(client.stop)
    assert not services.completer.is_running
    assert not services.loop_watch.is_running
    assert client._runtime is None
    await call(client.start)
    await settle(client.insert(Act("complete")))
    await watch.state("completed")
    await call(client.stop)


def _exit_code_in_child(act: Callable[[], object], words: str) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            act()
        except riverq.UsageError as error:
            os._exit(0 if words in str(error) else 2)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child_has_no_figures(engine: sa.Engine, schema: str) -> None:
    client: Any = riverq.Client(engine, config(schema, acting_workers("def")))
    with pytest.raises(riverq.UsageError, match="not running"):
        client.stats()
    with client.running():
        assert client.stats().client_id == client.id
        assert _exit_code_in_child(client.stats, "after the fork") == 0
    with pytest.raises(riverq.UsageError, match="not running"):
        client.stats()
