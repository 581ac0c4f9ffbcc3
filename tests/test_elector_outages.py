"""Electors on a database that is slow, that refuses, or that the network has swallowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.elector import ElectorTiming, Term
from riverq.errors import UnavailableError
from riverq.query.leader import leader_attempt_elect, leader_attempt_reelect
from riverq.testing.driver_suite.proxy import SilentProxy
from riverq.testing.fake_clock import FakeClock
from tests.elections import Disturbed, Fleet
from tests.fix_database import SESSION_APPLICATION, EngineMaker

pytestmark = pytest.mark.slow  # leases have to run out

SHORT = ElectorTiming(
    interval=timedelta(milliseconds=300),
    follower_jitter=timedelta(milliseconds=5),
    ttl=timedelta(seconds=2),
    trust_margin=timedelta(milliseconds=100),
    operation_timeout=timedelta(milliseconds=500),
    first_backoff=timedelta(milliseconds=50),
    backoff_cap=timedelta(milliseconds=200),
    resign_timeouts=(timedelta(milliseconds=100),) * 3,
)


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:
        yield conn


@pytest.fixture
async def fleet(conn: psycopg.AsyncConnection, make_engine: EngineMaker, schema: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(conn, make_engine, schema)
    yield fleet
    await fleet.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_database_that_takes_four_seconds_costs_no_leadership(fleet: Fleet, clock: FakeClock) -> None:
    """A lease as long as the interval would run out during a bid or a renewal that takes its time."""
    member = fleet.member("psycopg_async", "one", timing=ElectorTiming(), clock=clock)

    def take_four_seconds() -> None:
        clock._elapsed += 4.0

    slow: dict[Callable[..., Any], Callable[[], None]] = {
        leader_attempt_elect: take_four_seconds,
        leader_attempt_reelect: take_four_seconds,
    }
    member.elector._db = Disturbed(member.elector._db, after=slow)
    await member.start()
    term = await member.elector.gained.wait()
    for _ in range(5):
        await clock.until_sleeping()
        await clock.advance(5)
        assert await member.elector.renewed.wait() == term
        assert member.elector.is_leader
    assert member.told == ["gained"]
    assert member.elector.failed.waiting == 0


async def test_bids_that_fail_are_at_most_four_seconds_apart(fleet: Fleet, clock: FakeClock) -> None:
    member = fleet.member("psycopg_async", "one", timing=ElectorTiming(), clock=clock)
    began: list[float] = []

    def refuse() -> None:
        began.append(clock.monotonic())
        raise UnavailableError("refused")

    member.elector._db = Disturbed(member.elector._db, before={leader_attempt_elect: refuse})
    await member.start()
    await clock.until_sleeping()
    await clock.advance(60)
    waits = [after - before for before, after in pairwise(began)]
    assert waits[:3] == [pytest.approx(wait, rel=0.1) for wait in (1, 2, 4)]
    assert len(waits) > 10
    assert max(waits) <= 4.4


@pytest.mark.direct("a proxy of its own leads straight to the server")
@pytest.mark.slow  # a lease of 2 s has to run out
async def test_leader_whose_packets_are_swallowed_stops_before_another_leads_and_comes_back(
    fleet: Fleet, conn: psycopg.AsyncConnection, make_engine: EngineMaker, adapter: str, database_url: str
) -> None:
    url = sa.make_url(database_url)
    async with SilentProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string(hide_password=False)
        cut_off = Fleet(conn, lambda adapter: make_engine(adapter, url=through), fleet.schema)
        holder = cut_off.member(adapter, "holder", timing=SHORT)
        follower = fleet.member("psycopg_async", "follower", timing=SHORT)
        overlaps: list[bool] = []

        async def gained(term: Term) -> None:
            overlaps.append(holder.elector.is_leader)

        follower.elector.on_gained = gained
        try:
            await holder.start()
            old = await holder.elector.gained.wait()
            await follower.start()
            await follower.elector.not_elected.wait()
            proxy.silence()
            assert await holder.elector.lost.wait(30) == old
            new = await follower.elector.gained.wait(30)
            assert new.leader_id == "follower"
            assert holder.told == ["gained", "lost"]
            proxy.speak()
            await follower.stop()
            assert await holder.elector.gained.wait(60) > new
            assert overlaps == [False]
        finally:
            proxy.speak()
            await cut_off.close()
