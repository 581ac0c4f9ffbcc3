"""What riverq asks of a database adapter, and how an adapter is found.

The boundary is low on purpose. A query is a plain function of a SQLAlchemy `Connection`; an adapter only knows how to
connect well, to listen, to COPY, and to read its own exceptions. Adapters are found by entry point, group
`riverq.drivers`, under the name of the engine's `dialect.driver`, so anybody can publish one;
`riverq.testing.driver_suite` is the proof that it fits. What is the same in every adapter is beside this module:
`failures` (exceptions), `listening` and `threaded` (the life of a listener). See docs/internals/drivers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.errors import DriverError

AnyEngine = Engine | AsyncEngine
E = TypeVar("E", bound=AnyEngine)


@dataclass(frozen=True, slots=True)
class DriverCapabilities:
    """What an adapter can do: sync engines, async engines, LISTEN, COPY.

    `autocommit`: a statement with parameters is one exchange with the server, so it needs no transaction around it.
    Where an adapter parses in one exchange and executes in the next, a pooler in transaction mode may send the second
    to another server, which executes whatever statement was parsed there last.
    """

    sync: bool
    async_: bool
    listen: bool
    copy: bool
    autocommit: bool = True


@dataclass(frozen=True, slots=True)
class ServerCapabilities:
    """What the server can do, found once per engine.

    `listen_notify` and `xmax` are false on YugabyteDB, `returning_old` is true from Postgres 18 on.
    """

    version_num: int
    listen_notify: bool = True
    xmax: bool = True
    returning_old: bool = False


POSTGRES = ServerCapabilities(version_num=140000)
"""What every Postgres that riverq supports can do."""


class Notification(NamedTuple):
    """What a NOTIFY delivered."""

    channel: str
    payload: str


class Listener(Protocol):
    """One connection of its own that listens. Every method is for the event loop's thread.

    A connection that broke raises `UnavailableError` from whatever method notices first; the listener is then closed
    and a new one made. Nothing here retries.
    """

    async def connect(self) -> None:
        """Open the connection, outside any pool's count. Raises DatabaseError."""
        ...

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`, quoted here."""
        ...

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`."""
        ...

    async def wait(self, timeout: float) -> list[Notification]:
        """What arrived, as soon as anything did; empty after `timeout` seconds."""
        ...

    async def ping(self, timeout: float) -> None:
        """One round trip. Raises UnavailableError after `timeout` seconds, whatever the network does."""
        ...

    async def query(self, statement: str, timeout: float) -> str | None:
        """Run one statement without parameters, outside a transaction; the first column of its first row.

        The statement gives that column as text; None is NULL, or no row. What is set by it stays on the session. A
        statement that fails raises DatabaseError and leaves the connection usable; UnavailableError after `timeout`
        seconds, whatever the network does.
        """
        ...

    async def close(self) -> None:
        """Let the connection go. Never raises, never blocks for more than two seconds, may be called twice."""
        ...


class Driver(Protocol):
    """An adapter bound to one engine."""

    name: str
    capabilities: DriverCapabilities
    engine: AnyEngine

    def __init__(self, engine: AnyEngine) -> None: ...

    @classmethod
    def make_engine(cls, url: URL, *, asynchronous: bool, application_name: str, **engine_options: Any) -> AnyEngine:
        """An engine with the settings that work direct and behind PgBouncer in session and in transaction mode."""
        ...

    def listener(self, engine: AnyEngine) -> Listener:
        """A listener that takes its connection from `engine`'s pool and detaches it."""
        ...

    def copy_from(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[str | None]]
    ) -> int:
        """COPY `rows` of text values (None is NULL) into `table` (quoted by the caller), inside `conn`'s transaction.

        Returns the number of rows. Called on the sync face of the connection, in async engines under `run_sync`.
        Raises RiverqError, as `riverq.driver.failures.translate` makes it: SQLAlchemy wraps nothing here.
        """
        ...

    def fileno(self, connection: Any) -> int | None:
        """The descriptor of a connection's socket, from the adapter's own connection; None where it cannot be told.

        riverq shuts it down when a call on it hangs and nobody waits for the call any more. Without it an async call is
        cancelled instead, and a sync one hangs for as long as the system lets it.
        """
        ...

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE that the adapter's own exception carries, or None."""
        ...

    def is_disconnect(self, error: BaseException) -> bool:
        """Whether the adapter's own exception says that the connection is gone. Never reads what the server said."""
        ...


GROUP = "riverq.drivers"


def load_driver_class(name: str) -> type[Driver]:
    """The adapter called `name`. Raises DriverError with the extra to install."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise DriverError(f"no riverq driver is called {name!r} (use one of: {', '.join(sorted(found))})")
    try:
        driver: type[Driver] = found[name].load()
    except ModuleNotFoundError as error:
        raise DriverError(f"the driver {name} is not installed (pip install 'riverq[{name}]')") from error
    return driver


def load_driver(engine: AnyEngine) -> Driver:
    """The adapter for `engine`, by its `dialect.driver`. Raises DriverError with the extra to install."""
    name = engine.dialect.driver
    if engine.dialect.name != "postgresql":
        raise DriverError(
            f"riverq needs Postgres, got an engine for {engine.dialect.name} (use postgresql+psycopg://…)"
        )
    known = sorted(entry.name for entry in entry_points(group=GROUP))
    if name not in known:
        raise DriverError(
            f"no riverq driver for an engine of postgresql+{name} (use postgresql+ one of: {', '.join(known)}; "
            "for psycopg: pip install 'riverq[psycopg]')"
        )
    return load_driver_class(name)(engine)
