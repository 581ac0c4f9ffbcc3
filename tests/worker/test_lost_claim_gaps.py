"""Between which claims a lost one was made, and when it is looked for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from riverq.worker import lost_claims
from riverq.worker.lost_claims import LostClaims
from tests.worker.harness import INCARNATION, House, claimed


def known_to_the_day(house: House) -> LostClaims:
    """Of a producer that has begun, with a row returned at 100."""
    lost = LostClaims(house.ctx, house.db, "default")
    lost.incarnation = lambda: INCARNATION
    lost.begin(datetime(1970, 1, 1, tzinfo=UTC))
    lost.sent()
    lost.answered([claimed(attempted_at_us=100)])
    return lost


async def test_no_row_that_was_ever_returned_lies_in_a_gap(house: House) -> None:
    """Not even where the database's clock went back, or another of its nodes has another time."""
    lost = known_to_the_day(house)
    lost.sent()
    lost.unanswered()
    for us in (200, 150, 90, 300):
        lost.sent()
        lost.answered([claimed(attempted_at_us=us)])
    [gap] = lost._gaps
    assert (gap.after_us, gap.before_us) == (100, 90)
    lost.unanswered()
    assert [gap.after_us for gap in lost._gaps] == [100, 300]


async def test_claims_that_go_on_failing_do_not_put_the_look_off(house: House) -> None:
    lost = known_to_the_day(house)
    lost.unanswered()
    due = lost._gaps[0].due
    lost.answered([])
    lost.unanswered()
    assert [gap.due for gap in lost._gaps] == [due]


async def test_of_very_many_gaps_the_oldest_are_given_up_and_that_is_said(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    lost = known_to_the_day(house)
    for us in range(101, 102 + lost_claims.MOST_GAPS):
        assert "may stay running" not in caplog.text
        lost.unanswered()
        lost.answered([claimed(attempted_at_us=us)])
    assert len(lost._gaps) == lost_claims.MOST_GAPS
    assert lost._gaps[0].after_us == 101
    assert "may stay running" in caplog.text


async def test_an_unregistered_client_leaves_them_to_the_rescuer(house: House) -> None:
    """Nobody could see another client with its id."""
    lost = known_to_the_day(house)
    lost.incarnation = lambda: None
    lost.unanswered()
    assert not lost.may_be
    assert lost.next_look is None


async def test_where_the_start_is_not_known_nothing_is_looked_for(house: House) -> None:
    """The queue's row was locked, and nothing was returned yet."""
    lost = LostClaims(house.ctx, house.db, "default")
    lost.incarnation = lambda: INCARNATION
    lost.begin(None)
    lost.unanswered()
    assert not lost.may_be
