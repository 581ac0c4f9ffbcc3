"""Many wake-ups become few fetches.

Every trigger asks for one fetch. The first is granted at once; those that follow within the cooldown become a single
one at its end. An eager trigger is granted at once whatever the cooldown says: the producer uses it only where its last
claim came back full, when waiting would leave a backlog unworked. Time is the context's monotonic clock.

Triggers for later (`trigger_in`) are rounded up to `TIMER_STEP`, so that a thousand short retries share a few timers.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from riverq.service.context import ServiceContext
from riverq.worker.waiting import wait_first

TIMER_STEP = 0.1
"""Seconds."""


class FetchLimiter:
    """For one waiter, the producer's fetch loop. Triggers come from anywhere in the same event loop."""

    def __init__(self, ctx: ServiceContext, cooldown: timedelta) -> None:
        self._ctx = ctx
        self._cooldown = cooldown.total_seconds()
        self._triggered = asyncio.Event()
        self._changed = asyncio.Event()
        self._eager = False
        self._granted_at: float | None = None
        self._timers: dict[int, asyncio.Task[None]] = {}

    def trigger(self) -> None:
        """Ask for a fetch: now, or at the end of the cooldown."""
        self._triggered.set()

    def trigger_now(self) -> None:
        """Ask for a fetch without waiting for the cooldown."""
        self._eager = True
        self._changed.set()
        self._triggered.set()

    def trigger_in(self, wait: timedelta) -> None:
        """Ask for a fetch after `wait`, or a little later."""
        seconds = max(0.0, wait.total_seconds())
        step = int((self._ctx.clock.monotonic() + seconds) / TIMER_STEP) + 1
        if seconds == 0.0:
            self.trigger()
        elif step not in self._timers:
            self._timers[step] = asyncio.create_task(self._trigger_at(step), name="riverq.Producer.timer")

    def set_cooldown(self, cooldown: timedelta) -> None:
        """Another cooldown, for a fetch that waits for the present one's end too."""
        self._cooldown = cooldown.total_seconds()
        self._changed.set()

    async def wait(self) -> None:
        """Return when a fetch is due. All triggers so far are answered by it."""
        await self._triggered.wait()
        while not self._eager and (left := self._cooldown_left()) > 0:
            self._changed.clear()
            await wait_first(self._ctx, self._changed, left)
        self._triggered.clear()
        self._eager = False
        self._granted_at = self._ctx.clock.monotonic()

    def stop_timers(self) -> None:
        """Forget the triggers for later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _cooldown_left(self) -> float:
        if self._granted_at is None:
            return 0.0
        return self._granted_at + self._cooldown - self._ctx.clock.monotonic()

    async def _trigger_at(self, step: int) -> None:
        await self._ctx.clock.sleep(max(0.0, step * TIMER_STEP - self._ctx.clock.monotonic()))
        self._timers.pop(step, None)
        self.trigger()
