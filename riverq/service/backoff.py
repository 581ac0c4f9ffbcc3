"""Waits that grow while something keeps failing, with jitter so that a fleet does not come back in step."""

from __future__ import annotations

from riverq.service.context import ServiceContext


class Backoff:
    """`first` seconds, doubled after each failure, at most `cap`, each ±10 %.

    With `first=0.1` and `cap=5`: 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5 … Unlike a job's retry curve it starts small and
    ends early: a database that is back should be used at once.
    """

    def __init__(self, ctx: ServiceContext, *, first: float, cap: float) -> None:
        self._ctx = ctx
        self._first = first
        self.cap = cap
        self.failures = 0

    def next(self) -> float:
        """The next wait in seconds; counts one failure."""
        wait = min(self.cap, self._first * 2.0 ** min(self.failures, 62))
        self.failures += 1
        return wait * self._ctx.rng.uniform(0.9, 1.1)

    async def sleep(self) -> None:
        """Wait for `next()`."""
        await self._ctx.clock.sleep(self.next())

    def reset(self) -> None:
        """It worked: the next failure waits `first` again."""
        self.failures = 0
