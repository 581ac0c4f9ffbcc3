"""The database seam: transactions, lanes, errors, cancellation and closing, on every adapter."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq.database
from riverq.database import Database
from riverq.driver import AnyEngine, load_driver
from riverq.errors import DatabaseError, PoolExhaustedError, SchemaError, UnavailableError, UsageError
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker, adapter_url, new_engine
from tests.isolation import REPEATABLE_READ, SERIALIZABLE

LONG = 20.0
LOCK = "SELECT pg_catalog.pg_advisory_xact_lock(821)"

Open = Callable[..., Database]


def statement(conn: sa.Connection, _schema: str, text: str) -> Any:
    """A query function: run `text`, return the first value if there is one."""
    result = conn.execute(sa.text(text))
    return result.scalar() if result.returns_rows else None


def raw(conn: sa.Connection, _schema: str) -> object:
    """The adapter's own connection."""
    return conn.connection.driver_connection


@pytest.fixture
async def opened(adapter: str, make_engine: EngineMaker) -> AsyncIterator[Open]:
    """`opened(slots=…, **engine options)`: a database on the adapter's engine; closed after the test."""
    databases: list[Database] = []

    def make(*, slots: int = 2, owns_engine: bool = True, **options: Any) -> Database:
        engine = make_engine(adapter, **options)
        databases.append(
            Database(engine, load_driver(engine), schema="my schema", slots=slots, owns_engine=owns_engine)
        )
        return databases[-1]

    yield make
    for database in databases:
        await database.close()


@asynccontextmanager
async def holding(engine: AnyEngine, text: str) -> AsyncIterator[None]:
    """A transaction that has run `text` and stays open."""
    if isinstance(engine, AsyncEngine):
        async with engine.connect() as conn:
            await conn.execute(sa.text(text))
            yield
        return
    sync = await asyncio.to_thread(engine.connect)
    try:
        await asyncio.to_thread(sync.execute, sa.text(text))
        yield
    finally:
        await asyncio.to_thread(sync.close)


async def test_gives_the_function_a_connection_the_schema_and_its_arguments(opened: Open) -> None:
    def query(conn: sa.Connection, schema: str, one: int, *, two: int) -> tuple[object, ...]:
        return conn.execute(sa.text("SELECT 7")).scalar_one(), schema, one, two

    database = opened()
    assert await database.run(query, 1, two=2) == (7, "my schema", 1, 2)
    assert await database.run_single(query, 1, two=2) == (7, "my schema", 1, 2)


async def test_functions_see_the_context_variables_of_the_caller(opened: Open) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("seen")
    assert await opened().run(lambda _conn, _schema: variable.get()) == "seen"


@pytest.mark.parametrize("isolation", [None, "AUTOCOMMIT", SERIALIZABLE, REPEATABLE_READ])
async def test_run_is_one_read_committed_transaction(opened: Open, isolation: str | None, empty_schema: str) -> None:
    database = opened(pool_size=1, max_overflow=0, **({"isolation_level": isolation} if isolation else {}))
    table = f'"{empty_schema}".t'
    await database.run(statement, f"CREATE TABLE {table} (x integer)")

    def fails_half_way(conn: sa.Connection, schema: str) -> None:
        assert statement(conn, schema, "SHOW transaction_isolation") == "read committed"
        statement(conn, schema, f"INSERT INTO {table} VALUES (1)")
        raise LookupError("half way")

    for _ in range(2):
        with pytest.raises(LookupError):
            await database.run(fails_half_way)
    await database.run(statement, f"INSERT INTO {table} VALUES (2)")
    assert await database.run(statement, f"SELECT sum(x) FROM {table}") == 2


