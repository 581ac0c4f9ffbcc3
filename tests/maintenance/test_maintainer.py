from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from riverq.elector import Term
from riverq.maintenance.maintainer import Maintainer
from riverq.service import Service, ServiceContext, TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.elections import PATIENT, Fleet, Member
from tests.fix_database import SESSION_APPLICATION, EngineMaker

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


async def test_one_that_hangs_does_not_keep_the_others_at_work(setup: Setup) -> None:
    cleaning, may_end = asyncio.Event(), asyncio.Event()

    class Hanging(Recorded):
        async def run(self) -> None:
            try:
                await super().run()
            finally:
                cleaning.set()
                await may_end.wait()

    hanging = Hanging(setup.ctx, "hanging", setup.record)
    maintainer = Maintainer(setup.ctx, [setup.first, hanging], request_resign=setup.resignations.append)
    await maintainer.gained(TERM)
    await asyncio.sleep(0)
    losing = asyncio.create_task(maintainer.lost())
    await cleaning.wait()
    await asyncio.sleep(0)
    assert setup.record[-2:] == ["hanging down", "first down"]
    assert not setup.first.is_running
    assert not losing.done()
    may_end.set()
    await losing


class TestLeaderWithDeadServices:
    """A leader whose services do not run would keep everybody else from running them."""

    @pytest.fixture
    async def fleet(self, database_url: str, make_engine: EngineMaker, schema: str) -> AsyncIterator[Fleet]:
        async with await psycopg.AsyncConnection.connect(
            database_url, autocommit=True, application_name=SESSION_APPLICATION
        ) as conn:
            fleet = Fleet(conn, make_engine, schema)
            yield fleet
            await fleet.close()

    def maintain(self, member: Member, *, failures: int) -> Recorded:
        ctx = member.elector.ctx
        service = Recorded(ctx, f"service of {ctx.client_id}", [])
        service.failures = failures
        maintainer = Maintainer(
            ctx,
            [service],
            request_resign=member.elector.resign_soon,
            first_backoff=timedelta(milliseconds=5),
        )
        member.elector.on_gained, member.elector.on_lost = maintainer.gained, maintainer.lost
        return service

    @pytest.mark.listens
    async def test_resigns_after_three_tries_and_another_client_leads_with_living_services(
        self, fleet: Fleet, adapter: str
    ) -> None:
        broken = fleet.member(adapter, "broken", timing=PATIENT, listens=True)
        healthy = fleet.member(adapter, "healthy", timing=PATIENT, listens=True)
        dead, living = self.maintain(broken, failures=99), self.maintain(healthy, failures=0)
        dead.may_start.clear()
        await broken.start()
        await broken.elector.gained.wait()
        await healthy.start()
        await healthy.elector.not_elected.wait()
        dead.may_start.set()
        await broken.elector.resigned.wait()
        assert dead.failures == 96
        await healthy.elector.gained.wait()
        await asyncio.wait_for(living.preparing.wait(), 10)
        await healthy.elector.stop()
        assert living.record == ["service of healthy up", "service of healthy down"]
        assert dead.record == []

    async def test_services_that_start_at_the_third_try_keep_the_leader(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one")
        service = self.maintain(member, failures=2)
        started: TestSignal[None] = TestSignal[None]().watch()
        gained = member.elector.on_gained

        async def on_gained(term: Term) -> None:
            await gained(term)
            started.signal(None)

        member.elector.on_gained = on_gained
        await member.start()
        term = await member.elector.gained.wait()
        await started.wait()
        assert service.is_running
        assert await member.elector.renewed.wait() == term
        assert member.elector.resigned.waiting == 0
