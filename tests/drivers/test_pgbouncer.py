"""Engines made by each driver, behind a real PgBouncer in each pool mode."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.database import Database
from riverq.errors import PoolerError, UnavailableError
from tests.drivers.adapters import dispose, driver_engine
from tests.fix_pgbouncer import find_pgbouncer, running_pgbouncer
from tests.fix_skips import skip_or_fail

pytestmark = pytest.mark.pgbouncer

TRANSACTIONS = 200
CLIENTS = 8

# Things that work directly, and that PgBouncer refuses at login.
STARTUP_PARAMETERS: dict[str, dict[str, Any]] = {
    "psycopg": {"options": "-c statement_timeout=1000"},
    "psycopg_async": {"options": "-c statement_timeout=1000"},
    "asyncpg": {"server_settings": {"jit": "off"}},
    "pg8000": {"startup_params": {"statement_timeout": "1000"}},
}


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[Callable[[str], str]]:
    """`pooled_url(mode)`: the test database through PgBouncer. In transaction mode all clients share two servers."""
    command = find_pgbouncer()
    if command is None:
        skip_or_fail("no pgbouncer in the PATH or in /usr/sbin (Debian: apt-get install pgbouncer)")
    with ExitStack() as stack:

        def start(mode: str) -> str:
            settings = {"default_pool_size": "2"} if mode == "transaction" else {}
            return stack.enter_context(running_pgbouncer(command, database_url, mode, **settings))

        yield start


Open = Callable[..., Database]


@pytest.fixture
async def opened(adapter: str, pooled_url: Callable[[str], str]) -> AsyncIterator[Open]:
    """`opened(mode, **engine options)`: a database on an engine made by the driver, through PgBouncer."""
    databases: list[Database] = []

    def make(mode: str, **options: Any) -> Database:
        driver = driver_engine(adapter, pooled_url(mode), **options)
        databases.append(Database(driver.engine, driver, schema="public", slots=CLIENTS))
        return databases[-1]

    yield make
    for database in databases:
        await database.close()
        await dispose(database.engine)


def several_statements(conn: sa.Connection, _schema: str, n: int) -> tuple[Any, ...]:
    """Enough repetitions of the same texts with parameters to provoke a statement cache."""
    for _ in range(2):
        conn.execute(sa.text("SELECT CAST(:n AS bigint), CAST(CAST(:t AS text) AS jsonb)"), {"n": n, "t": "[1]"}).all()
    text = sa.text("SELECT sum(x) FROM unnest(CAST(CAST(:xs AS text) AS bigint[])) AS x")
    total = conn.execute(text, {"xs": f"{{{n},1}}"}).scalar_one()
    name = conn.execute(sa.text("SHOW application_name")).scalar_one()
    return int(total), name


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_hundreds_of_transactions(opened: Open, mode: str) -> None:
    database = opened(mode, pool_size=CLIENTS, max_overflow=0)
    results = await asyncio.gather(*(database.run(several_statements, n) for n in range(TRANSACTIONS)))
    assert results == [(n + 1, "riverq_tests_driver") for n in range(TRANSACTIONS)]
    singles = await asyncio.gather(*(database.run_single(several_statements, n) for n in range(TRANSACTIONS)))
    assert [total for total, _ in singles] == [n + 1 for n in range(TRANSACTIONS)]


@pytest.mark.parametrize(("mode", "delivered"), [("session", True), ("transaction", False)])
async def test_whether_listen_is_delivered_shows_from_a_second_connection(
    opened: Open, mode: str, *, delivered: bool
) -> None:
    """LISTEN succeeds in both modes; in transaction mode what arrives between transactions is dropped."""
    database = opened(mode)
    listener = database.driver.listener(database.engine)
    channel = f"riverq_probe_{uuid.uuid4().hex[:12]}"

    def probe(conn: sa.Connection, _schema: str) -> None:
        conn.execute(sa.text("SELECT pg_notify(:channel, 'x')"), {"channel": channel}).close()

    await listener.connect()
    try:
        await listener.listen(channel)
        await database.run(probe)
        heard = await listener.wait(20.0 if delivered else 0.5)
        assert [n.channel for n in heard] == ([channel] if delivered else [])
        await listener.ping(20.0)
    finally:
        await listener.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_copy(opened: Open, mode: str) -> None:
    database = opened(mode)

    def copy(conn: sa.Connection, _schema: str) -> int:
        conn.exec_driver_sql("CREATE TEMPORARY TABLE copied (x text) ON COMMIT DROP")
        count = database.driver.copy_from(conn, '"copied"', ["x"], [["a"], [None], ["\t"]])
        return count + int(conn.exec_driver_sql("SELECT count(*) FROM copied").scalar_one())

    assert await database.run(copy) == 6


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_startup_parameter_is_refused_with_the_cure(opened: Open, adapter: str, mode: str) -> None:
    database = opened(mode, connect_args=STARTUP_PARAMETERS[adapter])
    with pytest.raises(PoolerError, match=r"unsupported startup parameter.*ALTER ROLE"):
        await database.run(several_statements, 1)
    with pytest.raises(PoolerError, match="unsupported startup parameter"):
        await database.driver.listener(database.engine).connect()


async def test_statement_mode_is_refused_with_the_cure(opened: Open) -> None:
    database = opened("statement")
    # asyncpg on SQLAlchemy 2.0 only learns that the line was cut; the cure is then offered as a guess.
    kind = PoolerError if sa.__version__ > "2.1" or "asyncpg" not in str(database.engine.url) else UnavailableError
    with pytest.raises(kind, match=r"pool_mode=statement cannot work; use session or transaction"):
        await database.run(several_statements, 1)
