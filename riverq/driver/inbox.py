"""Where notifications wait between the connection that hears them and the task that asks for them.

A connection hears whenever it likes; the notifier asks when it is ready. The inbox also keeps the first failure, so
that whoever asks next learns of it, and nobody learns of it before what arrived earlier was handed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from riverq.driver import Notification
from riverq.errors import DatabaseError, UnavailableError

MOST_WAITING = 100_000


class Inbox:
    """Nothing is dropped one by one: a notification that was is a job that waits for the next poll.

    Where more wait than a loop can be late for, all are dropped and the connection counts as failed: whoever connects
    anew reads the tables, which say everything. Every method is for the event loop's thread.
    """

    def __init__(self) -> None:
        self._overflowed = False
        self._arrived: list[Notification] = []
        self._failure: DatabaseError | None = None
        self._change = asyncio.Event()

    def put(self, notifications: Iterable[Notification]) -> None:
        """Hand over what was heard."""
        if self._overflowed:
            return
        self._arrived.extend(notifications)
        if len(self._arrived) > MOST_WAITING:
            self._overflowed = True
            self._arrived.clear()
            self.fail(UnavailableError(f"more than {MOST_WAITING} notifications waited unheard (connect anew)"))
        if self._arrived:
            self._change.set()

    def fail(self, failure: DatabaseError) -> None:
        """The connection is of no use any more. The first failure is the one that counts."""
        if self._failure is None:
            self._failure = failure
        self._change.set()

    def check(self) -> None:
        """Raise UnavailableError if the connection failed."""
        if self._failure is not None:
            raise UnavailableError(str(self._failure), self._failure.sqlstate) from self._failure

    async def wait(self, timeout: float) -> list[Notification]:
        """What arrived, at once if anything did, empty after `timeout` seconds. Raises UnavailableError."""
        if not self._arrived:
            self.check()
            self._change.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._change.wait()
            except TimeoutError:
                return []
        if not self._arrived:
            self.check()
        arrived, self._arrived = self._arrived, []
        return arrived
