"""A sleep that somebody else may end early."""

from __future__ import annotations

import asyncio

from riverq.service.context import ServiceContext


class Wakeup:
    """One sleeper, any number of wakers. A `set()` while nobody sleeps ends the next sleep at once.

    For one event loop; wake it from another thread with `loop.call_soon_threadsafe(wakeup.set)`.
    """

    def __init__(self, ctx: ServiceContext) -> None:
        self._clock = ctx.clock
        self._event = asyncio.Event()

    def set(self) -> None:
        """End the present sleep, or the next one."""
        self._event.set()

    def clear(self) -> None:
        """Forget a `set()` that nobody has slept through yet."""
        self._event.clear()

    async def sleep(self, seconds: float) -> bool:
        """Sleep for `seconds` of the context's clock; True if woken before."""
        if not self._event.is_set():
            racers = {asyncio.create_task(self._clock.sleep(seconds)), asyncio.create_task(self._event.wait())}
            try:
                await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for racer in racers:
                    racer.cancel()
                await asyncio.wait(racers)
        woken = self._event.is_set()
        self._event.clear()
        return woken
