"""COPY through asyncpg, in the transaction that SQLAlchemy's connection is in.

SQLAlchemy begins asyncpg's transaction only with its first statement. A COPY that comes first would find none, commit
by itself, and survive the rollback, so a statement of SQLAlchemy's own is sent before it.

asyncpg's `copy_records_to_table` is binary and wants every value in its Python type; our values are text, which only
the server can turn into a column's type. So the text format is written here and given to asyncpg as bytes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from riverq.driver import Driver
from riverq.driver.copy_text import chunks
from riverq.driver.failures import translate

_IDENTIFIER = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def copy_from(
    driver: Driver, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
) -> int:
    """COPY `rows` into `table`; returns how many. Raises RiverqError: SQLAlchemy wraps nothing here."""
    raw = conn.connection.driver_connection
    if not isinstance(raw, asyncpg.Connection):
        raise TypeError(f"expected a connection of asyncpg, got: {raw!r}")
    if not raw.is_in_transaction():
        conn.exec_driver_sql("SELECT 1")
    try:
        return await_only(_copy(raw, _parts(table), columns, rows))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error, driver) from error


async def _copy(
    raw: asyncpg.Connection[asyncpg.Record],
    parts: list[str],
    columns: Sequence[str],
    rows: Iterable[Sequence[str | None]],
) -> int:
    schema = parts[0] if len(parts) > 1 else None
    status = await raw.copy_to_table(parts[-1], schema_name=schema, columns=columns, source=_stream(rows))
    return int(status.rpartition(" ")[2])


async def _stream(rows: Iterable[Sequence[str | None]]) -> AsyncIterator[bytes]:
    for chunk in chunks(rows):
        yield chunk


def _parts(table: str) -> list[str]:
    """The names in a table written as SQL; asyncpg quotes them itself."""
    return [quoted.replace('""', '"') or bare for quoted, bare in _IDENTIFIER.findall(table)]
