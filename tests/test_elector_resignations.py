"""Whose resignation a client hears, and what it does with its own; and how an elector shows how it fares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from riverq.elector import ElectorTiming, NotLeadingError
from riverq.errors import PoolExhaustedError, UnavailableError
from riverq.query.leader import leader_attempt_elect, leader_resign
from riverq.stats import LeaderStats
from riverq.testing.fake_clock import FakeClock
from tests.elections import PATIENT, Disturbed, Fleet, Member, held
from tests.fix_database import SESSION_APPLICATION, EngineMaker

ECHO = '{"leader_id" : "one", "action" : "resigned"}'
HELD_BY_GO = "INSERT INTO {} VALUES (now(), now() + interval '10 hours', 'go', 'default')"


@pytest.fixture
async def fleet(database_url: str, make_engine: EngineMaker, schema: str) -> AsyncIterator[Fleet]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:
        fleet = Fleet(conn, make_engine, schema)
        yield fleet
        await fleet.close()


async def sitting_out(fleet: Fleet, clock: FakeClock) -> Member:
    """A client that has resigned and hears nothing by itself, so that what it hears is the test's."""
    member = fleet.member("psycopg_async", "one", timing=held(PATIENT), clock=clock)
    await member.start()
    await member.elector.gained.wait()
    member.elector.resign_soon("its test says so")
    await member.elector.resigned.wait()
    await clock.until_sleeping()
    return member


class TestRequests:
    @pytest.mark.listens
    async def test_request_sent_in_a_transaction_is_heard_after_its_commit(self, fleet: Fleet, adapter: str) -> None:
        member = fleet.member(adapter, "one", listens=True)
        await member.start()
        term = await member.elector.gained.wait()
        async with fleet.conn.transaction():
            await fleet.request_resign()
            for _ in range(3):
                assert await member.elector.renewed.wait() == term
            assert member.elector.resigned.waiting == 0
        assert await member.elector.resigned.wait() == term

    @pytest.mark.listens
    async def test_request_in_a_transaction_that_is_rolled_back_is_not_heard(self, fleet: Fleet) -> None:
        member = fleet.member("psycopg_async", "one", listens=True)
        await member.start()
        term = await member.elector.gained.wait()
        async with fleet.conn.transaction(force_rollback=True):
            await fleet.request_resign()
        for _ in range(3):
            assert await member.elector.renewed.wait() == term
        assert member.told == ["gained"]


