"""Inserting through both clients: in a transaction of its own, and in every kind of the caller's."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import riverq
from riverq.errors import MayBeCommittedError
from tests.client.faces import SESSION_KINDS, Ear, Greet, jobs, make_client, open_session, settle
from tests.fix_database import EngineMaker

SYNC_ADAPTERS = ("psycopg", "pg8000")


@riverq.job_args("sync_account", unique_opts=riverq.UniqueOpts(by_args=True))
@dataclass
class SyncAccount:
    account_id: int


@pytest.fixture
def ear(database_url: str, schema: str) -> Iterator[Ear]:
    ear = Ear(database_url, schema)
    yield ear
    ear.close()


@pytest.fixture
def engine_of(adapter: str, make_engine: EngineMaker) -> Any:
    return make_engine(adapter)


@pytest.fixture
def client(engine_of: Any, schema: str) -> Any:
    return make_client(engine_of, riverq.Config(schema=schema))


async def test_inserts_in_a_transaction_of_its_own(client: Any, database_url: str, schema: str, ear: Ear) -> None:
    result = await settle(client.insert(Greet("Ada"), priority=2, tags=["first"], metadata={"trace": 7}))

    (row,) = jobs(database_url, schema)
    assert result.job.id == row["id"]
    assert (row["kind"], row["args"], row["state"], row["queue"]) == ("greet", {"name": "Ada"}, "available", "default")
    assert (row["priority"], row["max_attempts"], row["attempt"], row["tags"]) == (2, 25, 0, ["first"])
    assert (row["metadata"], row["unique_key"], row["attempted_by"], row["errors"]) == ({"trace": 7}, None, None, None)
    assert result.job.args == {"name": "Ada"}
    assert result.job.created_at == row["created_at"]
    assert not result.unique_skipped_as_duplicate
    assert ear.heard() == ['{"queue": "default"}']


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_commit_makes_the_job_visible_and_tells_once(
    client: Any, engine_of: Any, kind: str, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, kind) as session:
        await settle(client.insert(Greet("a"), session=session))
        await settle(client.insert(Greet("b"), session=session))
        assert jobs(database_url, schema) == []
        assert ear.heard() == []
        await settle(session.commit())
    assert [row["args"] for row in jobs(database_url, schema)] == [{"name": "a"}, {"name": "b"}]
    assert ear.heard() == ['{"queue": "default"}']


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_rollback_leaves_nothing_and_tells_nobody(
    client: Any, engine_of: Any, kind: str, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, kind) as session:
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.rollback())
    assert jobs(database_url, schema) == []
    assert ear.heard() == []


async def test_a_rollback_gives_the_notification_back(
    client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "connection") as conn:
        await settle(client.insert(Greet("lost"), session=conn))
        await settle(conn.rollback())
        await settle(client.insert(Greet("kept"), session=conn))
        await settle(conn.commit())
    assert ear.heard() == ['{"queue": "default"}']


async def test_a_savepoint_takes_only_its_own_job_with_it(
    client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "session") as session:
        await settle(client.insert(Greet("kept"), session=session))
        inner = await settle(session.begin_nested())
        await settle(client.insert(Greet("lost"), session=session, queue="other"))
        await settle(inner.rollback())
        await settle(client.insert(Greet("late"), session=session, queue="other"))
        await settle(session.commit())
    assert [row["args"]["name"] for row in jobs(database_url, schema)] == ["kept", "late"]
    assert sorted(ear.heard()) == ['{"queue": "default"}', '{"queue": "other"}']


async def test_a_duplicate_returns_the_job_that_is_there_and_harms_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    first = await settle(client.insert(SyncAccount(1)))
    async with open_session(engine_of, "session") as session:
        again = await settle(client.insert(SyncAccount(1), session=session))
        other = await settle(client.insert(SyncAccount(2), session=session))
        await settle(session.commit())
    assert again.unique_skipped_as_duplicate
    assert again.job.id == first.job.id
    assert not other.unique_skipped_as_duplicate
    assert len(jobs(database_url, schema)) == 2


async def test_equal_keys_in_one_batch_do_not_fail_it(client: Any, database_url: str, schema: str) -> None:
    batch = [SyncAccount(1), Greet("x"), riverq.InsertItem(SyncAccount(1), priority=3), SyncAccount(2)]
    results = await settle(client.insert_many(batch))
    assert [result.unique_skipped_as_duplicate for result in results] == [False, False, True, False]
    assert results[2].job.id == results[0].job.id
    assert [result.job.kind for result in results] == ["sync_account", "greet", "sync_account", "sync_account"]
    assert len(jobs(database_url, schema)) == 3


async def test_inserts_fast_by_copy(client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear) -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    awkward = 'tab\t newline\n quote" backslash\\ \\N {brace} ünï 😀'
    batch = [
        Greet(awkward),
        riverq.InsertItem(Greet("later"), scheduled_at=at, tags=["a_tag", "b-tag"], metadata={"k": awkward}),
        riverq.InsertItem(Greet("other"), queue="other"),
    ]
    async with open_session(engine_of, "session") as session:
        assert await settle(client.insert_many_fast(batch, session=session)) == 3
        assert jobs(database_url, schema) == []
        await settle(session.commit())
    rows = {row["args"]["name"]: row for row in jobs(database_url, schema)}
    assert set(rows) == {awkward, "later", "other"}
    assert (rows["later"]["scheduled_at"], rows["later"]["state"]) == (at, "scheduled")
    assert (rows["later"]["tags"], rows["later"]["metadata"]) == (["a_tag", "b-tag"], {"k": awkward})
    assert (rows[awkward]["state"], rows[awkward]["unique_key"]) == ("available", None)
    assert sorted(ear.heard()) == ['{"queue": "default"}', '{"queue": "other"}']


async def test_a_fast_insert_with_a_delay_counts_from_the_databases_clock(
    client: Any, database_url: str, schema: str
) -> None:
    batch = [Greet("now"), riverq.InsertItem(Greet("soon"), delay=timedelta(hours=1))]
    assert await settle(client.insert_many_fast(batch)) == 2
    now, soon = jobs(database_url, schema)
    assert (now["state"], soon["state"]) == ("available", "scheduled")
    assert soon["scheduled_at"] - now["scheduled_at"] == timedelta(hours=1)


async def test_a_fast_insert_that_is_rolled_back_leaves_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    async with open_session(engine_of, "connection") as conn:
        await settle(client.insert_many_fast([Greet("a"), Greet("b")], session=conn))
        await settle(conn.rollback())
    assert jobs(database_url, schema) == []


async def test_a_fast_insert_with_a_duplicate_does_not_fail(client: Any, database_url: str, schema: str) -> None:
    await settle(client.insert(SyncAccount(1)))
    assert await settle(client.insert_many_fast([SyncAccount(1), SyncAccount(2), Greet("x")])) == 2
    assert len(jobs(database_url, schema)) == 3


async def test_an_empty_batch_is_refused(client: Any) -> None:
    for insert in (client.insert_many, client.insert_many_fast):
        with pytest.raises(riverq.ConfigError, match="empty batch"):
            await settle(insert([]))


# -- sessions that are set up in their own way


async def test_the_sessions_search_path_changes_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str, empty_schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "session") as session:
        await settle(session.execute(sa.text(f'SET LOCAL search_path = "{empty_schema}"')))
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.commit())
    assert len(jobs(database_url, schema)) == 1
    assert ear.heard() == ['{"queue": "default"}']


async def test_a_schema_translate_map_changes_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    async with open_session(engine_of, "connection") as conn:
        mapped = {"schema_translate_map": {None: "nowhere", schema: "nowhere"}}
        await settle(conn.execution_options(**mapped))
        await settle(client.insert(Greet("a"), session=conn))
        await settle(conn.commit())
    assert len(jobs(database_url, schema)) == 1


async def test_an_own_json_serializer_changes_nothing(
    adapter: str, make_engine: EngineMaker, database_url: str, schema: str
) -> None:
    engine = make_engine(adapter, json_serializer=lambda value: json.dumps({"wrapped": value}), json_deserializer=str)
    client = make_client(engine, riverq.Config(schema=schema))
    async with open_session(engine, "session") as session:
        result = await settle(client.insert(Greet("a"), session=session, metadata={"k": 1}))
        await settle(session.commit())
    (row,) = jobs(database_url, schema)
    assert (row["args"], row["metadata"]) == ({"name": "a"}, {"k": 1})
    assert result.job.args == {"name": "a"}


async def test_an_autocommit_connection_inserts_and_tells_at_once(
    client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "connection") as conn:
        autocommit = await settle(conn.execution_options(isolation_level="AUTOCOMMIT"))
        await settle(client.insert(Greet("a"), session=autocommit))
        assert len(jobs(database_url, schema)) == 1
        assert ear.heard() == ['{"queue": "default"}']


@pytest.mark.parametrize("adapter", SYNC_ADAPTERS)
def test_a_two_phase_transaction_works_without_notification(
    engine_of: sa.Engine, client: riverq.Client, database_url: str, schema: str, ear: Ear
) -> None:
    with Session(engine_of, twophase=True) as session:
        client.insert(Greet("a"), session=session)
        session.prepare()
        session.commit()
    assert len(jobs(database_url, schema)) == 1
    assert ear.heard() == []


def test_a_session_on_another_driver_inserts(engine: sa.Engine, database_url: str, schema: str, ear: Ear) -> None:
    client = riverq.Client(engine, riverq.Config(schema=schema))
    other = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg2"))
    with Session(other) as session, session.begin():
        client.insert(Greet("a"), session=session)
        client.insert(SyncAccount(1), session=session)
        assert client.insert(SyncAccount(1), session=session).unique_skipped_as_duplicate
        assert client.insert_many_fast([Greet("b"), Greet("c")], session=session) == 2
    other.dispose()
    assert len(jobs(database_url, schema)) == 4
    assert ear.heard() == ['{"queue": "default"}']


def test_the_schema_is_that_of_the_engine_when_none_is_given(
    make_engine: EngineMaker, database_url: str, schema: str
) -> None:
    client = riverq.Client(make_engine("psycopg", search_path=schema))
    client.insert(Greet("a"))
    assert len(jobs(database_url, schema)) == 1


def test_a_drained_pool_does_not_stop_the_first_insert(
    make_engine: EngineMaker, database_url: str, schema: str
) -> None:
    engine = make_engine("psycopg", pool_size=1, max_overflow=0, pool_timeout=1, search_path=schema)
    client = riverq.Client(engine)
    with Session(engine) as session, session.begin():
        session.execute(sa.text("SELECT 1"))
        client.insert(Greet("a"), session=session)
    assert len(jobs(database_url, schema)) == 1


# -- what bad input gets


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
        riverq.Client(make_engine("asyncpg"))
    with pytest.raises(riverq.ConfigError, match="use Client"):
        riverq.AsyncClient(make_engine("pg8000"))
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

    engine = sa.ext.asyncio.create_async_engine(
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
