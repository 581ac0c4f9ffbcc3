"""Electors on real rows: who leads, who stops leading, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from riverq.elector import ElectorTiming, Term
from riverq.errors import ConfigError
from riverq.service import TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.elections import PATIENT, Fleet, Member, held
from tests.fix_database import SESSION_APPLICATION, EngineMaker
from tests.fix_pgbouncer import Pooler
from tests.service.stress import stress_start_stop


@pytest.fixture
async def fleet(database_url: str, make_engine: EngineMaker, schema: str) -> AsyncIterator[Fleet]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:
        fleet = Fleet(conn, make_engine, schema)
        yield fleet
        await fleet.close()


def test_defaults() -> None:
    timing = ElectorTiming()
    assert (timing.interval, timing.ttl) == (timedelta(seconds=5), timedelta(seconds=15))
    with pytest.raises(ConfigError, match="expected ttl to be longer than interval"):
        ElectorTiming(ttl=timedelta(seconds=6))


@pytest.mark.parametrize("adapter", ["psycopg_async"])
async def test_start_stop_stress(fleet: Fleet, adapter: str) -> None:
    member = fleet.member(adapter, "one")
    await stress_start_stop(member.elector)
    assert not member.elector.is_leader
    assert await fleet.row() is None
    assert member.told.count("gained") <= member.told.count("lost")  # a start may be cut short before it is told


@pytest.mark.listens
async def test_exactly_one_leads_and_stopping_hands_over_at_once(fleet: Fleet, adapter: str) -> None:
    first = fleet.member(adapter, "first", timing=PATIENT, listens=True)
    second = fleet.member(adapter, "second", timing=PATIENT, listens=True)
    await first.start()
    term = await first.elector.gained.wait()
    await second.start()
    await second.elector.not_elected.wait()
    assert first.elector.is_leader
    assert not second.elector.is_leader
    assert await fleet.row() == term
    assert first.elector.term == term
    assert first.elector.trust_left() > timedelta(minutes=59)

    await first.elector.stop()
    assert first.told == ["gained", "lost"]
    assert not first.elector.is_leader
    later = await second.elector.gained.wait()  # by notification: its next poll is an hour away
    assert (later.leader_id, await fleet.row()) == ("second", later)
    assert later.elected_at > term.elected_at


async def test_leader_renews_its_own_term(fleet: Fleet, adapter: str) -> None:
    member = fleet.member(adapter, "one")
    await member.start()
    term = await member.elector.gained.wait()
    for _ in range(3):
        assert await member.elector.renewed.wait() == term
    assert await fleet.row() == term
    assert member.elector.last_renewal is not None
    assert member.elector.failures_in_a_row == 0


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_expired_term_is_taken_over_by_polling_and_its_holder_stops(fleet: Fleet, adapter: str) -> None:
    holder = fleet.member(adapter, "holder", timing=PATIENT)  # renews in an hour
    await holder.start()
    old = await holder.elector.gained.wait()
    follower = fleet.member(adapter, "follower")
    await follower.start()
    await follower.elector.not_elected.wait()
    await fleet.execute("UPDATE {} SET expires_at = now() - interval '1 second'")
    new = await follower.elector.gained.wait()
    assert new.leader_id == "follower"

    holder.elector._wakeup.set()  # an hour later it renews
    assert await holder.elector.lost.wait() == old
    assert holder.told == ["gained", "lost"]
    assert holder.elector.resigned.waiting == 0
    assert await fleet.row() == new


@pytest.mark.parametrize("adapter", ["asyncpg", "psycopg"])
async def test_leader_whose_row_is_deleted_loses_and_may_win_again(fleet: Fleet, adapter: str) -> None:
    member = fleet.member(adapter, "one")
    await member.start()
    old = await member.elector.gained.wait()
    await fleet.execute("DELETE FROM {}")
    assert await member.elector.lost.wait() == old
    new = await member.elector.gained.wait()
    assert new.elected_at > old.elected_at
    assert member.told[:2] == ["gained", "lost"]
    assert member.elector.resigned.waiting == 0


class TestSameId:
    """Two clients that share an id: the term tells them apart."""

    async def replaced(self, fleet: Fleet, adapter: str) -> tuple[Member, Term, Term]:
        """A leader whose term was followed by another of the same id without its noticing."""
        old = fleet.member(adapter, "twin", timing=PATIENT)
        await old.start()
        first = await old.elector.gained.wait()
        await fleet.execute("UPDATE {} SET expires_at = now() - interval '1 second'")
        new = fleet.member(adapter, "twin")
        await new.start()
        return old, first, await new.elector.gained.wait()

    @pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg", "pg8000"])
    async def test_stale_term_cannot_resign_the_new_one(self, fleet: Fleet, adapter: str) -> None:
        old, _, term = await self.replaced(fleet, adapter)
        await old.elector.stop()
        assert old.elector.resigned.waiting == 0
        assert await fleet.row() == term

    @pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg", "pg8000"])
    async def test_stale_term_cannot_renew_the_new_one(self, fleet: Fleet, adapter: str) -> None:
        old, first, term = await self.replaced(fleet, adapter)
        old.elector._wakeup.set()
        assert await old.elector.lost.wait() == first
        assert await fleet.row() == term

    @pytest.mark.listens
    async def test_resignation_of_a_twin_is_heard(self, fleet: Fleet) -> None:
        first = fleet.member("psycopg_async", "twin", timing=PATIENT, listens=True)
        second = fleet.member("psycopg_async", "twin", timing=PATIENT, listens=True)
        await first.start()
        await first.elector.gained.wait()
        await second.start()
        await second.elector.not_elected.wait()
        await first.elector.stop()
        await second.elector.gained.wait()


class TestResigning:
    @pytest.mark.listens
    async def test_request_is_honoured_and_others_bid_first(self, fleet: Fleet, adapter: str) -> None:
        first = fleet.member(adapter, "first", timing=PATIENT, listens=True)
        second = fleet.member(adapter, "second", timing=PATIENT, listens=True)
        await first.start()
        await first.elector.gained.wait()
        await second.start()
        await second.elector.not_elected.wait()
        await fleet.request_resign()
        await first.elector.resigned.wait()
        await second.elector.gained.wait()
        assert first.told == ["gained", "lost"]
        await fleet.request_resign()
        await second.elector.resigned.wait()
        await first.elector.gained.wait()

    async def test_lonely_leader_leads_again_after_sitting_out(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one")
        await member.start()
        old = await member.elector.gained.wait()
        member.elector.resign_soon("its test says so")
        assert await member.elector.resigned.wait() == old
        assert await member.elector.gained.wait() != old
        assert member.told == ["gained", "lost", "gained"]

    async def test_own_echo_does_not_end_the_sitting_out_and_a_twins_does(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(PATIENT), clock=clock)
        await member.start()
        await member.elector.gained.wait()
        member.elector.resign_soon("its test says so")
        await member.elector.resigned.wait()
        await clock.until_sleeping()
        payload = '{"leader_id" : "one", "action" : "resigned"}'
        member.elector._heard(payload)
        await clock.advance(60)
        await clock.until_sleeping()  # had it woken, only after its bid
        assert await fleet.row() is None
        member.elector._heard(payload)
        await member.elector.gained.wait()

    async def test_request_does_nothing_to_a_follower(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one")
        await fleet.execute("INSERT INTO {} VALUES (now(), now() + interval '1 hour', 'go', 'default')")
        await member.start()
        await member.elector.not_elected.wait()
        member.elector.resign_soon("it leads nothing")
        await fleet.execute("DELETE FROM {}")
        await member.elector.gained.wait()
        await member.elector.renewed.wait()
        assert member.elector.is_leader


class TestFailures:
    @pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg", "pg8000"])
    async def test_killed_backends_do_not_cost_the_leadership(
        self, fleet: Fleet, adapter: str, pooler: Pooler | None
    ) -> None:
        member = fleet.member(adapter, "one")
        await member.start()
        term = await member.elector.gained.wait()
        await fleet.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name <> %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
            (SESSION_APPLICATION,),
        )
        if pooler is None or pooler.keeps_sessions:  # in transaction mode it just gets another backend
            await member.elector.failed.wait()
        assert await member.elector.renewed.wait() == term
        assert member.told == ["gained"]

    async def test_steps_down_when_trust_ends_although_the_database_never_said_no(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(ElectorTiming()), clock=clock)
        await member.start()
        term = await member.elector.gained.wait()
        member.elector._timing = replace(held(ElectorTiming()), operation_timeout=timedelta(milliseconds=50))
        await clock.until_sleeping()
        async with fleet.conn.transaction():
            await fleet.execute("SELECT FROM {} FOR UPDATE")  # renewals wait for this
            for _ in range(2):
                await clock.advance(5)
                assert member.elector.is_leader
                assert await member.elector.failed.wait() == "renew leadership"
                await clock.until_sleeping()
            assert member.elector.failures_in_a_row == 2
            await clock.advance(4)  # 15 s of lease less 1 s of margin
            assert not member.elector.is_leader
            assert await member.elector.lost.wait() == term
            assert member.told == ["gained", "lost"]
        assert await member.elector.resigned.wait() == term

    async def test_stalled_loop_does_not_believe_that_it_leads(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(ElectorTiming()), clock=clock)
        await member.start()
        await member.elector.gained.wait()
        assert member.elector.is_leader
        clock._elapsed += 14.0  # time passes while no task of ours runs
        assert not member.elector.is_leader
        assert member.elector.trust_left() == timedelta(0)
        clock._elapsed -= 14.0

    async def test_no_table_is_survived(self, fleet: Fleet, scratch_schema: str) -> None:
        fleet.schema = scratch_schema
        fleet.table = SQL("{}.river_leader").format(Identifier(scratch_schema))
        member = fleet.member("psycopg_async", "one")
        await fleet.execute("ALTER TABLE {} RENAME TO elsewhere")
        await member.start()
        await member.elector.failed.wait()
        await fleet.conn.execute(
            SQL("ALTER TABLE {}.elsewhere RENAME TO river_leader").format(Identifier(scratch_schema))
        )
        await member.elector.gained.wait()


class TestCallbacks:
    async def test_late_start_is_ended_before_lost_is_told_and_before_the_next_term(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one")
        began: TestSignal[Term] = TestSignal[Term]().watch()
        may_start = asyncio.Event()

        async def slow_start(term: Term) -> None:
            member.told.append("starting")
            began.signal(term)
            try:
                await may_start.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                member.told.append("start ended")
                raise
            member.told.append("started")

        member.elector.on_gained = slow_start
        await member.start()
        old = await began.wait()
        await member.elector.renewed.wait()  # a slow start does not cost the lease
        await fleet.execute("DELETE FROM {}")
        new = await began.wait()
        assert new != old
        may_start.set()
        await member.elector.renewed.wait()
        await member.elector.renewed.wait()
        assert member.told == ["starting", "start ended", "lost", "starting", "started"]

    async def test_lost_is_awaited_before_the_next_bid(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one")
        losing: TestSignal[None] = TestSignal[None]().watch()
        may_end = asyncio.Event()

        async def slow_stop() -> None:
            losing.signal(None)
            await may_end.wait()

        member.elector.on_lost = slow_stop
        await member.start()
        await member.elector.gained.wait()
        await fleet.execute("DELETE FROM {}")
        await losing.wait()
        assert await fleet.row() is None
        assert not member.elector.is_leader
        may_end.set()
        await member.elector.gained.wait()

    async def test_services_that_cannot_start_cost_the_leadership(
        self, fleet: Fleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        member = fleet.member("psycopg_async", "one")

        async def broken(term: Term) -> None:
            raise ValueError("no services today")

        member.elector.on_gained = broken
        await member.start()
        term = await member.elector.gained.wait()
        assert await member.elector.resigned.wait() == term
        assert "no services today" in caplog.text

    async def test_failing_on_lost_does_not_keep_the_row(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        member = fleet.member("psycopg_async", "one")

        async def broken() -> None:
            raise ValueError("would not stop")

        member.elector.on_lost = broken
        await member.start()
        await member.elector.gained.wait()
        await member.elector.stop()
        assert await fleet.row() is None
        assert "would not stop" in caplog.text


async def test_election_won_while_stopping_is_resigned(fleet: Fleet) -> None:
    member = fleet.member("psycopg_async", "one")
    async with fleet.conn.transaction():
        await fleet.execute("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE")  # the bid waits
        await member.start()
        stopping = asyncio.create_task(member.elector.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
    await stopping
    assert await fleet.row() is None


async def test_eight_compete_and_never_do_two_lead(fleet: Fleet) -> None:
    members = [fleet.member("psycopg_async", f"client {number}") for number in range(8)]
    gained: asyncio.Queue[Member] = asyncio.Queue()

    def on_gained_of(member: Member) -> Callable[[Term], Awaitable[None]]:
        async def on_gained(term: Term) -> None:
            gained.put_nowait(member)

        return on_gained

    for member in members:
        member.elector.on_gained = on_gained_of(member)
        await member.start()
    for _ in members:
        leader = await asyncio.wait_for(gained.get(), 10)
        assert [member for member in members if member.elector.is_leader] == [leader]
        await leader.elector.stop()
    assert gained.empty()
    assert await fleet.row() is None
