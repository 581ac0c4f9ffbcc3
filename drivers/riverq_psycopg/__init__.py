"""riverq on psycopg 3, sync and async engines alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver import AnyEngine, DriverCapabilities, Listener
from riverq.driver.listening import WireListener
from riverq.driver.threaded import ThreadedWire
from riverq_psycopg.connect import make_engine
from riverq_psycopg.copy_from import copy_from
from riverq_psycopg.failures import is_disconnect, sqlstate
from riverq_psycopg.listen import AsyncWire, SyncWire

__all__ = ["Driver"]


class Driver:
    """The psycopg adapter, bound to one engine of `postgresql+psycopg`."""

    name = "psycopg"
    capabilities = DriverCapabilities(sync=True, async_=True, listen=True, copy=True)

    def __init__(self, engine: AnyEngine) -> None:
        self.engine = engine

    @classmethod
    def make_engine(cls, url: URL, *, asynchronous: bool, application_name: str, **engine_options: Any) -> AnyEngine:
        """An engine with the settings that work direct and behind PgBouncer in session and in transaction mode."""
        return make_engine(url, asynchronous=asynchronous, application_name=application_name, options=engine_options)

    def listener(self, engine: AnyEngine) -> Listener:
        """A listener that takes its connection from `engine`'s pool and detaches it."""
        wire = AsyncWire(engine) if isinstance(engine, AsyncEngine) else ThreadedWire(SyncWire(engine))
        return WireListener(wire, self)

    def copy_from(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
    ) -> int:
        """COPY `rows` of text values into `table` (quoted by the caller), inside `conn`'s transaction."""
        return copy_from(self, conn, table, columns, rows)

    def fileno(self, connection: Any) -> int | None:
        """The descriptor of a connection's socket."""
        return int(connection.fileno())

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE of a psycopg exception, or None."""
        return sqlstate(error)

    def is_disconnect(self, error: BaseException) -> bool:
        """Whether a psycopg exception says that the connection is gone, or could not be made."""
        return is_disconnect(error)
