"""LISTEN on psycopg: one wire that blocks, and one for the event loop.

Both read libpq themselves (`pgconn`) instead of using `Connection.notifies()`. That generator holds the connection's
lock while it waits, so a LISTEN from another task waits for it (1.8 s of a wait of 2 s), and the async one polls.
Notifications that arrive during a statement come through the notify handler.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver import Notification
from riverq.driver.inbox import Inbox
from riverq.driver.listening import quoted
from riverq.driver.threaded import duplicate, shut
from riverq.errors import UnavailableError


def heard(pgconn: PGconn, encoding: str) -> Iterator[Notification]:
    """What libpq has received, without waiting. Raises psycopg.OperationalError when the connection ended."""
    pgconn.consume_input()
    while (notify := pgconn.notifies()) is not None:
        yield Notification(notify.relname.decode(encoding, "replace"), notify.extra.decode(encoding, "replace"))


def first_value(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any], encoding: str) -> str | None:
    """The first column of the first row as the server wrote it, whatever row factory and loaders the engine has."""
    result = cursor.pgresult
    if result is None or not result.ntuples:
        return None
    value = result.get_value(0, 0)
    return None if value is None else value.decode(encoding)


class SyncWire:
    """A blocking connection out of a sync engine's pool, for the listener's thread."""

    def __init__(self, engine: object) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"expected an Engine, got: {engine!r}")
        self._engine = engine
        self._raw: psycopg.Connection | None = None
        self._inbox: list[Notification] = []

    def open(self) -> None:
        """Take a connection out of the pool for good; the pool may open another in its place."""
        fairy = self._engine.raw_connection()
        raw = fairy.driver_connection  # before detach, which forgets it
        assert isinstance(raw, psycopg.Connection)
        fairy.detach()
        self._raw = raw
        raw.rollback()
        raw.autocommit = True
        raw.prepare_threshold = None
        raw.add_notify_handler(lambda n: self._inbox.append(Notification(n.channel, n.payload)))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection().fileno()

    def execute(self, statement: str) -> None:
        """Run a statement outside a transaction."""
        self._connection().execute(statement.encode())

    def query(self, statement: str) -> str | None:
        """The same, and its first value."""
        raw = self._connection()
        return first_value(raw.execute(statement.encode()), raw.info.encoding)

    def read(self, *, readable: bool) -> None:
        """Take in what arrived; libpq reads without blocking, so it is asked whether or not the socket is readable."""
        raw = self._connection()
        self._inbox.extend(heard(raw.pgconn, raw.info.encoding))

    def taken(self) -> list[Notification]:
        """What was heard since the last call."""
        taken, self._inbox = self._inbox, []
        return taken

    def close(self) -> None:
        """Let the connection go."""
        if self._raw is not None:
            self._raw.close()

    def _connection(self) -> psycopg.Connection:
        if self._raw is None:
            raise UnavailableError("the listener is not connected")
        return self._raw


class AsyncWire:
    """A connection out of an async engine's pool, read by the event loop.

    The loop watches a duplicate of the socket: psycopg registers the socket itself while it waits for a statement, and
    would take our registration away. While a statement runs nothing is watched; psycopg reads.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._raw: psycopg.AsyncConnection | None = None
        self._line: socket.socket | None = None

    async def open(self, inbox: Inbox) -> None:
        """Take a connection out of the pool for good; the pool may open another in its place."""
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()
        fairy = await self._engine.raw_connection()
        raw = fairy.driver_connection  # before detach, which forgets it
        assert isinstance(raw, psycopg.AsyncConnection)
        fairy.detach()
        try:
            await raw.rollback()
            await raw.set_autocommit(True)
            raw.prepare_threshold = None
            raw.add_notify_handler(lambda n: inbox.put([Notification(n.channel, n.payload)]))
            self._line = duplicate(raw.fileno())
        except BaseException:
            await raw.close()
            raise
        self._raw = raw
        self._watch()

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`."""
        await self._execute(f"LISTEN {quoted(channel)}")

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`."""
        await self._execute(f"UNLISTEN {quoted(channel)}")

    async def ping(self) -> None:
        """One round trip."""
        await self._execute("SELECT 1")

    async def query(self, statement: str) -> str | None:
        """Run one statement outside a transaction; its first value."""
        cursor = await self._execute(statement)
        return first_value(cursor, cursor.connection.info.encoding)

    def abort(self) -> None:
        """Break the connection now, which ends whatever waits for it."""
        shut(self._line)

    async def close(self) -> None:
        """Let the connection go; libpq says goodbye without waiting."""
        self._unwatch()
        if self._raw is not None:
            await self._raw.close()
        if self._line is not None:
            self._line.close()
            self._line = None

    async def _execute(self, statement: str) -> psycopg.AsyncCursor[Any]:
        if self._raw is None:
            raise UnavailableError("the listener is not connected")
        self._unwatch()
        try:
            return await self._raw.execute(statement.encode())
        finally:
            self._watch()

    def _watch(self) -> None:
        if self._line is not None and self._read():
            self._loop.add_reader(self._line, self._read)

    def _unwatch(self) -> None:
        if self._line is not None:
            self._loop.remove_reader(self._line)

    def _read(self) -> bool:
        """Hand over what libpq has received; False when the connection ended."""
        raw = self._raw
        if raw is None:
            return False
        try:
            self._inbox.put(heard(raw.pgconn, raw.info.encoding))
        except psycopg.Error as error:
            self._unwatch()
            failure = UnavailableError(f"the listener's connection ended: {error}")
            failure.__cause__ = error
            self._inbox.fail(failure)
            return False
        return True
