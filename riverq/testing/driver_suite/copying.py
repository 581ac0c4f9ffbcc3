"""Conformance: COPY of awkward values, in the caller's transaction and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from riverq.errors import DatabaseError
from riverq.testing.driver_suite.case import Conformance

COLUMNS = ("id", "te xt", "js:n", "tags")
TABLE = '"we""ird :t"'
_CREATE = f'CREATE TEMPORARY TABLE {TABLE} (id bigint PRIMARY KEY, "te xt" text, "js:n" jsonb, tags text[])'

AWKWARD: tuple[str | None, ...] = (
    "",
    None,
    "\\N",
    "\\.",
    "tab\tnewline\nreturn\r\nend",
    "back\\slash \\t \\x41 \"quotes\" 'single'",
    "é 日本 🐍 \u2028 \x01 \x7f",
    "a,b;c|d",
    " leading and trailing ",
    "x" * 200_000,
)


def create(conn: sa.Connection) -> None:
    """The table to copy into, visible to this connection only."""
    conn.exec_driver_sql(_CREATE)
    conn.commit()


def stored(conn: sa.Connection) -> list[tuple[int, str | None]]:
    """The rows of the table."""
    table = sa.table("", sa.column("id"), sa.column("te xt"))
    table.name = 'we"ird :t'
    return [(row[0], row[1]) for row in conn.execute(sa.select(table).order_by("id"))]


def rows(texts: tuple[str | None, ...]) -> Iterator[tuple[str | None, ...]]:
    """One row for each text, as text."""
    return ((str(n), text, '{"a": "\\u00e9"}', '{"x y",NULL}') for n, text in enumerate(texts))


@pytest.mark.asyncio
class TestCopying:
    """`Driver.copy_from`."""

    @pytest.fixture(autouse=True)
    def _needs_copy(self, conformance: Conformance) -> None:
        if not conformance.driver.capabilities.copy:
            pytest.skip("this driver has no COPY")

    async def test_awkward_values_arrive_unchanged(self, conformance: Conformance) -> None:
        """Every text, NULL and the empty text included, is stored as it was given."""

        def script(conn: sa.Connection) -> tuple[int, list[tuple[int, str | None]]]:
            create(conn)
            count = conformance.driver.copy_from(conn, TABLE, COLUMNS, rows(AWKWARD))
            return count, stored(conn)

        count, found = await conformance.connected(script)
        assert count == len(AWKWARD)
        assert found == list(enumerate(AWKWARD))

    async def test_no_rows(self, conformance: Conformance) -> None:
        """COPY of nothing is nothing."""

        def script(conn: sa.Connection) -> tuple[int, list[tuple[int, str | None]]]:
            create(conn)
            return conformance.driver.copy_from(conn, TABLE, COLUMNS, []), stored(conn)

        assert await conformance.connected(script) == (0, [])

    async def test_many_rows(self, conformance: Conformance) -> None:
        """More than any buffer holds."""

        def script(conn: sa.Connection) -> tuple[int, int]:
            create(conn)
            count = conformance.driver.copy_from(conn, TABLE, COLUMNS, rows(("some text",) * 20_000))
            return count, len(stored(conn))

        assert await conformance.connected(script) == (20_000, 20_000)

    async def test_rollback_leaves_nothing(self, conformance: Conformance) -> None:
        """COPY as the very first statement of a transaction belongs to it all the same."""

        def script(conn: sa.Connection) -> list[tuple[int, str | None]]:
            create(conn)
            transaction = conn.begin()
            conformance.driver.copy_from(conn, TABLE, COLUMNS, rows(("a", "b")))
            transaction.rollback()
            return stored(conn)

        assert await conformance.connected(script) == []

    async def test_commit_keeps_it(self, conformance: Conformance) -> None:
        """And is committed with it."""

        def script(conn: sa.Connection) -> list[tuple[int, str | None]]:
            create(conn)
            with conn.begin():
                conformance.driver.copy_from(conn, TABLE, COLUMNS, rows(("a", "b")))
            return stored(conn)

        assert await conformance.connected(script) == [(0, "a"), (1, "b")]

    @pytest.mark.parametrize(
        ("broken", "sqlstate"),
        [
            (("1", "a", "{", "{}"), "22P02"),
            (("x", "a", "{}", "{}"), "22P02"),
            (("0", "a", "{}", "{}"), "23505"),
            (("2", "a", "{}"), "22P04"),
        ],
    )
    async def test_broken_copy_inside_a_savepoint(
        self, conformance: Conformance, broken: tuple[str, ...], sqlstate: str
    ) -> None:
        """The error has its SQLSTATE, and the transaction around the savepoint goes on."""

        def script(conn: sa.Connection) -> tuple[str | None, list[tuple[int, str | None]]]:
            create(conn)
            with conn.begin():
                conformance.driver.copy_from(conn, TABLE, COLUMNS, rows(("before",)))
                with pytest.raises(DatabaseError) as caught, conn.begin_nested():
                    conformance.driver.copy_from(conn, TABLE, COLUMNS, [broken])
                conformance.driver.copy_from(conn, TABLE, COLUMNS, [("7", "after", "{}", "{}")])
            return caught.value.sqlstate, stored(conn)

        assert await conformance.connected(script) == (sqlstate, [(0, "before"), (7, "after")])

    async def test_rows_that_raise(self, conformance: Conformance) -> None:
        """An error of the caller's while it makes the rows stores none of them, and is the caller's to see."""

        def broken_rows() -> Iterator[tuple[str | None, ...]]:
            yield ("1", "a", "{}", "{}")
            raise LookupError("no more rows")

        def script(conn: sa.Connection) -> list[tuple[int, str | None]]:
            create(conn)
            with conn.begin():
                with pytest.raises(LookupError), conn.begin_nested():
                    conformance.driver.copy_from(conn, TABLE, COLUMNS, broken_rows())
                conformance.driver.copy_from(conn, TABLE, COLUMNS, [("7", "after", "{}", "{}")])
            return stored(conn)

        assert await conformance.connected(script) == [(7, "after")]

    async def test_missing_table(self, conformance: Conformance) -> None:
        """The name of what is missing is in the message."""

        def script(conn: sa.Connection) -> None:
            conformance.driver.copy_from(conn, '"public"."no such table"', ("id",), [("1",)])

        with pytest.raises(DatabaseError, match="no such table") as caught:
            await conformance.connected(script)
        assert caught.value.sqlstate == "42P01"

    async def test_schema_qualified_table(self, conformance: Conformance) -> None:
        """A quoted schema before the table; the search_path decides nothing."""

        def script(conn: sa.Connection) -> list[int]:
            name = conformance.name
            conn.execute(sa.text(f'CREATE SCHEMA "{name}.A""b"'))
            conn.execute(sa.text(f'CREATE TABLE "{name}.A""b"."T.t" (id bigint)'))
            conformance.driver.copy_from(conn, f'"{name}.A""b"."T.t"', ("id",), [("1",), ("2",)])
            return list(conn.execute(sa.text(f'SELECT id FROM "{name}.A""b"."T.t" ORDER BY id')).scalars())

        assert await conformance.connected(script) == [1, 2]  # never committed, so nothing is left behind
