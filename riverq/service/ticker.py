"""Ticks at once, then every interval."""

from __future__ import annotations

from datetime import timedelta

from riverq.service.context import ServiceContext


class Ticker:
    """`async for _ in Ticker(…)`: at once, then `interval` after the last tick began, plus up to `jitter`.

    `stagger` delays the first tick by a random part of itself, so that services started together do not run together.
    A tick that takes longer than the interval is followed at once by the next, never by several.

    A plain iterator and no generator: a loop left by cancellation leaves nothing behind that must be closed.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        interval: timedelta,
        *,
        jitter: timedelta = timedelta(0),
        stagger: timedelta = timedelta(0),
    ) -> None:
        self._ctx = ctx
        self._interval = interval.total_seconds()
        self._jitter = jitter.total_seconds()
        self._stagger = stagger.total_seconds()
        self._began: float | None = None

    def __aiter__(self) -> Ticker:
        self._began = None
        return self

    async def __anext__(self) -> None:
        if self._began is not None:
            due = self._began + self._interval + self._ctx.rng.uniform(0, self._jitter)
            await self._ctx.clock.sleep(max(0.0, due - self._ctx.clock.monotonic()))
        elif self._stagger:
            await self._ctx.clock.sleep(self._ctx.rng.uniform(0, self._stagger))
        self._began = self._ctx.clock.monotonic()
