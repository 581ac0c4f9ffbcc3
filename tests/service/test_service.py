from __future__ import annotations

import asyncio
import logging

import pytest

from riverq.service import Service, ServiceContext, TestSignal, start_all, stop_all, stop_together, to_the_end
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


class Preparing(Counting):
    """Waits in `prepare()` for the test, and keeps what it was doing there to itself."""

    def __init__(self, ctx: ServiceContext) -> None:
        super().__init__(ctx)
        self.preparing: TestSignal[None] = TestSignal[None]().watch()
        self.may_begin = asyncio.Event()
        self.error: Exception | None = None
        self.prepared = 0

    async def prepare(self) -> None:
        self.preparing.signal(None)
        await self.may_begin.wait()
        if self.error is not None:
            raise self.error
        self.prepared += 1


class TestPrepare:
    async def test_start_cancelled_in_it_leaves_the_service_stopped_and_startable(self, ctx: ServiceContext) -> None:
        service = Preparing(ctx)
        starting = asyncio.create_task(service.start())
        await service.preparing.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not service.is_running
        await service.stop()
        service.may_begin.set()
        await service.start()
        assert (service.is_running, service.prepared) == (True, 1)
        await service.stop()

    async def test_its_error_is_that_of_start_and_harms_no_later_start(self, ctx: ServiceContext) -> None:
        service = Preparing(ctx)
        service.may_begin.set()
        service.error = ConnectionError("not yet")
        for _ in range(2):
            with pytest.raises(ConnectionError, match="not yet"):
                await service.start()
            assert not service.is_running
            await service.stop()
        service.error = None
        await service.start()
        assert service.is_running
        await service.stop()

    async def test_stop_during_it_has_the_last_word(self, ctx: ServiceContext) -> None:
        service = Preparing(ctx)
        starting = asyncio.create_task(service.start())
        await service.preparing.wait()
        stopping = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        service.may_begin.set()
        await starting
        await stopping
        assert (service.is_running, service.alive) == (False, 0)

    async def test_start_during_a_stop_has_the_last_word(self, ctx: ServiceContext) -> None:
        service = Counting(ctx)
        service.begun.watch()
        service.cleaning.watch()
        await service.start()
        await service.begun.wait()
        service.may_end.clear()
        stopping = asyncio.create_task(service.stop())
        await service.cleaning.wait()
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0)
        assert not starting.done()
        service.may_end.set()
        await stopping
        await starting
        await service.begun.wait()
        assert (service.runs, service.most, service.alive) == (2, 1, 1)
        await service.stop()


async def test_failing_request_stop_is_logged_and_run_is_cancelled_instead(
    ctx: ServiceContext, caplog: pytest.LogCaptureFixture
) -> None:
    class Confused(Counting):
        def request_stop(self, task: asyncio.Task[None]) -> None:
            raise ValueError("how does one stop?")

    service = Confused(ctx)
    service.begun.watch()
    await service.start()
    await service.begun.wait()
    await service.stop()
    assert (service.alive, service.cancellations) == (0, 1)
    assert "how does one stop?" in caplog.text


class Unstoppable(Counting):
    async def stop(self) -> None:
        await super().stop()
        raise OSError(f"{self.name} would not say goodbye")


async def test_stop_all_spares_nobody_when_one_fails(ctx: ServiceContext) -> None:
    first, second = Unstoppable(ctx), Counting(ctx)
    for stop in (stop_all, stop_together):
        await start_all([first, second])
        with pytest.raises(OSError, match="goodbye"):
            await stop([first, second])
        assert not second.is_running


async def test_stop_together_asks_everybody_before_it_waits_for_anybody(ctx: ServiceContext) -> None:
    first, second = Counting(ctx), Counting(ctx)
    for service in (first, second):
        service.begun.watch()
        service.cleaning.watch()
        service.may_end.clear()
    await start_all([first, second])
    await first.begun.wait()
    await second.begun.wait()
    stopping = asyncio.create_task(stop_together([first, second]))
    await second.cleaning.wait()  # although the first has not ended
    assert first.alive == 1
    first.may_end.set()
    second.may_end.set()
    await stopping
    assert first.alive == second.alive == 0


async def test_start_all_cancelled_twice_still_stops_what_it_started(ctx: ServiceContext) -> None:
    first, middle, last = Counting(ctx), Counting(ctx), Preparing(ctx)
    for service in (first, middle):
        service.begun.watch()
        service.cleaning.watch()
        service.may_end.clear()
    starting = asyncio.create_task(start_all([first, middle, last]))
    await last.preparing.wait()
    starting.cancel()
    await middle.cleaning.wait()
    starting.cancel()
    first.may_end.set()
    middle.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (first.is_running, middle.is_running, last.is_running) == (False, False, False)


async def test_to_the_end_raises_what_the_work_raised() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await to_the_end(work())
