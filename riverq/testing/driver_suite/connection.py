"""Conformance: transactions, savepoints, and how values travel.

riverq sends parameters as text, integers or None, cast where they are used, and reads jsonb and arrays as text; these
tests hold every adapter to giving the same answer for the same statement.
"""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.database import translating
from riverq.errors import DatabaseError
from riverq.testing.driver_suite.case import Conformance

AWKWARD = "tab\t newline\n return\r back\\slash \"double\" 'single' {brace} %s :colon €uro 日本 🐍"


@pytest.mark.asyncio
class TestConnection:
    """An engine made by the adapter."""

    async def test_transaction_commits_and_rolls_back(self, conformance: Conformance) -> None:
        """What is committed stays, what is rolled back does not."""

        def script(conn: sa.Connection) -> list[Any]:
            conn.execute(sa.text("CREATE TEMPORARY TABLE t (x integer)"))
            conn.commit()
            conn.execute(sa.text("INSERT INTO t VALUES (1)"))
            conn.rollback()
            conn.execute(sa.text("INSERT INTO t VALUES (2)"))
            conn.commit()
            return list(conn.execute(sa.text("SELECT x FROM t")).scalars())

        assert await conformance.connected(script) == [2]

    async def test_savepoint_rolls_back_alone(self, conformance: Conformance) -> None:
        """A statement that fails inside a savepoint leaves the transaction around it usable."""

        def script(conn: sa.Connection) -> list[Any]:
            conn.execute(sa.text("CREATE TEMPORARY TABLE t (x integer UNIQUE)"))
            conn.execute(sa.text("INSERT INTO t VALUES (1)"))
            with pytest.raises(DatabaseError), translating(conformance.driver), conn.begin_nested():
                conn.execute(sa.text("INSERT INTO t VALUES (1)"))
            with conn.begin_nested():
                conn.execute(sa.text("INSERT INTO t VALUES (2)"))
            return list(conn.execute(sa.text("SELECT x FROM t ORDER BY x")).scalars())

        assert await conformance.connected(script) == [1, 2]

    async def test_default_isolation_is_read_committed(self, conformance: Conformance) -> None:
        """An engine made by the adapter changes nothing about transactions."""
        assert await conformance.connected(lambda conn: conn.get_isolation_level()) == "READ COMMITTED"

    async def test_a_connection_names_its_socket(self, conformance: Conformance) -> None:
        """By it a call that hangs in a silent network is ended."""

        def script(conn: sa.Connection) -> int | None:
            return conformance.driver.fileno(conn.connection.driver_connection)

        assert await conformance.connected(script) is not None

    async def test_sets_application_name(self, conformance: Conformance) -> None:
        """Without one, a client behind PgBouncer inherits the name of the client before."""
        name = await conformance.connected(lambda conn: conn.execute(sa.text("SHOW application_name")).scalar_one())
        assert name.startswith(conformance.name)

    @pytest.mark.parametrize(
        ("cast", "value", "expected"),
        [
            ("text", AWKWARD, AWKWARD),
            ("text", "", ""),
            ("text", None, None),
            ("jsonb", '{"b": [1, null, "é"], "a": 1.50}', '{"a": 1.50, "b": [1, null, "é"]}'),
            ("jsonb", "null", "null"),
            ("jsonb", None, None),
            ("bytea", "\\x00ff10", "\\x00ff10"),
            ("bigint[]", "{1,NULL,9223372036854775807}", "{1,NULL,9223372036854775807}"),
            ("text[]", '{"a b",NULL,"",é}', '{"a b",NULL,"",é}'),
            ("text[]", "{}", "{}"),
            ("timestamptz", "2026-01-02 03:04:05.123456+00", "2026-01-02 03:04:05.123456+00"),
            ("interval", "00:00:01.5", "00:00:01.5"),
            ("bit(8)", "10110001", "10110001"),
            ("boolean", "true", "true"),
        ],
    )
    async def test_text_casts_round_trip(
        self, conformance: Conformance, cast: str, value: str | None, expected: str | None
    ) -> None:
        """A value that crosses as text and is cast on both sides comes back as Postgres writes it."""

        def script(conn: sa.Connection) -> Any:
            conn.execute(sa.text("SET LOCAL TimeZone = 'UTC'"))
            statement = sa.text(f"SELECT CAST(CAST(CAST(:value AS text) AS {cast}) AS text)")
            return conn.execute(statement, {"value": value}).scalar_one()

        assert await conformance.connected(script) == expected

    async def test_reads_native_values(self, conformance: Conformance) -> None:
        """Integers, text, booleans, bytes and times come back as Python's own; nothing else is read uncast."""
        statement = sa.text(
            "SELECT CAST(9223372036854775807 AS bigint), CAST(7 AS smallint), CAST('é' AS text), true,"
            " CAST('\\x00ff' AS bytea), CAST('2026-01-02T03:04:05.123456Z' AS timestamptz), NULL"
        )
        row = await conformance.connected(lambda conn: tuple(conn.execute(statement).one()))
        at = datetime.datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=datetime.UTC)
        assert (row[0], row[1], row[2], row[3], bytes(row[4]), row[5], row[6]) == (
            2**63 - 1,
            7,
            "é",
            True,
            b"\x00\xff",
            at,
            None,
        )

    async def test_integer_parameters(self, conformance: Conformance) -> None:
        """An integer crosses as an integer, whatever its size."""
        statement = sa.text("SELECT CAST(:small AS bigint), CAST(:large AS bigint), CAST(:none AS bigint)")
        values = {"small": 1, "large": -(2**63), "none": None}
        row = await conformance.connected(lambda conn: tuple(conn.execute(statement, values).one()))
        assert row == (1, -(2**63), None)

    async def test_same_statement_with_other_types_of_none(self, conformance: Conformance) -> None:
        """A parameter that is None once and text the next time is no surprise to a statement cache."""

        def script(conn: sa.Connection) -> list[Any]:
            statement = sa.text("SELECT CAST(CAST(:value AS text) AS jsonb) IS NULL")
            values = [None, "1", None, "{}"] * 3
            return [conn.execute(statement, {"value": value}).scalar_one() for value in values]

        assert await conformance.connected(script) == [True, False, True, False] * 3

    async def test_nul_character_is_refused(self, conformance: Conformance) -> None:
        """Postgres has no place for NUL in text; an adapter must say so rather than cut the text."""

        def script(conn: sa.Connection) -> None:
            with translating(conformance.driver):
                conn.execute(sa.text("SELECT CAST(:value AS text)"), {"value": "a\x00b"})

        with pytest.raises(DatabaseError):
            await conformance.connected(script)
        assert await conformance.connected(lambda conn: conn.execute(sa.text("SELECT 1")).scalar_one()) == 1