@pytest.mark.parametrize("isolation", [None, "AUTOCOMMIT", SERIALIZABLE])
async def test_run_single_has_no_transaction_around_it(opened: Open, isolation: str | None, empty_schema: str) -> None:
    database = opened(pool_size=1, max_overflow=0, **({"isolation_level": isolation} if isolation else {}))
    table = f'"{empty_schema}".t'
    await database.run(statement, f"CREATE TABLE {table} (x integer UNIQUE)")
    if database.driver.capabilities.autocommit:
        await database.run_single(statement, f"VACUUM {table}")  # refused inside a transaction
    await database.run_single(statement, f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(DatabaseError) as caught:
        await database.run_single(statement, f"INSERT INTO {table} VALUES (1)")
    assert caught.value.sqlstate == "23505"
    assert await database.run_single(statement, f"SELECT count(*) FROM {table}") == 1
    with pytest.raises(DatabaseError) as caught:  # and the connection is transactional again
        await database.run(statement, f"VACUUM {table}")
    assert caught.value.sqlstate == "25001"


async def test_lanes_have_slots_of_their_own(opened: Open) -> None:
    database = opened(slots=1)
    lane = database.limited(1)
    started: list[str] = []
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def blocked(conn: sa.Connection, schema: str) -> None:
        started.append("blocked")
        loop.call_soon_threadsafe(entered.set)
        statement(conn, schema, LOCK)

    async with holding(database.engine, LOCK):
        tasks = [asyncio.create_task(database.run(blocked)) for _ in range(2)]
        async with asyncio.timeout(LONG):
            await entered.wait()
            assert await lane.run(statement, "SELECT 1") == 1
            assert await lane.run_single(statement, "SELECT 1") == 1
        assert started == ["blocked"]
    await asyncio.gather(*tasks)
    assert started == ["blocked", "blocked"]


async def test_errors_are_riverqs_with_the_cause(opened: Open) -> None:
    database = opened()
    with pytest.raises(DatabaseError) as caught:
        await database.run(statement, "SELECT 1 / 0")
    assert caught.value.sqlstate == "22012"
    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
    with pytest.raises(SchemaError, match="riverq migrate-up"):
        await database.run(statement, "SELECT * FROM public.river_job_that_is_not_there")
    with pytest.raises(SchemaError, match="riverq migrate-up"):
        await database.run(statement, "SELECT * FROM no_schema.river_job")
    with pytest.raises(DatabaseError, match="no_such_table") as caught:
        await database.run(statement, "SELECT * FROM public.no_such_table")
    assert caught.value.sqlstate == "42P01"


async def test_errors_of_the_function_pass_through(opened: Open) -> None:
    def raise_it(_conn: sa.Connection, _schema: str, error: Exception) -> None:
        raise error

    database = opened()
    for error in (LookupError("mine"), UsageError("riverq's own")):
        with pytest.raises(type(error)) as caught:
            await database.run(raise_it, error)
        assert caught.value is error


async def test_a_drained_pool_is_pool_exhausted(opened: Open) -> None:
    database = opened(pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with holding(database.engine, "SELECT 1"):
        with pytest.raises(PoolExhaustedError, match="pool_size"):
            await database.run(statement, "SELECT 1")
    assert await database.run(statement, "SELECT 1") == 1


async def test_an_unreachable_server_is_unavailable(opened: Open, database_url: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = sa.make_url(database_url).set(host="127.0.0.1", port=unused.getsockname()[1])
        database = opened(url=url.render_as_string(hide_password=False))
        with pytest.raises(UnavailableError):
            await database.run(statement, "SELECT 1")


async def test_a_connection_that_died_in_the_pool_is_replaced(opened: Open) -> None:
    database = opened(pool_size=1, max_overflow=0)
    assert await database.run_single(statement, "SELECT 1") == 1
    for run in (database.run, database.run_single):
        with pytest.raises(UnavailableError):
            await run(statement, "SELECT pg_terminate_backend(pg_backend_pid())")
        assert await run(statement, "SELECT 1") == 1


@pytest.mark.parametrize("single", [False, True])
async def test_a_cancelled_run_leaks_nothing(opened: Open, *, single: bool) -> None:
    database = opened(slots=1, pool_size=2, max_overflow=0)
    run = database.run_single if single else database.run
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def blocked(conn: sa.Connection, schema: str) -> None:
        if not single:
            statement(conn, schema, "SELECT 1")  # BEGIN is through: psycopg needs 5 s to cancel that one
        loop.call_soon_threadsafe(entered.set)
        statement(conn, schema, LOCK)

    for _ in range(3):
        async with holding(database.engine, LOCK):
            task = asyncio.create_task(run(blocked))
            await entered.wait()
            entered.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(LONG):
            assert await run(statement, "SELECT 1") == 1


async def test_a_cancelled_transaction_is_not_committed_and_keeps_its_connection(
    opened: Open, empty_schema: str
) -> None:
    database = opened(slots=1, pool_size=1, max_overflow=0, owns_engine=False)
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()
    await database.run(statement, f'CREATE TABLE "{empty_schema}".written (n int)')
    connection = await database.run(raw)

    def write(conn: sa.Connection, schema: str) -> None:
        statement(conn, schema, f'INSERT INTO "{empty_schema}".written VALUES (1)')
        loop.call_soon_threadsafe(waiting.set)
        statement(conn, schema, LOCK)

    other = opened(pool_size=1)
    async with holding(other.engine, LOCK):
        task = asyncio.create_task(database.run(write))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(LONG):
        assert await database.run(statement, f'SELECT count(*) FROM "{empty_schema}".written') == 0
        assert await database.run(raw) is connection


async def test_what_was_given_up_before_it_began_does_not_begin(opened: Open) -> None:
    """It waits for the pool's only connection while its caller goes."""
    database = opened(slots=1, pool_size=1, max_overflow=0)
    begun: list[str] = []

    def begin(_conn: sa.Connection, schema: str) -> None:
        begun.append(schema)

    for run in (database.run, database.run_single):
        async with holding(database.engine, "SELECT 1"):
            task = asyncio.create_task(run(begin))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await run(statement, "SELECT 1") == 1
    assert not begun


@pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)
async def test_who_waits_for_a_slot_when_it_is_closed_is_told(
    opened: Open, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riverq.database, "CLOSE_LIMIT", 0.05)
    database, other = opened(slots=1), opened(owns_engine=False)
    async with holding(other.engine, LOCK):
        first = asyncio.create_task(database.run(statement, LOCK))
        second = asyncio.create_task(database.run(statement, "SELECT 1"))
        await asyncio.sleep(0)
        await database.close()
        with pytest.raises(UnavailableError):
            await first
        with pytest.raises(UsageError, match="closed"):
            await second


@pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)
def test_belongs_to_one_event_loop(adapter: str, database_url: str) -> None:
    engine = new_engine(database_url, adapter)
    database = Database(engine, load_driver(engine), schema="public")
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(database.run(statement, "SELECT 1")) == 1
        with pytest.raises(UsageError, match="another event loop"):
            second.run(database.run(statement, "SELECT 1"))
        with pytest.raises(UsageError, match="another event loop"):
            second.run(database.limited(1).run(statement, "SELECT 1"))
        first.run(database.close())


async def test_closed_is_closed(opened: Open) -> None:
    database = opened()
    lane = database.limited(1)
    await database.run(statement, "SELECT 1")
    await lane.run(statement, "SELECT 1")
    await database.close()
    await database.close()
    for closed in (database, lane):
        with pytest.raises(UsageError, match="closed"):
            await closed.run(statement, "SELECT 1")
    assert not [t for t in threading.enumerate() if t.name.startswith("riverq_database") and not t.daemon]


async def test_close_leaves_an_engine_it_does_not_own(opened: Open) -> None:
    database = opened(owns_engine=False, pool_size=1, max_overflow=0)
    pid = await database.run(statement, "SELECT pg_backend_pid()")
    await database.close()
    again = Database(database.engine, database.driver, schema="public")
    assert await again.run(statement, "SELECT pg_backend_pid()") == pid
    await again.close()


async def test_close_does_not_wait_for_a_transaction_that_hangs(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(riverq.database, "CLOSE_LIMIT", 0.05)
    database = opened(owns_engine=False)
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def blocked(conn: sa.Connection, schema: str) -> None:
        loop.call_soon_threadsafe(entered.set)
        statement(conn, schema, LOCK)

    async with holding(database.engine, LOCK):
        task = asyncio.create_task(database.run(blocked))
        await entered.wait()
        async with asyncio.timeout(LONG):
            await database.close()
            with pytest.raises(UnavailableError):
                await task


def test_adapter_urls_are_known(adapter: str, database_url: str) -> None:
    assert load_driver(sa.create_engine(adapter_url(database_url, adapter))).name == adapter.removesuffix("_async")
