"""COPY through psycopg, in the transaction that SQLAlchemy's connection is in.

psycopg begins the transaction itself before its first statement, COPY included, so COPY may come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from riverq.driver import Driver
from riverq.driver.failures import translate
from riverq.driver.listening import quoted


def copy_from(
    driver: Driver, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
) -> int:
    """COPY `rows` into `table`; returns how many. Raises RiverqError: SQLAlchemy wraps nothing here."""
    raw = conn.connection.driver_connection
    statement = f"COPY {table} ({', '.join(map(quoted, columns))}) FROM STDIN"
    try:
        if isinstance(raw, psycopg.AsyncConnection):
            return await_only(_copy_async(raw, statement, rows))
        if isinstance(raw, psycopg.Connection):
            return _copy(raw, statement, rows)
    except psycopg.Error as error:
        raise translate(error, driver) from error
    raise TypeError(f"expected a connection of psycopg, got: {raw!r}")


def _copy(raw: psycopg.Connection, statement: str, rows: Iterable[Sequence[str | None]]) -> int:
    count = 0
    with raw.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count


async def _copy_async(raw: psycopg.AsyncConnection, statement: str, rows: Iterable[Sequence[str | None]]) -> int:
    count = 0
    async with raw.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for row in rows:
            await copy.write_row(row)
            count += 1
    return count
