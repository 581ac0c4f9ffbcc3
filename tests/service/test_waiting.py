"""Ticker, Wakeup, Backoff, within, TestSignal and FakeClock."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from itertools import pairwise

import pytest

from riverq.errors import UnavailableError
from riverq.service import Backoff, OperationTimeoutError, ServiceContext, TestSignal, Ticker, Wakeup, within
from riverq.testing.fake_clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fake_ctx(clock: FakeClock) -> ServiceContext:
    return ServiceContext(client_id="test", clock=clock, rng=random.Random(0))


class TestFakeClock:
    async def test_sleepers_wake_in_order_of_time_and_see_their_own_moment(self, clock: FakeClock) -> None:
        seen: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            seen.append((name, clock.monotonic()))

        tasks = [asyncio.create_task(sleeper("late", 3)), asyncio.create_task(sleeper("early", 1))]
        await clock.until_sleeping(2)
        began = clock.now()
        await clock.advance(2.9)
        assert seen == [("early", 1.0)]
        await clock.advance(0.2)
        assert seen == [("early", 1.0), ("late", 3.0)]
        assert clock.now() - began == timedelta(seconds=3.1)
        await asyncio.gather(*tasks)

    async def test_cancelled_sleeper_no_longer_sleeps(self, clock: FakeClock) -> None:
        task = asyncio.create_task(clock.sleep(1))
        await clock.until_sleeping()
        task.cancel()
        await asyncio.wait([task])
        assert clock.sleeping == 0
        await clock.advance(5)
        assert clock.monotonic() == 5


class TestTicker:
    async def run(self, clock: FakeClock, ticker: Ticker, *, each: float = 0) -> tuple[list[float], asyncio.Task[None]]:
        ticks: list[float] = []

        async def loop() -> None:
            async for _ in ticker:
                ticks.append(clock.monotonic())
                if each:
                    await clock.sleep(each)

        task = asyncio.create_task(loop())
        await clock.until_sleeping()
        return ticks, task

    async def end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])

    async def test_ticks_at_once_and_without_drift(self, clock: FakeClock, fake_ctx: ServiceContext) -> None:
        ticks, task = await self.run(clock, Ticker(fake_ctx, timedelta(seconds=5)))
        await clock.advance(5_000)
        assert ticks == [5.0 * number for number in range(1_001)]
        await self.end(task)

    async def test_slow_tick_is_followed_at_once_by_one_tick(self, clock: FakeClock, fake_ctx: ServiceContext) -> None:
        ticks, task = await self.run(clock, Ticker(fake_ctx, timedelta(seconds=5)), each=12)
        await clock.advance(25)
        assert ticks == [0.0, 12.0, 24.0]
        await self.end(task)

    async def test_stagger_delays_the_first_tick_only(self, clock: FakeClock, fake_ctx: ServiceContext) -> None:
        ticker = Ticker(fake_ctx, timedelta(seconds=5), stagger=timedelta(seconds=1))
        ticks, task = await self.run(clock, ticker)
        assert ticks == []
        await clock.advance(20)
        assert 0 < ticks[0] <= 1
        assert [later - earlier for earlier, later in pairwise(ticks)] == pytest.approx([5, 5, 5])
        await self.end(task)


class TestWakeup:
    async def test_sleeps_its_time_unless_woken(self, clock: FakeClock, fake_ctx: ServiceContext) -> None:
        wakeup = Wakeup(fake_ctx)
        sleeping = asyncio.create_task(wakeup.sleep(10))
        await clock.until_sleeping()
        await clock.advance(10)
        assert await sleeping is False

        sleeping = asyncio.create_task(wakeup.sleep(10))
        await clock.until_sleeping()
        wakeup.set()
        assert await sleeping is True
        assert clock.sleeping == 0

    async def test_set_before_the_sleep_ends_that_sleep_only(self, clock: FakeClock, fake_ctx: ServiceContext) -> None:
        wakeup = Wakeup(fake_ctx)
        wakeup.set()
        assert await wakeup.sleep(10) is True
        wakeup.set()
        wakeup.clear()
        sleeping = asyncio.create_task(wakeup.sleep(10))
        await clock.until_sleeping()
        assert not sleeping.done()
        await clock.advance(10)
        assert await sleeping is False


class TestBackoff:
    def test_doubles_up_to_the_cap_within_ten_percent(self, ctx: ServiceContext) -> None:
        backoff = Backoff(ctx, first=0.1, cap=5)
        for expected in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5):
            assert backoff.next() == pytest.approx(expected, rel=0.1)
        backoff.reset()
        assert backoff.next() == pytest.approx(0.1, rel=0.1)

    def test_does_not_overflow_after_very_many_failures(self, ctx: ServiceContext) -> None:
        backoff = Backoff(ctx, first=0.1, cap=5)
        backoff.failures = 5_000
        assert backoff.next() == pytest.approx(5, rel=0.1)


class TestWithin:
    async def test_returns_the_result_and_raises_the_operations_own_error(self) -> None:
        async def add(a: int, b: int) -> int:
            return a + b

        async def fail() -> None:
            raise ValueError("mine")

        assert await within(5, "adding", add(1, 2)) == 3
        with pytest.raises(ValueError, match="mine"):
            await within(5, "failing", fail())

    async def test_returns_in_time_from_an_operation_that_resists_cancellation(self) -> None:
        let_go = asyncio.Event()
        cancelled = asyncio.Event()

        async def stubborn() -> None:
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                cancelled.set()
                await let_go.wait()

        with pytest.raises(OperationTimeoutError, match=r"^the thing took longer than 0.01 s$") as raised:
            await within(0.01, "the thing", stubborn())
        assert isinstance(raised.value, UnavailableError)
        assert isinstance(raised.value, TimeoutError)
        await cancelled.wait()
        let_go.set()

    async def test_callers_cancellation_reaches_the_operation_and_lets_it_clean_up(self) -> None:
        begun, cleaned = asyncio.Event(), asyncio.Event()

        async def operation() -> None:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                cleaned.set()

        task = asyncio.create_task(within(60, "the thing", operation()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned.is_set()

    async def test_operation_that_is_cancelled_by_nobody_here_does_not_end_its_caller(self) -> None:
        async def cancelled() -> None:
            raise asyncio.CancelledError

        with pytest.raises(UnavailableError, match="its statement was cut short"):
            await within(10, "its statement", cancelled())


class TestTestSignal:
    async def test_keeps_nothing_until_watched_and_each_value_is_awaited_once(self) -> None:
        signal: TestSignal[int] = TestSignal()
        signal.signal(1)
        signal.watch()
        signal.signal(2)
        signal.signal(3)
        assert signal.waiting == 2
        assert [await signal.wait(), await signal.wait()] == [2, 3]
        with pytest.raises(TimeoutError):
            await signal.wait(0.001)

    async def test_waiting_unwatched_is_a_mistake(self) -> None:
        with pytest.raises(RuntimeError, match=r"watch\(\)"):
            await TestSignal[int]().wait()
