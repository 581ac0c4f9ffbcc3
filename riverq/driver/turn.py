"""One call on a connection of an async engine, which outlives the caller that gives up.

An adapter that is cancelled in the middle of a statement sends a cancel request, and that is nothing for every day: it
ends PgBouncer 1.18 to 1.20 for all who use it, in two ways, it costs the connection, and it comes too late for what has
just been committed. So a call runs in a task of its own. When its caller is cancelled, the call is left to end, and
what is in a transaction is rolled back. A call that has not ended a moment later is `cut`: its connection's socket is
shut (`line`), which no adapter answers with a cancel request.

States: opening → at work → closing. Opening and closing are never cut short, which would leave a connection open for
ever. A connection whose caller gave up during the opening goes back to the pool as soon as it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver.line import Line

T = TypeVar("T")


class CallerGoneError(Exception):
    """Nobody waits for this call any more. It ends the call's transaction, and nobody sees it."""


class Caller:
    """Whether somebody still waits for a call. Read by the call, perhaps on another thread."""

    def __init__(self) -> None:
        self.is_gone = False

    def check(self) -> None:
        """Raise CallerGoneError if nobody waits any more."""
        if self.is_gone:
            raise CallerGoneError


class Held:
    """Slots that a call has until it has ended."""

    def __init__(self, *slots: asyncio.Semaphore) -> None:
        self._wanted = slots
        self._taken: list[asyncio.Semaphore] = []

    async def take(self) -> None:
        """Wait for one after the other."""
        try:
            for slot in self._wanted:
                await slot.acquire()
                self._taken.append(slot)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give back what was taken."""
        while self._taken:
            self._taken.pop().release()


class Turn(Generic[T]):
    """A call and its task; made, and cut, in the event loop. `fileno` is the driver's."""

    def __init__(
        self,
        engine: AsyncEngine,
        caller: Caller,
        work: Callable[[Connection], T],
        fileno: Callable[[Any], int | None],
    ) -> None:
        self._engine = engine
        self._caller = caller
        self._work = work
        self._fileno = fileno
        self.is_last = False
        """Set once the engine was disposed of: the pool to which the connection would go back is nobody's any more."""
        self._at_work: Connection | None = None
        self.task = asyncio.create_task(self._run(), name="riverq.Database.turn")

    async def _run(self) -> T:
        conn = self._engine.connect()
        await conn.start()
        try:
            self._caller.check()
            self._at_work = conn.sync_connection
            try:
                return await conn.run_sync(self._work)
            finally:
                self._at_work = None
        finally:
            if self.is_last:
                await conn.invalidate()
            await conn.close()

    @property
    def was_dropped(self) -> bool:
        """Whether the task, which is done, has not done its work: cut before it, or cancelled by the adapter itself."""
        return self.task.cancelled() or isinstance(self.task.exception(), CallerGoneError)

    def cut(self) -> None:
        """End the statement under way; on a connection that is only being opened none will be sent."""
        self._caller.is_gone = True
        conn = self._at_work
        if conn is None or conn.invalidated:
            return
        try:
            fd = self._fileno(conn.connection.driver_connection)
        except Exception:  # noqa: BLE001  # each adapter its own: the connection is closed, and the call about to end
            return
        if fd is None:
            self.task.cancel()
        elif fd >= 0:
            line = Line()
            with suppress(OSError):
                line.hold(fd)
                line.cut()
            line.let_go()
