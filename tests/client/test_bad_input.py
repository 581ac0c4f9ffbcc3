"""What a broken session and an engine that cannot connect get: one sentence of riverq's, on every adapter."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import riverq
from riverq.driver import AnyEngine
from tests.client.faces import Greet, jobs, make_client, open_session, settle
from tests.fix_database import EngineMaker, adapter_url


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Background on this error" not in text
    assert "geheim" not in text
    return text


async def _fail(session: AsyncSession | Session) -> None:
    """Leave the session's transaction failed, as a statement of the application's may have."""
    with pytest.raises(sa.exc.DBAPIError):
        await settle(session.execute(sa.text("SELECT 1 / 0")))


async def test_a_transaction_that_has_failed_says_so(adapter: str, make_engine: EngineMaker, schema: str) -> None:
    engine = make_engine(adapter)
    client = make_client(engine, riverq.Config(schema=schema))
    async with open_session(engine, "session") as session:
        await _fail(session)
        with pytest.raises(riverq.DatabaseError) as caught:
            await settle(client.insert(Greet("x"), session=session))
        assert caught.value.sqlstate == "25P02"
        one_sentence(caught.value)


async def test_a_connection_that_is_closed_says_so(
    adapter: str, make_engine: EngineMaker, schema: str, database_url: str
) -> None:
    engine = make_engine(adapter)
    client = make_client(engine, riverq.Config(schema=schema))
    async with open_session(engine, "connection") as connection:
        await settle(connection.close())
        with pytest.raises(riverq.RiverqError, match="closed") as caught:
            await settle(client.insert(Greet("x"), session=connection))
        one_sentence(caught.value)
    assert jobs(database_url, schema) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"database": "riverq_no_such_database"}, 'database "riverq_no_such_database" does not exist'),
        ({"username": "riverq_no_such_role"}, "riverq_no_such_role"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid"),
        ({"host": "127.0.0.1", "port": 1}, "127.0.0.1:1 is not available"),
    ],
)
async def test_an_engine_that_cannot_connect_names_where_it_wanted_to(
    adapter: str, database_url: str, change: Any, words: str
) -> None:
    url = adapter_url(database_url, adapter)._replace(password="geheim", **change)
    engine: AnyEngine = sa.create_engine(url) if adapter in ("psycopg", "pg8000") else create_async_engine(url)
    try:
        with pytest.raises(riverq.DatabaseError) as caught:
            await settle(make_client(engine, riverq.Config()).insert(Greet("x")))
        text = one_sentence(caught.value)
        assert words in text
        assert f"the database {url.database!r} at {url.host}:{url.port}" in text
    finally:
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()
