"""Inserting through sessions that are set up in their own way."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import riverq
from tests.client.faces import Ear, Greet, SyncAccount, jobs, make_client, open_session, settle
from tests.fix_database import EngineMaker
from tests.fix_server import audible

SYNC_ADAPTERS = ("psycopg", "pg8000")


async def test_the_sessions_search_path_changes_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str, empty_schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "session") as session:
        await settle(session.execute(sa.text(f'SET LOCAL search_path = "{empty_schema}"')))
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.commit())
    assert len(jobs(database_url, schema)) == 1
    assert ear.heard() == audible(['{"queue": "default"}'])


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
        assert ear.heard() == audible(['{"queue": "default"}'])


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
    assert ear.heard() == audible(['{"queue": "default"}'])


@pytest.mark.own_session("the search_path that its engine sets")
def test_the_schema_is_that_of_the_engine_when_none_is_given(
    make_engine: EngineMaker, database_url: str, schema: str
) -> None:
    client: Any = make_client(make_engine("psycopg", search_path=schema), riverq.Config())
    client.insert(Greet("a"))
    assert len(jobs(database_url, schema)) == 1


@pytest.mark.own_session("the search_path that its engine sets")
def test_a_drained_pool_does_not_stop_the_first_insert(
    make_engine: EngineMaker, database_url: str, schema: str
) -> None:
    engine: Any = make_engine("psycopg", pool_size=1, max_overflow=0, pool_timeout=1, search_path=schema)
    client = riverq.Client(engine)
    with Session(engine) as session, session.begin():
        session.execute(sa.text("SELECT 1"))
        client.insert(Greet("a"), session=session)
    assert len(jobs(database_url, schema)) == 1
