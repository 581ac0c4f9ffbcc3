"""LISTEN on asyncpg, which calls back for every notification and when the connection ends.

Without the termination listener nothing is raised or called when the server goes away; `is_closed()` merely turns true.
"""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver import AnyEngine, Notification
from riverq.driver.inbox import Inbox
from riverq.errors import DriverError, UnavailableError

GOODBYE_LIMIT = 0.8
"""Seconds that asyncpg may wait for the server's answer to its goodbye."""


class AsyncpgWire:
    """A connection out of an async engine's pool."""

    def __init__(self, engine: AnyEngine) -> None:
        if not isinstance(engine, AsyncEngine):
            raise DriverError(f"driver asyncpg listens on an AsyncEngine only, got: {engine!r}")
        self._engine = engine
        self._raw: asyncpg.Connection[asyncpg.Record] | None = None

    async def open(self, inbox: Inbox) -> None:
        """Take a connection out of the pool for good; the pool may open another in its place."""
        self._inbox = inbox
        fairy = await self._engine.raw_connection()
        raw = fairy.driver_connection  # before detach, which forgets it
        assert isinstance(raw, asyncpg.Connection)
        fairy.detach()
        raw.add_termination_listener(self._terminated)
        self._raw = raw

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`; asyncpg quotes it."""
        await self._connection().add_listener(channel, self._notified)

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`; asyncpg quotes it."""
        await self._connection().remove_listener(channel, self._notified)

    async def ping(self) -> None:
        """One round trip."""
        await self._connection().execute("SELECT 1")

    async def query(self, statement: str) -> str | None:
        """Run one statement outside a transaction; its first value."""
        value = await self._connection().fetchval(statement)
        return None if value is None else str(value)

    def abort(self) -> None:
        """Break the connection now; asyncpg fails whatever waits for it."""
        if self._raw is not None:
            self._raw.terminate()

    async def close(self) -> None:
        """Say goodbye; asyncpg waits for the server to close, so it is given a limit, and then the line is cut."""
        if self._raw is None:
            return
        self._raw.remove_termination_listener(self._terminated)
        try:
            await self._raw.close(timeout=GOODBYE_LIMIT)
        finally:
            self._raw.terminate()

    def _connection(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._raw is None:
            raise UnavailableError("the listener is not connected")
        return self._raw

    def _notified(self, _conn: Any, _pid: int, channel: str, payload: object) -> None:
        self._inbox.put([Notification(channel, str(payload))])

    def _terminated(self, _conn: Any) -> None:
        self._inbox.fail(UnavailableError("the listener's connection ended"))
