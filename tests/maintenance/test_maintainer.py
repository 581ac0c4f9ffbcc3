from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime

import pytest

from riverq.elector import Term
from riverq.maintenance.maintainer import Maintainer
from riverq.service import Service, ServiceContext
from riverq.testing.fake_clock import FakeClock

TERM = Term("test", datetime(2026, 1, 1, tzinfo=UTC))


class Recorded(Service):
    def __init__(self, ctx: ServiceContext, name: str, record: list[str]) -> None:
        super().__init__(ctx)
        self.name = name
        self.record = record
        self.failures = 0
        self.preparing = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def prepare(self) -> None:
        self.preparing.set()
        await self.may_start.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError(f"{self.name} is not ready")
        self.record.append(f"{self.name} up")

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def request_stop(self, task: asyncio.Task[None]) -> None:
        self.record.append(f"{self.name} down")
        super().request_stop(task)


class Setup:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ctx = ServiceContext(client_id="test", clock=self.clock, rng=random.Random(0))
        self.record: list[str] = []
        self.first = Recorded(self.ctx, "first", self.record)
        self.second = Recorded(self.ctx, "second", self.record)
        self.resignations: list[str] = []
        self.maintainer = Maintainer(self.ctx, [self.first, self.second], request_resign=self.resignations.append)


@pytest.fixture
async def setup() -> Setup:
    return Setup()


async def test_starts_in_order_and_stops_in_reverse(setup: Setup) -> None:
    await setup.maintainer.gained(TERM)
    await setup.maintainer.lost()
    assert setup.record == ["first up", "second up", "second down", "first down"]
    assert setup.resignations == []


async def test_lost_without_gained_does_nothing(setup: Setup) -> None:
    await setup.maintainer.lost()
    assert setup.record == []


async def test_a_start_that_fails_twice_succeeds_the_third_time(setup: Setup) -> None:
    setup.second.failures = 2
    gained = asyncio.create_task(setup.maintainer.gained(TERM))
    for wait in (1.1, 2.2):
        await setup.clock.until_sleeping()
        assert not setup.first.is_running  # half a set of services is none
        await setup.clock.advance(wait)
    await gained
    assert setup.first.is_running
    assert setup.second.is_running
    assert setup.resignations == []
    await setup.maintainer.lost()


async def test_resigns_when_the_services_cannot_be_started(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.second.failures = 99
    gained = asyncio.create_task(setup.maintainer.gained(TERM))
    for wait in (1.1, 2.2):
        await setup.clock.until_sleeping()
        await setup.clock.advance(wait)
    await gained
    assert setup.resignations == ["the leader's services could not be started"]
    assert not setup.first.is_running
    assert "try 3 of 3" in caplog.text


async def test_cancelled_start_leaves_nothing_running(setup: Setup) -> None:
    setup.second.may_start.clear()
    gained = asyncio.create_task(setup.maintainer.gained(TERM))
    await setup.second.preparing.wait()
    assert setup.first.is_running
    gained.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gained
    assert not setup.first.is_running
    assert not setup.second.is_running
    await setup.maintainer.lost()
