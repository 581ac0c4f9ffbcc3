"""Clients on a database that looks like YugabyteDB: no NOTIFY, no `xmax`, whatever the server of this run is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import riverq
from riverq.client import core
from riverq.client.core import Core
from riverq.driver import POSTGRES
from riverq.query.queue import queue_create_or_touch
from riverq.query.statement import server_of
from tests.client.faces import Greet, SyncAccount, jobs, make_client, open_session, settle
from tests.client.test_control_verbs import OPTIONS, SILENT, VERBS
from tests.client.test_queues import until, until_paused
from tests.client.unhurried import be_patient
from tests.client.working import Act, Watch, config, working
from tests.fix_database import EngineMaker, adapter_url, sync_side, temporary_database
from tests.fix_schema import SchemaPool
from tests.fix_server import YUGABYTE, guard, make_yugabyte

pytestmark = [
    pytest.mark.direct("a database that no pooler leads to"),
    pytest.mark.slow,  # what nobody tells of is found by polling
]

NONCE = "river:unique_nonce"


@pytest.fixture(scope="module")
def schemas(database_url: str, server_url: str) -> Iterator[tuple[str, SchemaPool]]:
    """A database that cannot notify, and its schemas."""
    with temporary_database(server_url, f"{sa.make_url(database_url).database}_mute") as url:
        make_yugabyte(url)
        pool = SchemaPool(url)
        yield url, pool
        pool.close()


@pytest.fixture
def url(schemas: tuple[str, SchemaPool]) -> str:
    return schemas[0]


@pytest.fixture
def schema(schemas: tuple[str, SchemaPool]) -> Iterator[str]:
    name = schemas[1].take()
    yield name
    schemas[1].give_back(name)


@pytest.fixture
def engine_of(adapter: str, make_engine: EngineMaker, url: str) -> Any:
    engine = make_engine(adapter, url=url)
    guard(sync_side(engine), YUGABYTE)
    return engine


@pytest.fixture
def sync_engine(make_engine: EngineMaker, url: str, schema: str) -> Any:
    """One on psycopg, in whose database there is a queue `mail`."""
    engine: Any = make_engine("psycopg", url=url)
    guard(engine, YUGABYTE)
    with engine.begin() as conn:
        queue_create_or_touch(conn, schema, "mail")
    return engine


async def test_a_client_polls_for_all_that_it_would_have_heard(
    engine_of: Any, url: str, schema: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)  # a warning here must not be one of a machine that stood still
    settings: dict[str, Any] = {"loop_block_threshold": timedelta(minutes=5)}
    workers, begun = riverq.Workers(), threading.Event()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None: ...

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        begun.set()
        await asyncio.sleep(60)

    watch = Watch(url, schema)
    with caplog.at_level("INFO", "riverq"):
        async with working(make_client(engine_of, config(schema, workers, **settings))) as client:
            stats = client.stats()
            assert (stats.poll_only, stats.listening, stats.delivering) == (True, False, False)
            await settle(client.insert(Greet("a")))
            await watch.state("completed")
            held = (await settle(client.insert(Act("x")))).job.id
            await until(begun.is_set)
            await settle(client.job_cancel(held))
            await watch.state("cancelled")
            await settle(client.queue_pause("default"))
            await until_paused(client)
            await settle(client.queue_resume("default"))
            await until_paused(client, paused=False)
            await settle(client.job_retry(held))
            await watch.state("running")
    assert "4 connections (3 control, 1 heartbeat)" in caplog.text
    assert not [record.message for record in caplog.records if record.levelname not in ("INFO", "DEBUG")]


async def test_duplicates_are_told_on_every_engine_that_leads_there(
    adapter: str, make_engine: EngineMaker, engine_of: Any, url: str, schema: str
) -> None:
    client = make_client(engine_of, riverq.Config(schema=schema))
    first = await settle(client.insert(SyncAccount(1)))
    other = make_engine(adapter, url=url)
    guard(sync_side(other), YUGABYTE)
    async with open_session(other, "session") as session:
        results = await settle(client.insert_many([SyncAccount(1), SyncAccount(2), SyncAccount(2)], session=session))
        assert await settle(client.insert_many_fast([SyncAccount(2), SyncAccount(3)], session=session)) == 1
        await settle(session.commit())
    assert [result.unique_skipped_as_duplicate for result in results] == [True, False, True]
    assert results[0].job == first.job
    assert server_of(sync_side(other).dialect) == server_of(engine_of.dialect) == client._core.server
    assert not client._core.server.listen_notify
    nonces = [row["metadata"].get(NONCE) for row in jobs(url, schema)]
    assert nonces[2] is None  # written without being read back
    assert len({nonce for nonce in nonces[:2] if nonce}) == 2


def test_a_session_of_another_driver_is_told_too(sync_engine: sa.Engine, url: str, schema: str) -> None:
    other = sa.create_engine(adapter_url(url, "psycopg2"))
    guard(other, YUGABYTE)
    client = riverq.Client(sync_engine, riverq.Config(schema=schema))
    assert server_of(other.dialect) is POSTGRES
    with Session(other) as session, session.begin():
        assert not client.insert(SyncAccount(1), session=session).unique_skipped_as_duplicate
        assert client.insert(SyncAccount(1), session=session).unique_skipped_as_duplicate
        client.queue_pause("mail", session=session)
    other.dispose()
    assert client.queue_get("mail").paused_at is not None


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - SILENT - {"request_resign"}))
def test_a_two_phase_transaction_may_do_everything(sync_engine: sa.Engine, schema: str, verb: str) -> None:
    """Where nobody is ever told, it does what any other transaction does."""
    client = riverq.Client(sync_engine, riverq.Config(schema=schema))
    job_id = client.insert(Greet("a")).job.id
    arguments = tuple(job_id if value == 1 else value for value in VERBS[verb])
    with Session(sync_engine, twophase=True) as session:
        getattr(client, verb)(*arguments, session=session, **OPTIONS.get(verb, {}))
        session.prepare()
        session.commit()
    assert (client.job_get(job_id).state is riverq.JobState.CANCELLED) == (verb == "job_cancel")
    assert (client.queue_get("mail").paused_at is not None) == (verb == "queue_pause")


async def test_nobody_is_asked_to_resign_who_cannot_hear_it(engine_of: Any, url: str, schema: str) -> None:
    client = make_client(engine_of, riverq.Config(schema=schema))
    with pytest.raises(riverq.UsageError, match="no LISTEN/NOTIFY, so no leader hears it"):
        await settle(client.request_resign())
    async with open_session(engine_of, "session") as session:
        with pytest.raises(riverq.UsageError, match="no leader hears it"):
            await settle(client.request_resign(session=session))
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.commit())
    assert len(jobs(url, schema)) == 1


def test_the_schema_is_known_after_the_server(sync_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread writes as soon as it finds the schema."""
    found = Core(sync_engine, None)
    seen: list[str | None] = []
    monkeypatch.setattr(core, "remember_server", lambda *_: seen.append(found.schema))
    found.found("s", YUGABYTE)
    assert (seen, found.schema) == ([None], "s")
