"""COPY through pg8000, in the transaction that SQLAlchemy's connection is in.

pg8000's cursor begins the transaction itself before its first statement, COPY included, so COPY may come first. It
takes the data as a stream of bytes in COPY's text format, which is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pg8000.exceptions import Error
from sqlalchemy import Connection

from riverq.driver import Driver
from riverq.driver.copy_text import chunks
from riverq.driver.failures import translate
from riverq.driver.listening import quoted


def copy_from(
    driver: Driver, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
) -> int:
    """COPY `rows` into `table`; returns how many. Raises RiverqError: SQLAlchemy wraps nothing here."""
    # What `rows` raises must be raised before COPY begins: pg8000 has no way to end one half-way.
    data = list(chunks(rows))
    raw = conn.connection.driver_connection
    assert raw is not None
    cursor = raw.cursor()
    try:
        cursor.execute(f"COPY {table} ({', '.join(map(quoted, columns))}) FROM STDIN", stream=_Pieces(data))
        return int(cursor.rowcount)
    except (Error, OSError) as error:
        raise translate(error, driver) from error
    finally:
        cursor.close()


class _Pieces:
    """An iterable of bytes; pg8000 sends each piece as a message of its own."""

    def __init__(self, data: list[bytes]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._data)
