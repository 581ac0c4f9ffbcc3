from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest

from riverq.errors import ConfigError, DatabaseError
from riverq.maintenance.base import BatchSize, MaintenanceService, MaintenanceTiming
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.service.stress import stress_start_stop


class Unused:
    """Stands where a Database would: these services run no statement."""


class Ticking(MaintenanceService):
    def __init__(self, ctx: ServiceContext, timing: MaintenanceTiming) -> None:
        super().__init__(ctx, Unused(), timing)  # type: ignore[arg-type]  # never asked
        self.ticks = 0
        self.errors: list[Exception] = []

    async def run_once(self) -> None:
        self.ticks += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fake_ctx(clock: FakeClock) -> ServiceContext:
    return ServiceContext(client_id="test", clock=clock, rng=random.Random(0))


def test_defaults() -> None:
    timing = MaintenanceTiming()
    assert (timing.batch_size, timing.reduced_batch_size) == (10_000, 1_000)
    assert timing.timeout == timedelta(seconds=30)
    with pytest.raises(ConfigError, match="expected reduced_batch_size to be an integer from 1 to 10, got: 1000"):
        MaintenanceTiming(batch_size=10)


async def test_start_stop_stress(fake_ctx: ServiceContext) -> None:
    await stress_start_stop(Ticking(fake_ctx, MaintenanceTiming()))


async def test_errors_are_logged_and_wait_for_the_next_tick(
    fake_ctx: ServiceContext, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = Ticking(fake_ctx, MaintenanceTiming(interval=timedelta(seconds=30), stagger=timedelta(0)))
    service.errors = [DatabaseError("no such luck", "XX000"), ValueError("a bug")]
    service.tick_failed.watch()
    service.ticked.watch()
    await service.start()
    await service.tick_failed.wait()
    await clock.until_sleeping()
    assert service.ticks == 1
    await clock.advance(30)
    await service.tick_failed.wait()
    await clock.advance(30)
    await service.ticked.wait()
    assert service.ticks == 3
    assert "no such luck" in caplog.text
    assert "a bug" in caplog.text
    await service.stop()


async def test_services_that_start_together_do_not_tick_together(clock: FakeClock) -> None:
    firsts = []
    for seed in range(3):
        ctx = ServiceContext(client_id="test", clock=FakeClock(), rng=random.Random(seed))
        held = ctx.clock
        assert isinstance(held, FakeClock)
        service = Ticking(ctx, MaintenanceTiming())
        service.ticked.watch()
        await service.start()
        await held.until_sleeping()
        assert service.ticks == 0
        while not service.ticks:
            await held.advance(0.01)
        firsts.append(round(held.monotonic(), 2))
        await service.stop()
    assert len(set(firsts)) == 3
    assert max(firsts) <= 1.01


async def test_batches_go_on_until_one_is_not_full(fake_ctx: ServiceContext, clock: FakeClock) -> None:
    service = Ticking(fake_ctx, MaintenanceTiming(batch_size=10, reduced_batch_size=1))
    left = [10, 10, 3]

    async def run_batch(limit: int) -> int:
        assert limit == 10
        return left.pop(0)

    running = asyncio.create_task(service.batches(run_batch))
    while not running.done():
        await clock.advance(0.05)
    assert await running == 23
    assert clock.monotonic() >= 0.1  # two pauses


class TestBatchSize:
    @pytest.fixture
    def size(self, fake_ctx: ServiceContext) -> BatchSize:
        return BatchSize(fake_ctx, MaintenanceTiming())

    def test_shrinks_after_three_timeouts_in_a_row_and_stays(self, size: BatchSize) -> None:
        for _ in range(2):
            size.timed_out()
        assert (size.current, size.is_reduced) == (10_000, False)
        size.timed_out()
        assert (size.current, size.is_reduced) == (1_000, True)
        size.succeeded()
        assert size.current == 1_000

    def test_a_success_between_them_starts_the_count_anew(self, size: BatchSize) -> None:
        for _ in range(5):
            size.timed_out()
            size.timed_out()
            size.succeeded()
        assert size.current == 10_000

    async def test_timeouts_further_apart_than_ten_minutes_do_not_add_up(
        self, size: BatchSize, clock: FakeClock
    ) -> None:
        for _ in range(10):
            size.timed_out()
            await clock.advance(301)
        assert size.current == 10_000
        size.timed_out()
        size.timed_out()
        assert size.current == 1_000
