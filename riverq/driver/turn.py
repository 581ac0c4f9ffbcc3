"""One call on a connection of an async engine, which outlives the caller that gives up.

An adapter that is cancelled in the middle of a statement sends a cancel request, and that is nothing for every day: it
ends PgBouncer 1.18 to 1.20 for all who use it, it costs the connection, and it comes too late for what has just been
committed. So a call runs in a task of its own. When its caller is cancelled, the call is left to end, and what is in a
transaction is rolled back; only a call that has not ended a moment later is `cut`.

States: opening → at work → closing. Opening and closing are never cut short, which would leave a connection open for
ever. A caller that gave up during the opening has its connection closed as soon as it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

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


class Turn(Generic[T]):
    """A call and its task; made, and cut, in the event loop."""

    def __init__(self, engine: AsyncEngine, caller: Caller, work: Callable[[Connection], T]) -> None:
        self._engine = engine
        self._caller = caller
        self._work = work
        self._is_at_work = False
        self.task = asyncio.create_task(self._run(), name="riverq.Database.turn")

    async def _run(self) -> T:
        conn = self._engine.connect()
        await conn.start()
        try:
            self._caller.check()
            self._is_at_work = True
            try:
                return await conn.run_sync(self._work)
            finally:
                self._is_at_work = False
        finally:
            await conn.close()

    def cut(self) -> None:
        """Cancel the statement under way; a connection that is only being opened is closed once it is open."""
        self._caller.is_gone = True
        if self._is_at_work:
            self.task.cancel()
