"""The control engine: connections like the application's, which the application cannot use up. On every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, StaticPool

import riverq.database
from riverq.database import Database, control_engine
from riverq.driver import AnyEngine, load_driver
from riverq.errors import PoolExhaustedError, UnavailableError
from tests.fix_database import EngineMaker
from tests.test_database import LOCK, holding, statement


async def use(engine: AnyEngine, text: str) -> Any:
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as conn:
            return (await conn.execute(sa.text(text))).scalar()

    def sync(engine: sa.Engine) -> Any:
        with engine.begin() as conn:
            return conn.execute(sa.text(text)).scalar()

    return await asyncio.to_thread(sync, engine)


async def dispose(engine: AnyEngine) -> None:
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()


@pytest.fixture
async def controlling() -> AsyncIterator[Callable[..., AnyEngine]]:
    """`control_engine`, disposed of after the test."""
    made: list[AnyEngine] = []

    def make(engine: AnyEngine, *, size: int = 2) -> AnyEngine:
        made.append(control_engine(engine, size=size))
        return made[-1]

    yield make
    for engine in made:
        await dispose(engine)


@pytest.mark.parametrize(
    "options",
    [{"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}, {"poolclass": NullPool}, {"poolclass": StaticPool}],
    ids=["pool of one", "NullPool", "StaticPool"],
)
async def test_control_engine_works_beside_a_drained_pool(
    adapter: str, make_engine: EngineMaker, controlling: Callable[..., AnyEngine], options: dict[str, Any]
) -> None:
    app = make_engine(adapter, **options)
    own = controlling(app, size=3)
    async with (
        holding(app, "SELECT 1"),
        holding(own, "SELECT 1"),
        holding(own, LOCK),
    ):
        # Three connections at once, all different: a lock held by one is seen by the next.
        assert await use(own, LOCK.replace("pg_advisory", "pg_try_advisory")) is False


async def test_control_engine_has_its_own_size(
    adapter: str,
    make_engine: EngineMaker,
    controlling: Callable[..., AnyEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(riverq.database, "CHECKOUT_LIMIT", 0.05)
    own = controlling(make_engine(adapter, pool_size=20), size=2)
    database = Database(own, load_driver(own), schema="public", slots=1)
    async with holding(own, "SELECT 1"), holding(own, "SELECT 1"):
        with pytest.raises(PoolExhaustedError):
            await database.run(statement, "SELECT 1")
    assert await database.run(statement, "SELECT 1") == 1
    await database.close()


@pytest.mark.own_session("what its `connect` listener sets")
async def test_control_engine_connects_as_the_application_does(
    adapter: str, make_engine: EngineMaker, controlling: Callable[..., AnyEngine], pooled_url: str
) -> None:
    # Host and password come from `do_connect`, as with cloud tokens; the role from a `connect` listener.
    app = make_engine(adapter, url=sa.make_url(pooled_url).set(port=1).render_as_string(hide_password=False))
    sync = app.sync_engine if isinstance(app, AsyncEngine) else app
    port = sa.make_url(pooled_url).port

    @sa.event.listens_for(sync, "do_connect")
    def do_connect(_dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        params["port"] = port

    @sa.event.listens_for(sync, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET work_mem = '4321kB'")
        cursor.close()
        connection.commit()

    assert await use(controlling(app), "SHOW work_mem") == "4321kB"
    assert await use(app, "SHOW work_mem") == "4321kB"


async def test_control_engine_uses_the_applications_creator(
    database_url: str, controlling: Callable[..., AnyEngine]
) -> None:
    made: list[str] = []

    def creator() -> psycopg.Connection:
        made.append("x")
        return psycopg.connect(database_url, application_name="by_creator")

    app = sa.create_engine("postgresql+psycopg://", creator=creator)
    assert await use(controlling(app), "SHOW application_name") == "by_creator"
    assert made == ["x"]
    app.dispose()


async def test_control_engine_recovers_from_a_terminated_backend(
    adapter: str, make_engine: EngineMaker, controlling: Callable[..., AnyEngine]
) -> None:
    own = controlling(make_engine(adapter))
    database = Database(own, load_driver(own), schema="public")
    first = await database.run(statement, "SELECT pg_backend_pid()")
    with pytest.raises(UnavailableError):
        await database.run(statement, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert await database.run(statement, "SELECT pg_backend_pid()") != first
    await database.close()
