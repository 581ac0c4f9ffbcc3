"""The life of a listener, written once for every adapter.

An adapter supplies a `Wire`: open, listen, unlisten, ping, query, close, and `abort`, which breaks the connection now.
What is the same for all is here: one command at a time, a limit on each, and an end that comes whatever the network
does. A network that swallows packets answers nothing, neither a statement nor a cancellation nor a polite goodbye, so
the only thing that frees whoever waits is to break the connection from this side. No await here is ever cut short by
cancelling an adapter's statement: psycopg would send a cancel request into the same void first (it took 12 s).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from riverq.driver import Driver, Notification
from riverq.driver.failures import translate
from riverq.driver.inbox import Inbox
from riverq.errors import ConfigError, DatabaseError, RiverqError, UnavailableError, UsageError

T = TypeVar("T")

COMMAND_LIMIT = 10.0
"""Seconds that LISTEN and UNLISTEN may take; they need no lock and take a millisecond."""

POLITE_LIMIT = 1.0
"""Seconds that a goodbye may take before the connection is broken instead."""


def quoted(channel: str) -> str:
    """A channel name as an identifier of SQL."""
    return '"' + channel.replace('"', '""') + '"'


def _check_name(channel: str) -> None:
    # asyncpg would break its connection over one, pg8000 listen to the part before it.
    if "\x00" in channel:
        raise ConfigError(f"expected a channel name without NUL, got: {channel!r}")


class Wire(Protocol):
    """One adapter's connection that listens. The calls to it never overlap, `abort` excepted."""

    async def open(self, inbox: Inbox) -> None:
        """Connect; from then on put what is heard, and the end of the connection, into `inbox`."""
        ...

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`, given as it is."""
        ...

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`, given as it is."""
        ...

    async def ping(self) -> None:
        """One round trip."""
        ...

    async def query(self, statement: str) -> str | None:
        """Run one statement outside a transaction; its first value, which the statement gives as text."""
        ...

    def abort(self) -> None:
        """Break the connection now, so that whatever waits for it ends. May be called at any time."""
        ...

    async def close(self) -> None:
        """Say goodbye and free everything. May hang or raise: it is called under a limit, and `abort` follows."""
        ...


class WireListener:
    """A `riverq.driver.Listener` on a `Wire`."""

    def __init__(self, wire: Wire, driver: Driver) -> None:
        self._wire = wire
        self._driver = driver
        self._inbox: Inbox | None = None
        self._commands: set[asyncio.Task[Any]] = set()
        self._turn = asyncio.Lock()
        self._closed = False
        self._abandoned: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Open the connection, outside any pool's count. Raises DatabaseError."""
        if self._inbox is not None or self._closed:
            raise UsageError("cannot connect a listener twice (make a new one)")
        inbox = self._inbox = Inbox()
        opening = asyncio.ensure_future(self._wire.open(inbox))
        try:
            await asyncio.shield(
                opening
            )  # cut short, psycopg's async connect leaves an open connection to the collector
        except asyncio.CancelledError:
            self._closed = True
            inbox.fail(UnavailableError("the listener was never connected: connecting was cancelled"))
            self._abandoned = asyncio.create_task(self._close_once_open(opening))
            raise
        except Exception as error:
            self._closed = True
            told = self._translate(error)
            inbox.fail(told)
            raise told from error
        if self._closed:
            await self._shut()
            inbox.check()

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`, quoted here. Raises ConfigError for a name that Postgres cannot have."""
        _check_name(channel)
        await self._command(lambda: self._wire.listen(channel), COMMAND_LIMIT)

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`."""
        _check_name(channel)
        await self._command(lambda: self._wire.unlisten(channel), COMMAND_LIMIT)

    async def wait(self, timeout: float) -> list[Notification]:
        """What arrived, as soon as anything did; empty after `timeout` seconds."""
        return await self._opened().wait(timeout)

    async def ping(self, timeout: float) -> None:
        """One round trip. Raises UnavailableError after `timeout` seconds, whatever the network does."""
        await self._command(self._wire.ping, timeout)

    async def query(self, statement: str, timeout: float) -> str | None:
        """Run one statement without parameters, outside a transaction; its first value, which it gives as text."""
        return await self._command(lambda: self._wire.query(statement), timeout)

    async def close(self) -> None:
        """Let the connection go. Never raises, never blocks for more than two seconds, may be called twice."""
        if self._abandoned is not None:
            await asyncio.wait({self._abandoned}, timeout=POLITE_LIMIT)
        was_closed, self._closed = self._closed, True
        if self._inbox is None or was_closed:
            return
        self._inbox.fail(UnavailableError("the listener was closed"))
        end = asyncio.create_task(self._shut())
        try:
            await asyncio.wait({end}, timeout=POLITE_LIMIT)
        finally:
            if not end.done():
                self._wire.abort()
        await asyncio.wait({end, *self._commands}, timeout=POLITE_LIMIT / 2)
        end.cancel()

    async def _close_once_open(self, opening: asyncio.Future[None]) -> None:
        with suppress(Exception):
            await opening
            await self._wire.close()

    async def _shut(self) -> None:
        async with self._turn:
            with suppress(Exception):
                await self._wire.close()

    async def _command(self, run: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
        """Run one command in a task of its own, so that a caller that is cancelled does not cancel a statement."""
        inbox = self._opened()
        inbox.check()
        task = asyncio.create_task(self._in_turn(run))
        self._commands.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=limit)
        if not done:
            silence = UnavailableError(f"no answer from the database within {limit:g} s (network or server is gone)")
            inbox.fail(silence)
            self._wire.abort()
            raise silence
        try:
            return task.result()
        except Exception as error:
            told = self._translate(error)
            if isinstance(told, UnavailableError):
                inbox.fail(told)
            raise told from error

    async def _in_turn(self, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._turn:
            return await run()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._commands.discard(task)
        if not task.cancelled():
            task.exception()  # read, or asyncio complains of an exception that nobody asked for

    def _opened(self) -> Inbox:
        if self._inbox is None:
            raise UnavailableError("the listener is not connected (call connect first)")
        return self._inbox

    def _translate(self, error: Exception) -> DatabaseError:
        told: RiverqError = translate(error, self._driver)
        return told if isinstance(told, DatabaseError) else DatabaseError(str(told))
