"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

SETTLE_ROUNDS = 10
"""Rounds of the event loop that `advance` gives to each sleeper it wakes, so that it reaches its next wait."""


class FakeClock:
    """Stands in for `SystemClock`. Sleepers wake only through `advance()`, in order of time.

    Only sleeping is held: what really waits for a socket or a thread still does.
    """

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._began = now
        self._elapsed = 0.0
        self._numbers = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._someone_sleeps = asyncio.Event()

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        return self._began + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251  # gives way, as the real clock does
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._numbers), future))
        self._someone_sleeps.set()
        await future

    async def advance(self, seconds: float) -> None:
        """Move the clock; every sleeper due on the way wakes at its own time and runs until it waits again."""
        target = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, future = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, due)
            if not future.done():
                future.set_result(None)
                await _settle()
        self._elapsed = target
        await _settle()

    @property
    def sleeping(self) -> int:
        """How many sleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def until_sleeping(self, count: int = 1) -> None:
        """Wait until at least `count` sleep, so that a following `advance` is sure to meet them."""
        while self.sleeping < count:
            self._someone_sleeps.clear()
            await self._someone_sleeps.wait()


async def _settle() -> None:
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(0)  # noqa: TID251  # gives way to whoever was woken; no time passes
