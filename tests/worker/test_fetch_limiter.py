from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from riverq.worker.fetch_limiter import FetchLimiter


class Counter:
    """A loop around `wait`, as the producer has it."""

    def __init__(self, limiter: FetchLimiter) -> None:
        self.limiter = limiter
        self.granted = 0
        self.task = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            await self.limiter.wait()
            self.granted += 1

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def limiter(held_ctx: ServiceContext) -> FetchLimiter:
    return FetchLimiter(held_ctx, timedelta(milliseconds=100))


async def test_the_first_trigger_is_granted_at_once_and_the_next_ones_together(
    limiter: FetchLimiter, held_clock: FakeClock
) -> None:
    counter = Counter(limiter)
    await settle()
    assert counter.granted == 0
    limiter.trigger()
    await settle()
    assert counter.granted == 1
    for _ in range(5):
        limiter.trigger()
        await settle()
    await held_clock.advance(0.099)
    assert counter.granted == 1
    await held_clock.advance(0.002)
    await settle()
    assert counter.granted == 2
    await held_clock.advance(10)
    assert counter.granted == 2
    await counter.end()


async def test_after_a_quiet_time_a_trigger_is_granted_at_once(limiter: FetchLimiter, held_clock: FakeClock) -> None:
    counter = Counter(limiter)
    limiter.trigger()
    await settle()
    await held_clock.advance(1)
    limiter.trigger()
    await settle()
    assert counter.granted == 2
    await counter.end()


async def test_an_eager_trigger_does_not_wait_for_the_cooldown(limiter: FetchLimiter, held_clock: FakeClock) -> None:
    counter = Counter(limiter)
    limiter.trigger()
    await settle()
    limiter.trigger()
    await settle()
    assert counter.granted == 1
    limiter.trigger_now()
    await settle()
    assert counter.granted == 2
    assert held_clock.monotonic() == 0
    limiter.trigger()
    await settle()
    assert counter.granted == 2
    await counter.end()


async def test_a_shorter_cooldown_holds_for_a_fetch_that_waits(limiter: FetchLimiter, held_clock: FakeClock) -> None:
    limiter.set_cooldown(timedelta(hours=1))
    counter = Counter(limiter)
    limiter.trigger()
    await settle()
    limiter.trigger()
    await held_clock.until_sleeping()
    await held_clock.advance(1)
    assert counter.granted == 1
    limiter.set_cooldown(timedelta(seconds=2))
    await held_clock.until_sleeping()
    assert counter.granted == 1
    await held_clock.advance(1.1)
    await settle()
    assert counter.granted == 2
    await counter.end()


async def test_triggers_for_later_share_timers_and_can_be_forgotten(
    limiter: FetchLimiter, held_clock: FakeClock
) -> None:
    counter = Counter(limiter)
    for number in range(1000):
        limiter.trigger_in(timedelta(milliseconds=2000 + number / 20))
    await held_clock.until_sleeping()
    assert held_clock.sleeping <= 2
    await held_clock.advance(1.9)
    assert counter.granted == 0
    await held_clock.advance(0.4)
    await settle()
    assert 1 <= counter.granted <= 2
    before = counter.granted
    limiter.trigger_in(timedelta(seconds=3))
    limiter.stop_timers()
    await held_clock.advance(10)
    await settle()
    assert counter.granted == before
    limiter.trigger_in(timedelta(0))
    await settle()
    assert counter.granted == before + 1
    await counter.end()
