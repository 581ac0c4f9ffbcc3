"""What cannot be inserted is refused in one sentence, before anything is sent."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import riverq
from riverq.errors import MayBeCommittedError
from tests.client.faces import Greet, SyncAccount, make_client, open_session, settle
from tests.fix_database import EngineMaker

SYNC_ADAPTERS = ("psycopg", "pg8000")


async def test_bad_options_are_refused_before_anything_is_sent(client: Any, engine_of: Any) -> None:
    async with open_session(engine_of, "connection") as conn:
        for options, words in (
            ({"priority": 5}, "priority"),
            ({"queue": "No Spaces"}, "queue"),
            ({"tags": ["a,b"]}, "tag"),
            ({"max_attempts": 0}, "max_attempts"),
            ({"scheduled_at": datetime(2030, 1, 1)}, "scheduled_at"),  # noqa: DTZ001  # naive is the point
            ({"metadata": [1]}, "metadata"),
            ({"prioritty": 1}, "priority"),
        ):
            with pytest.raises(riverq.ConfigError, match=words):
                await settle(client.insert(Greet("a"), session=conn, **options))
        assert not conn.in_transaction()


async def test_args_that_cannot_be_encoded_name_their_path(client: Any) -> None:
    with pytest.raises(riverq.ArgsEncodeError, match="nested") as caught:
        await settle(client.insert(riverq.RawArgs("raw", {"nested": [{"bad": float("nan")}]})))
    assert "bad" in caught.value.path


async def test_a_session_of_the_wrong_sort_names_the_right_one(
    client: Any, engine_of: Any, make_engine: EngineMaker
) -> None:
    is_async = isinstance(engine_of, AsyncEngine)
    other = make_engine("psycopg" if is_async else "psycopg_async")
    async with open_session(other, "session") as session:
        with pytest.raises(
            riverq.SessionError, match="needs the sync client" if is_async else "needs the async client"
        ):
            await settle(client.insert(Greet("a"), session=session))
    with pytest.raises(riverq.SessionError, match="got an engine"):
        await settle(client.insert(Greet("a"), session=engine_of))
    with pytest.raises(riverq.SessionError, match="expected session to be"):
        await settle(client.insert(Greet("a"), session="my session"))


async def test_an_unbound_session_says_what_to_pass(client: Any, engine_of: Any) -> None:
    async with open_session(engine_of, "session") as session:
        session.bind = None
        if isinstance(engine_of, AsyncEngine):
            session.sync_session.bind = None
        with pytest.raises(riverq.SessionError, match="bind_arguments"):
            await settle(client.insert(Greet("a"), session=session))


def test_the_wrong_engine_names_the_right_client(make_engine: EngineMaker) -> None:
    with pytest.raises(riverq.ConfigError, match="use AsyncClient"):
        riverq.Client(make_engine("asyncpg"))  # type: ignore[arg-type]
    with pytest.raises(riverq.ConfigError, match="use Client"):
        riverq.AsyncClient(make_engine("pg8000"))  # type: ignore[arg-type]
    with pytest.raises(riverq.DriverError, match="Postgres"):
        riverq.Client(sa.create_engine("sqlite://"))
    with pytest.raises(riverq.DriverError, match=r"psycopg2.*pip install"):
        riverq.Client(sa.create_engine("postgresql+psycopg2://nowhere/none"))
    with pytest.raises(riverq.ConfigError, match="expected an engine"):
        riverq.Client("postgresql://nowhere/none")  # type: ignore[arg-type]


async def test_a_missing_schema_names_the_command(
    adapter: str, make_engine: EngineMaker, empty_schema: str, scratch_schema: str, database_url: str
) -> None:
    engine = make_engine(adapter)
    with pytest.raises(riverq.SchemaError, match=f"riverq migrate-up --schema {empty_schema}"):
        await settle(make_client(engine, riverq.Config(schema=empty_schema)).insert(Greet("a")))
    with pytest.raises(riverq.SchemaError, match="no current schema"):
        await settle(make_client(engine, riverq.Config()).insert(Greet("a")))


async def test_a_schema_that_is_behind_names_the_command(
    adapter: str, make_engine: EngineMaker, scratch_schema: str, engine: sa.Engine
) -> None:
    riverq.migrate.down(engine, schema=scratch_schema, target=5)
    with pytest.raises(riverq.SchemaError, match=r"at version 5.*riverq migrate-up"):
        await settle(make_client(make_engine(adapter), riverq.Config(schema=scratch_schema)).insert(Greet("a")))


async def test_a_database_that_is_not_there_is_one_sentence(adapter: str, make_engine: EngineMaker) -> None:
    engine = make_engine(adapter, url="postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(riverq.UnavailableError) as caught:
        await settle(make_client(engine, riverq.Config()).insert(Greet("a")))
    assert "\n" not in str(caught.value)


async def test_a_lost_answer_to_commit_says_that_it_may_be_committed(
    adapter: str, make_engine: EngineMaker, database_url: str, schema: str, engine: sa.Engine
) -> None:
    victim = make_engine(adapter)
    client = make_client(victim, riverq.Config(schema=schema))
    await settle(client.insert(Greet("first")))
    sync_engine = victim.sync_engine if isinstance(victim, AsyncEngine) else victim

    def cut_the_line(conn: sa.Connection) -> None:
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with engine.connect() as killer:
            killer.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    sa.event.listen(sync_engine, "commit", cut_the_line, once=True)
    with pytest.raises(MayBeCommittedError, match="unique key"):
        await settle(client.insert(Greet("a")))


def test_an_async_client_belongs_to_one_event_loop(make_engine: EngineMaker, database_url: str, schema: str) -> None:
    async def insert(client: riverq.AsyncClient, engine: AsyncEngine) -> None:
        await client.insert(Greet("a"))
        await engine.dispose()

    engine = create_async_engine(
        sa.make_url(database_url).set(drivername="postgresql+asyncpg")
    )  # not make_engine's: its pool must end with the first loop
    client = riverq.AsyncClient(engine, riverq.Config(schema=schema))
    asyncio.run(insert(client, engine))
    with pytest.raises(riverq.UsageError, match="another event loop"):
        asyncio.run(insert(client, engine))


def test_a_client_used_after_a_fork_says_so(engine: sa.Engine, schema: str) -> None:
    client = riverq.Client(engine, riverq.Config(schema=schema))
    client._core._pid = os.getpid() + 1
    with pytest.raises(riverq.UsageError, match="after the fork"):
        client.insert(Greet("a"))


def test_a_client_with_workers_refuses_unknown_kinds(engine: sa.Engine, schema: str) -> None:
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None: ...

    client = riverq.Client(engine, riverq.Config(schema=schema, workers=workers))
    with pytest.raises(riverq.UnknownJobKindError, match="sync_account"):
        client.insert(SyncAccount(1))
    client.insert(Greet("known"))
    lenient = riverq.Client(engine, riverq.Config(schema=schema, workers=workers, skip_unknown_job_check=True))
    lenient.insert(SyncAccount(1))


async def test_what_is_no_list_of_args_says_what_to_pass(client: Any) -> None:
    for insert in (client.insert_many, client.insert_many_fast):
        with pytest.raises(riverq.ConfigError, match="empty batch"):
            await settle(insert(Greet(name) for name in ""))
        with pytest.raises(riverq.ConfigError, match="insert takes a single one"):
            await settle(insert(Greet("a")))
    with pytest.raises(riverq.ConfigError, match=r"got the class Greet \(call it\)"):
        await settle(client.insert(Greet))
    with pytest.raises(riverq.ConfigError, match="got both: priority"):
        await settle(client.insert(riverq.InsertItem(Greet("a")), priority=2))