class TestEcho:
    """The payload names an id that two clients may share."""

    async def test_echo_that_never_came_does_not_swallow_a_twins_resignation_later(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = await sitting_out(fleet, clock)
        await fleet.execute(HELD_BY_GO)
        await clock.advance(3_700)  # the sitting out is over, the bid is lost
        await member.elector.not_elected.wait()
        await clock.until_sleeping()
        await fleet.execute("DELETE FROM {}")
        member.elector._heard(ECHO)
        await clock.advance(0)  # lets it wake
        await clock.until_sleeping()
        await clock.advance(1)  # the jitter of those who hear together
        await member.elector.gained.wait()

    async def test_echo_of_a_resignation_whose_answer_was_lost_does_not_end_the_sitting_out(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(PATIENT), clock=clock)
        lost_answers = [UnavailableError("the answer was lost")]
        member.elector._db = Disturbed(member.elector._db, after={leader_resign: lambda: _raise_next(lost_answers)})
        await member.start()
        await member.elector.gained.wait()
        member.elector.resign_soon("its test says so")
        assert await member.elector.failed.wait() == "resign"
        await clock.until_sleeping()
        await clock.advance(2)  # the second try finds nothing left to resign
        await clock.until_sleeping()
        member.elector._heard(ECHO)
        await clock.advance(60)
        await clock.until_sleeping()  # had it woken, only after its bid
        assert await fleet.row() is None
        member.elector._heard(ECHO)
        await member.elector.gained.wait()

    async def test_no_echo_is_awaited_where_nothing_was_resigned(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(PATIENT), clock=clock)
        await member.start()
        await member.elector.gained.wait()
        await fleet.execute("UPDATE {} SET leader_id = 'go', expires_at = now() + interval '10 hours'")
        member.elector.resign_soon("its test says so")
        await member.elector.lost.wait()
        await clock.until_sleeping()
        await fleet.execute("DELETE FROM {}")
        member.elector._heard(ECHO)  # a twin's
        await member.elector.gained.wait()

    async def test_somebody_elses_resignation_ends_the_sitting_out(self, fleet: Fleet) -> None:
        member = await sitting_out(fleet, FakeClock())
        member.elector._heard('{"leader_id":"two","action":"resigned"}')
        await member.elector.gained.wait()


def _raise_next(errors: list[UnavailableError]) -> None:
    if errors:
        raise errors.pop(0)


class TestTrust:
    async def test_answer_that_came_too_late_to_be_trusted_is_never_acted_on(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(ElectorTiming()), clock=clock)
        stalls = [20.0]

        def stall() -> None:
            clock._elapsed += stalls.pop() if stalls else 0.0  # as a suspended process finds it

        member.elector._db = Disturbed(member.elector._db, after={leader_attempt_elect: stall})
        await member.start()
        late = await member.elector.resigned.wait()
        assert member.told == []
        assert member.elector.gained.waiting == 0
        await clock.until_sleeping()
        await clock.advance(6)
        assert await member.elector.gained.wait() > late

    async def test_services_may_ask_at_the_last_moment(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(ElectorTiming()), clock=clock)
        with pytest.raises(NotLeadingError, match="leads no longer"):
            member.elector.check_leading()
        await member.start()
        await member.elector.gained.wait()
        member.elector.check_leading()
        clock._elapsed += 13.9
        member.elector.check_leading()
        clock._elapsed += 0.1  # no task of ours has run, so the elector itself does not know yet
        with pytest.raises(NotLeadingError):
            member.elector.check_leading()
        clock._elapsed -= 14.0


class TestStats:
    async def test_tells_how_it_fares(self, fleet: Fleet) -> None:
        clock = FakeClock()
        member = fleet.member("psycopg_async", "one", timing=held(ElectorTiming()), clock=clock)
        assert member.elector.stats() == _stats()
        await member.start()
        term = await member.elector.gained.wait()
        elected = clock.now()
        leading: dict[str, Any] = {"is_leader": True, "elected_at": term.elected_at, "last_renewal": elected}
        assert member.elector.stats() == _stats(**leading, trust_left=timedelta(seconds=14))
        await clock.until_sleeping()
        await clock.advance(4)
        assert member.elector.stats() == _stats(**leading, trust_left=timedelta(seconds=10))
        clock._elapsed += 10
        assert member.elector.stats() == _stats(last_renewal=elected)
        clock._elapsed -= 10
        await member.elector.stop()
        assert member.elector.stats() == _stats(last_renewal=elected)

    async def test_counts_failures_and_says_what_a_drained_pool_needs(
        self, fleet: Fleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        member = fleet.member("psycopg_async", "one")
        errors = [PoolExhaustedError("no connection became free in 5 s") for _ in range(2)]
        member.elector._db = Disturbed(member.elector._db, before={leader_attempt_elect: lambda: _raise_next(errors)})  # type: ignore[arg-type]
        counted = []
        await member.start()
        for _ in range(2):
            await member.elector.failed.wait()
            counted.append(member.elector.stats().failures_in_a_row)
        assert counted == [1, 2]
        await member.elector.gained.wait()
        assert member.elector.stats().failures_in_a_row == 0
        assert caplog.text.count("the control pool is drained: give it more connections") == 2


def _stats(**given: Any) -> LeaderStats:
    usual = {"is_leader": False, "elected_at": None, "last_renewal": None, "failures_in_a_row": 0}
    return LeaderStats(**{"takes_part": True, "trust_left": timedelta(0), **usual, **given})
