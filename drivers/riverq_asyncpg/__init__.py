"""riverq on asyncpg, which has async engines only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL

from riverq.driver import AnyEngine, DriverCapabilities, Listener
from riverq.driver.listening import WireListener
from riverq_asyncpg.connect import make_engine
from riverq_asyncpg.copy_from import copy_from
from riverq_asyncpg.failures import is_disconnect, sqlstate
from riverq_asyncpg.listen import AsyncpgWire

__all__ = ["Driver"]


class Driver:
    """The asyncpg adapter, bound to one engine of `postgresql+asyncpg`."""

    name = "asyncpg"
    capabilities = DriverCapabilities(sync=False, async_=True, listen=True, copy=True)

    def __init__(self, engine: AnyEngine) -> None:
        self.engine = engine

    @classmethod
    def make_engine(cls, url: URL, *, asynchronous: bool, application_name: str, **engine_options: Any) -> AnyEngine:
        """An engine with the settings that work direct and behind PgBouncer in session and in transaction mode."""
        return make_engine(url, asynchronous=asynchronous, application_name=application_name, options=engine_options)

    def listener(self, engine: AnyEngine) -> Listener:
        """A listener that takes its connection from `engine`'s pool and detaches it."""
        return WireListener(AsyncpgWire(engine), self)

    def copy_from(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
    ) -> int:
        """COPY `rows` of text values into `table` (quoted by the caller), inside `conn`'s transaction."""
        return copy_from(self, conn, table, columns, rows)

    def fileno(self, connection: Any) -> int | None:
        """The descriptor of a connection's socket."""
        return -1 if connection.is_closed() else int(connection._transport.get_extra_info("socket").fileno())

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE of an asyncpg exception, plain or as SQLAlchemy re-raises it, or None."""
        return sqlstate(error)

    def is_disconnect(self, error: BaseException) -> bool:
        """Whether an asyncpg exception says that the connection is gone, or could not be made."""
        return is_disconnect(error)
