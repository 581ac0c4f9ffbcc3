"""riverq on pg8000, which has sync engines only and needs no C library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL

from riverq.driver import AnyEngine, DriverCapabilities, Listener
from riverq.driver.listening import WireListener
from riverq.driver.threaded import ThreadedWire
from riverq_pg8000.connect import make_engine
from riverq_pg8000.copy_from import copy_from
from riverq_pg8000.failures import is_disconnect, sqlstate
from riverq_pg8000.listen import Pg8000Wire

__all__ = ["Driver"]


class Driver:
    """The pg8000 adapter, bound to one engine of `postgresql+pg8000`."""

    name = "pg8000"
    # No autocommit: pg8000 parses, binds and executes in three exchanges. Behind PgBouncer in transaction mode another
    # client's statement was found bound to our parameters.
    capabilities = DriverCapabilities(sync=True, async_=False, listen=True, copy=True, autocommit=False)

    def __init__(self, engine: AnyEngine) -> None:
        self.engine = engine

    @classmethod
    def make_engine(cls, url: URL, *, asynchronous: bool, application_name: str, **engine_options: Any) -> AnyEngine:
        """An engine with the settings that work direct and behind PgBouncer in session and in transaction mode."""
        return make_engine(url, asynchronous=asynchronous, application_name=application_name, options=engine_options)

    def listener(self, engine: AnyEngine) -> Listener:
        """A listener that takes its connection from `engine`'s pool and detaches it."""
        return WireListener(ThreadedWire(Pg8000Wire(engine)), self)

    def copy_from(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
    ) -> int:
        """COPY `rows` of text values into `table` (quoted by the caller), inside `conn`'s transaction."""
        return copy_from(self, conn, table, columns, rows)

    def fileno(self, connection: Any) -> int | None:
        """The descriptor of a connection's socket."""
        return int(connection._usock.fileno())

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE of a pg8000 exception, or None."""
        return sqlstate(error)

    def is_disconnect(self, error: BaseException) -> bool:
        """Whether a pg8000 exception says that the connection is gone, or could not be made."""
        return is_disconnect(error)
