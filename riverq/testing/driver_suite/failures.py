"""Conformance: each category of error, provoked on a real server, comes out as the right exception."""

from __future__ import annotations

import socket

import pytest
import sqlalchemy as sa

from riverq.database import translating
from riverq.errors import DatabaseError, SchemaError, UnavailableError
from riverq.testing.driver_suite.case import Conformance

PROVOKED = [
    ("INSERT INTO t VALUES (1)", "23505"),
    ("INSERT INTO t VALUES (-1)", "23514"),
    ("INSERT INTO t VALUES (NULL)", "23502"),
    ("SELECT * FROM no_such_table", "42P01"),
    ("SELECT no_such_column FROM t", "42703"),
    ("SELEKT", "42601"),
    ("SELECT 1 / 0", "22012"),
    ("SELECT CAST('x' AS integer)", "22P02"),
    ("SELECT pg_notify('', 'x')", "22023"),
]


@pytest.mark.asyncio
class TestFailures:
    """`Driver.sqlstate` and `Driver.is_disconnect`, seen through `riverq.database.translating`."""

    @pytest.mark.parametrize(("statement", "sqlstate"), PROVOKED)
    async def test_sqlstate_of_a_refused_statement(
        self, conformance: Conformance, statement: str, sqlstate: str
    ) -> None:
        """The server's code, and not an UnavailableError: the connection is fine, and stays so."""

        def script(conn: sa.Connection) -> int:
            conn.execute(sa.text("CREATE TEMPORARY TABLE t (x integer NOT NULL UNIQUE CHECK (x > 0))"))
            conn.execute(sa.text("INSERT INTO t VALUES (1)"))
            with pytest.raises(DatabaseError) as caught, translating(conformance.driver), conn.begin_nested():
                conn.execute(sa.text(statement))
            assert caught.value.sqlstate == sqlstate
            assert not isinstance(caught.value, UnavailableError)
            return int(conn.execute(sa.text("SELECT count(*) FROM t")).scalar_one())

        assert await conformance.connected(script) == 1

    async def test_missing_tables_of_river(self, conformance: Conformance) -> None:
        """A river table that is missing names the command that makes it."""

        def script(conn: sa.Connection) -> None:
            with translating(conformance.driver):
                conn.execute(sa.text('SELECT * FROM "no such schema"."river_job"'))

        with pytest.raises(SchemaError, match="riverq migrate-up"):
            await conformance.connected(script)

    @pytest.mark.parametrize(
        ("setting", "sqlstate"), [("lock_timeout = '20ms'", "55P03"), ("statement_timeout = '300ms'", "57014")]
    )
    async def test_timeouts_of_the_server(self, conformance: Conformance, setting: str, sqlstate: str) -> None:
        """Waiting for a lock that is held elsewhere: an ordinary error, after which the connection goes on."""
        lock = sa.text(f"SELECT pg_advisory_xact_lock({int(conformance.name[-8:], 16)})")

        def wait(conn: sa.Connection) -> None:
            conn.execute(sa.text(f"SET LOCAL {setting}"))  # until the savepoint is rolled back
            conn.execute(lock)

        def script(conn: sa.Connection) -> int:
            with pytest.raises(DatabaseError) as caught, translating(conformance.driver), conn.begin_nested():
                wait(conn)
            assert caught.value.sqlstate == sqlstate
            assert not isinstance(caught.value, UnavailableError)
            return int(conn.execute(sa.text("SELECT 1")).scalar_one())

        async with conformance.stepping() as holder:
            await holder.call(lambda conn: conn.execute(lock).close())
            assert await conformance.connected(script) == 1

    async def test_serialization_failure(self, conformance: Conformance) -> None:
        """Two transactions that cannot be put in an order."""
        name = conformance.name

        def update(conn: sa.Connection) -> None:
            with translating(conformance.driver):
                conn.execute(sa.text(f"UPDATE {name} SET x = x + 1"))

        await conformance.committed(lambda conn: conn.execute(sa.text(f"CREATE TABLE {name} AS SELECT 1 AS x")).close())
        try:
            async with conformance.stepping() as first:
                await first.call(lambda conn: conn.execution_options(isolation_level="REPEATABLE READ").begin())
                await first.call(lambda conn: conn.execute(sa.text(f"SELECT x FROM {name}")).close())
                await conformance.committed(update)
                with pytest.raises(DatabaseError) as caught:
                    await first.call(update)
            assert caught.value.sqlstate == "40001"
        finally:
            await conformance.committed(lambda conn: conn.execute(sa.text(f"DROP TABLE {name}")).close())

    async def test_terminated_connection(self, conformance: Conformance) -> None:
        """A backend that was ended is an UnavailableError, and the pool makes a new connection."""
        other = conformance.make_engine(conformance.case.url)

        def die(conn: sa.Connection) -> None:
            with translating(conformance.driver):
                conn.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
                conn.execute(sa.text("SELECT 1"))

        with pytest.raises(UnavailableError):
            await conformance.connected(die, other)
        assert await conformance.connected(lambda conn: conn.execute(sa.text("SELECT 1")).scalar_one(), other) == 1

    async def test_terminated_while_idle_in_the_pool(self, conformance: Conformance) -> None:
        """The pool hands out a connection that died in it: the first use says so, the next succeeds."""
        other = conformance.make_engine(conformance.case.url, pool_size=1, max_overflow=0)

        def select(conn: sa.Connection) -> int:
            with translating(conformance.driver):
                return int(conn.execute(sa.text("SELECT 1")).scalar_one())

        assert await conformance.connected(select, other) == 1
        assert await conformance.terminate(other) == 1
        with pytest.raises(UnavailableError):
            await conformance.connected(select, other)
        assert await conformance.connected(select, other) == 1

    async def test_connection_refused(self, conformance: Conformance) -> None:
        """Nobody listens at the port."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = conformance.case.url.set(host="127.0.0.1", port=unused.getsockname()[1])
            with pytest.raises(UnavailableError), translating(conformance.driver):
                await conformance.connected(lambda conn: None, conformance.make_engine(url))

    async def test_missing_database(self, conformance: Conformance) -> None:
        """The server refuses the connection itself."""
        engine = conformance.make_engine(conformance.case.url.set(database="no such database"))
        with pytest.raises(DatabaseError, match="no such database"), translating(conformance.driver):
            await conformance.connected(lambda conn: None, engine)
