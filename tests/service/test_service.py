from __future__ import annotations

import asyncio
import logging

import pytest

from riverq.service import Service, ServiceContext, TestSignal, start_all, stop_all
from tests.service.stress import stress_start_stop


class Counting(Service):
    def __init__(self, ctx: ServiceContext) -> None:
        super().__init__(ctx)
        self.alive = 0
        self.most = 0
        self.runs = 0
        self.begun: TestSignal[None] = TestSignal()
        self.cleaning: TestSignal[None] = TestSignal()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.cancellations = 0

    async def run(self) -> None:
        self.runs += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        self.begun.signal(None)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancellations += 1
            self.cleaning.signal(None)
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancellations += 1
            raise
        finally:
            self.alive -= 1


async def test_start_stop_stress(ctx: ServiceContext) -> None:
    service = Counting(ctx)
    await stress_start_stop(service)
    assert (service.alive, service.most) == (0, 1)


async def test_starting_twice_runs_once_and_stopped_starts_again(ctx: ServiceContext) -> None:
    service = Counting(ctx)
    service.begun.watch()
    for expected in (1, 2):
        await service.start()
        await service.start()
        await service.begun.wait()
        assert service.runs == expected
        await service.stop()


async def test_stop_keeps_the_callers_cancellation(ctx: ServiceContext) -> None:
    service = Counting(ctx)
    service.begun.watch()
    service.cleaning.watch()
    await service.start()
    await service.begun.wait()
    service.may_end.clear()

    stopping = asyncio.create_task(service.stop())
    await service.cleaning.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    service.may_end.set()
    await service.stop()
    assert service.alive == 0


async def test_second_stop_does_not_tear_the_clean_up_of_the_first(ctx: ServiceContext) -> None:
    service = Counting(ctx)
    service.begun.watch()
    service.cleaning.watch()
    await service.start()
    await service.begun.wait()
    service.may_end.clear()
    first = asyncio.create_task(service.stop())
    await service.cleaning.wait()
    first.cancel()
    await asyncio.wait([first])

    second = asyncio.create_task(service.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    assert service.cancellations == 1
    assert not second.done()
    service.may_end.set()
    await second
    assert service.cancellations == 1


async def test_start_after_an_abandoned_stop_waits_for_its_end_and_runs_anew(ctx: ServiceContext) -> None:
    service = Counting(ctx)
    service.begun.watch()
    service.cleaning.watch()
    await service.start()
    await service.begun.wait()
    service.may_end.clear()
    stopping = asyncio.create_task(service.stop())
    await service.cleaning.wait()
    stopping.cancel()
    await asyncio.wait([stopping])

    starting = asyncio.create_task(service.start())
    service.may_end.set()
    await starting
    await service.begun.wait()
    assert (service.runs, service.most, service.alive) == (2, 1, 1)
    await service.stop()


async def test_run_that_raises_is_logged_and_leaves_the_service_startable(
    ctx: ServiceContext, caplog: pytest.LogCaptureFixture
) -> None:
    class Dying(Service):
        def __init__(self, ctx: ServiceContext) -> None:
            super().__init__(ctx)
            self.died: TestSignal[None] = TestSignal()

        async def run(self) -> None:
            self.died.signal(None)
            raise ValueError("no luck")

    service = Dying(ctx)
    service.died.watch()
    with caplog.at_level(logging.ERROR, logger="riverq"):
        await service.start()
        await service.died.wait()
        await asyncio.sleep(0)
    assert not service.is_running
    assert "Dying: Run ended with an error" in caplog.text
    assert "no luck" in caplog.text
    await service.start()
    await service.died.wait()
    await service.stop()


async def test_start_all_stops_what_it_started_when_one_fails(ctx: ServiceContext) -> None:
    class Failing(Service):
        async def prepare(self) -> None:
            raise RuntimeError("cannot")

    first, last = Counting(ctx), Counting(ctx)
    with pytest.raises(RuntimeError, match="cannot"):
        await start_all([first, Failing(ctx), last])
    assert not first.is_running
    assert last.runs == 0
    await stop_all([first, last])
