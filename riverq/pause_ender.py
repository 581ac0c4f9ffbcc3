"""Resumes queues whose pause had an end. Every working client of riverq's runs one, the leader or not.

A pause with an end is a row beside the queue's (`riverq.query.queue`). This service sleeps until the first of them is
over, looks again at least every `interval` and whenever a pause is heard of, and resumes what is due. The database's
clock decides what is due; this machine's clock only measures the sleep.

**Many at once.** All clients wake for the same end. Each locks the queues that it resumes and passes over those that
somebody else has locked, so they neither wait for each other nor notify twice; jitter keeps most of them from trying.

**The connection dies exactly here.** Resuming, dropping the intention and the notification are one transaction. Before
its commit nothing happened, and the next look, by whichever client, does it; after it there is nothing left to do. A
queue whose row somebody holds locked is tried again shortly.

While no riverq client works, nobody resumes: clients in other languages do not know of ends.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from riverq.database import Database
from riverq.errors import RiverqError
from riverq.notification import Topic, parse_control
from riverq.notifier import Notifier
from riverq.query.queue import queue_end_pauses, queue_next_pause_end
from riverq.service import Service, ServiceContext, TestSignal, Wakeup

INTERVAL = timedelta(seconds=10)
JITTER = 0.2
"""Seconds, at random, after the moment at which a pause ends."""
AGAIN = 0.5
"""Seconds until what is due but was locked by somebody is tried again."""


class PauseEnder(Service):
    """Ends pauses in time. `notifier` may be None; then a new end is seen at the next look."""

    def __init__(
        self, ctx: ServiceContext, db: Database, notifier: Notifier | None, interval: timedelta = INTERVAL
    ) -> None:
        super().__init__(ctx)
        self.interval = interval
        self.looked: TestSignal[timedelta | None] = TestSignal()
        self.resumed: TestSignal[list[str]] = TestSignal()
        self.failed: TestSignal[RiverqError] = TestSignal()
        self._db = db
        self._notifier = notifier
        self._wakeup = Wakeup(ctx)

    async def run(self) -> None:
        """Look, end what is over, and sleep, until cancelled."""
        unsubscribe: Callable[[], None] | None = None
        if self._notifier is not None:
            unsubscribe = self._notifier.subscribe(Topic.CONTROL, self._heard, on_gap=self._wakeup.set)
        try:
            while True:
                await self._wakeup.sleep(await self._look())
        finally:
            if unsubscribe is not None:
                unsubscribe()

    async def _look(self) -> float:
        """End what is due, and say how many seconds to sleep."""
        longest = self.interval.total_seconds() * self.ctx.rng.uniform(0.9, 1.1)
        try:
            left = await self._db.run_single(queue_next_pause_end)
            if left is not None and left <= timedelta(0):
                await self._end()
                left = await self._db.run_single(queue_next_pause_end)
        except RiverqError as error:
            self.ctx.log.warning("%s: Could not look for pauses that are over: %s", self.name, error)
            self.failed.signal(error)
            return longest
        self.looked.signal(left)
        if left is None:
            return longest
        due_in = left.total_seconds() if left > timedelta(0) else AGAIN
        return min(longest, due_in + self.ctx.rng.uniform(0, JITTER))

    async def _end(self) -> None:
        ended = await self._db.run(queue_end_pauses)
        for name in ended.resumed:
            self.ctx.log.info("%s: Resumed, as the pause is over (queue=%s)", self.name, name)
        for name in ended.void:
            self.ctx.log.debug("%s: Dropped the end of a pause that was changed since (queue=%s)", self.name, name)
        self.resumed.signal(ended.resumed)

    def _heard(self, payload: str) -> None:
        control = parse_control(payload)
        if control is not None and control.action == "pause":
            self._wakeup.set()
