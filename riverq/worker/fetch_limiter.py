"""Many wake-ups become few fetches.

Every trigger asks for one fetch. The first is granted at once; those that follow within the cooldown become a single
one at its end. An eager trigger is granted at once whatever the cooldown says: the producer uses it only where its last
claim came back full, when waiting would leave a backlog unworked. Time is the context's monotonic clock.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from riverq.service.context import ServiceContext
from riverq.worker.waiting import wait_first


class FetchLimiter:
    """For one waiter, the producer's fetch loop. Triggers come from anywhere in the same event loop."""

    def __init__(self, ctx: ServiceContext, cooldown: timedelta) -> None:
        self._ctx = ctx
        self._cooldown = cooldown.total_seconds()
        self._triggered = asyncio.Event()
        self._eager = asyncio.Event()
        self._granted_at: float | None = None

    def trigger(self) -> None:
        """Ask for a fetch: now, or at the end of the cooldown."""
        self._triggered.set()

    def trigger_now(self) -> None:
        """Ask for a fetch without waiting for the cooldown."""
        self._eager.set()
        self._triggered.set()

    async def wait(self) -> None:
        """Return when a fetch is due. All triggers so far are answered by it."""
        await self._triggered.wait()
        left = self._cooldown_left()
        if left > 0 and not self._eager.is_set():
            await wait_first(self._ctx, self._eager, left)
        self._triggered.clear()
        self._eager.clear()
        self._granted_at = self._ctx.clock.monotonic()

    def _cooldown_left(self) -> float:
        if self._granted_at is None:
            return 0.0
        return self._granted_at + self._cooldown - self._ctx.clock.monotonic()
