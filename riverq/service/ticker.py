"""Ticks at once, then every interval."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

from riverq.service.context import ServiceContext


class Ticker:
    """`async for _ in Ticker(…)`: at once, then `interval` after the last tick began, plus up to `jitter`.

    `stagger` delays the first tick by a random part of itself, so that services started together do not run together.
    A tick that takes longer than the interval is followed at once by the next, never by several.
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

    async def __aiter__(self) -> AsyncIterator[None]:
        if self._stagger:
            await self._ctx.clock.sleep(self._ctx.rng.uniform(0, self._stagger))
        while True:
            began = self._ctx.clock.monotonic()
            yield
            due = began + self._interval + self._ctx.rng.uniform(0, self._jitter)
            await self._ctx.clock.sleep(max(0.0, due - self._ctx.clock.monotonic()))
