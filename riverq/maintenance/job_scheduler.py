"""Moves scheduled and retryable jobs to `available` when they are due, and wakes the producers for them.

Every tick looks one interval ahead, so that a job becomes `available` *before* it is due and no tick has to fall on
its moment; the claim still waits for `scheduled_at`. Jobs due now are notified at once. For the others the leader
keeps a timer in memory and notifies when they fall due: without it they would wait for the next poll. How long that is,
the database says, since a notification that comes too early is in vain. The timers die with the leadership; then
polling finds those jobs, as it finds everything. A notification that fails, or is not answered, is left to polling too,
and holds up neither ticks nor other timers for longer than `NOTIFY_LIMIT`.

Two passes (`riverq.query.job_upkeep` says why): rows that cannot conflict in one statement, then the rows that enter
the unique index, in small batches. The second pass never holds up the first: a key that somebody's open transaction
holds waits for the next tick.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Iterable
from datetime import timedelta
from typing import Any

from riverq.database import Database
from riverq.errors import DatabaseError
from riverq.maintenance.base import MaintenanceService, MaintenanceTiming
from riverq.query.job_upkeep import UNIQUE_BATCH, Scheduled, job_schedule_plain, job_schedule_unique
from riverq.service import ServiceContext, TestSignal, Wakeup, within

NotifyQueues = Callable[[Collection[str]], Coroutine[Any, Any, None]]

SCHEDULER_INTERVAL = timedelta(seconds=5)
NOTIFY_LIMIT = 5.0
"""Seconds that a notification may take, the wait for a connection included."""
NOTIFY_GAP = 0.11
"""Seconds between two timed notifications of one queue: just over the insert limiter's cooldown, which would swallow
the second of two that are closer, and with it the jobs that fell due in between."""
GRAIN = 0.01
"""Seconds to which timers are kept, rounded up: ten thousand jobs of one queue due within 5 s need 500 of them."""


class DueTimers:
    """When which queue has jobs falling due, on the monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[str, set[int]] = {}
        self._last: dict[str, float] = {}

    def add(self, queue: str, at: float) -> None:
        """A job of `queue` falls due at `at`."""
        self._due.setdefault(queue, set()).add(math.ceil(at / GRAIN))

    def notified(self, queue: str, at: float) -> None:
        """`queue` was notified for another reason."""
        self._last[queue] = at

    def next(self) -> float | None:
        """When `take` has something to give, or None."""
        return min((self._ready_at(queue) for queue in self._due), default=None)

    def take(self, now: float) -> list[str]:
        """The queues to notify now; what they were due for is forgotten."""
        ready = [queue for queue in self._due if self._ready_at(queue) <= now]
        for queue in ready:
            self._last[queue] = now
            left = {due for due in self._due[queue] if due * GRAIN > now}
            if left:
                self._due[queue] = left
            else:
                del self._due[queue]
        return ready

    def clear(self) -> None:
        """Forget everything."""
        self._due.clear()
        self._last.clear()

    def _ready_at(self, queue: str) -> float:
        return max(min(self._due[queue]) * GRAIN, self._last.get(queue, -math.inf) + NOTIFY_GAP)


class JobScheduler(MaintenanceService):
    """Makes due jobs available, every 5 s and one interval ahead.

    `notify_queues` sends the insert notification for the given queues, through the client's limiter.
    """

    def __init__(
        self, ctx: ServiceContext, db: Database, notify_queues: NotifyQueues, timing: MaintenanceTiming | None = None
    ) -> None:
        super().__init__(ctx, db, timing or MaintenanceTiming(interval=SCHEDULER_INTERVAL))
        self.scheduled: TestSignal[list[Scheduled]] = TestSignal()
        self.discarded: TestSignal[list[int]] = TestSignal()
        self.notified_on_time: TestSignal[list[str]] = TestSignal()
        self._notify_queues = notify_queues
        self._timers = DueTimers()
        self._timers_changed = Wakeup(ctx)

    async def run(self) -> None:
        """Tick, with the timers beside it, until cancelled."""
        self._timers.clear()
        timers = asyncio.create_task(self._run_timers(), name="riverq.JobScheduler.timers")
        try:
            await super().run()
        finally:
            timers.cancel()
            await asyncio.wait([timers])

    async def run_once(self) -> None:
        """Both passes, until nothing is left that is due within the look-ahead."""
        try:
            await self.batches(self._schedule_plain)
        except DatabaseError:
            await self._schedule_unique()  # what ails one pass need not ail the other
            raise
        await self._schedule_unique()

    async def _schedule_plain(self, limit: int) -> int:
        moved = await self.query(job_schedule_plain, limit=limit, look_ahead=self.timing.interval)
        await self._tell(moved)
        return len(moved)

    async def _schedule_unique(self) -> None:
        passed_over: list[int] = []
        while True:
            found = await self.query(
                job_schedule_unique, limit=UNIQUE_BATCH, look_ahead=self.timing.interval, passed_over=passed_over
            )
            passed_over += found.deferred
            if found.discarded:
                self.ctx.log.info("%s: Discarded %d jobs whose unique key is taken", self.name, len(found.discarded))
                self.discarded.signal(found.discarded)
            await self._tell(found.scheduled)
            if found.examined < UNIQUE_BATCH:
                return
            await self.pause_between_batches()

    async def _tell(self, moved: list[Scheduled]) -> None:
        """Notify for what is due, set timers for the rest."""
        if not moved:
            return
        now = self.ctx.clock.monotonic()
        due_now = {each.queue for each in moved if each.due_now}
        for each in moved:
            if not each.due_now:
                self._timers.add(each.queue, now + each.due_in_us / 1e6)
        self._timers_changed.set()
        await self._notify(due_now)
        self.scheduled.signal(moved)

    async def _run_timers(self) -> None:
        while True:
            due = self._timers.next()
            now = self.ctx.clock.monotonic()
            if due is None or due > now:
                await self._timers_changed.sleep(self.timing.interval.total_seconds() if due is None else due - now)
                continue
            queues = self._timers.take(now)
            await self._notify(queues)
            self.notified_on_time.signal(queues)

    async def _notify(self, queues: Iterable[str]) -> None:
        """A notification that fails costs a poll interval; the jobs are available either way."""
        names = sorted(queues)
        if not names:
            return
        for name in names:
            self._timers.notified(name, self.ctx.clock.monotonic())
        try:
            await within(NOTIFY_LIMIT, f"{self.name}'s notification", self._notify_queues(names))
        except Exception as error:  # noqa: BLE001  # the timers must outlive it
            self.ctx.log.warning("%s: Could not notify, producers will poll: %s", self.name, error)
