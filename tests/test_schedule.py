from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from riverq.cron import cron
from riverq.errors import ConfigError
from riverq.schedule import Schedule, every, never

AT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def test_every_counts_from_the_given_time_to_the_microsecond() -> None:
    schedule = every(timedelta(minutes=5, microseconds=1))
    assert schedule.next(AT) == AT + timedelta(minutes=5, microseconds=1)


def test_every_counts_real_time_across_a_clock_change_and_answers_in_the_same_zone() -> None:
    before = datetime(2026, 3, 29, 1, 30, tzinfo=BERLIN)
    found = every(timedelta(hours=1)).next(before)
    assert found is not None
    assert (found.isoformat(), found.tzinfo) == ("2026-03-29T03:30:00+02:00", BERLIN)


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=999)])
def test_every_refuses_intervals_that_would_never_let_go(interval: timedelta) -> None:
    with pytest.raises(ConfigError, match=r"expected interval to be at least 0.001 s, got"):
        every(interval)


@pytest.mark.parametrize("interval", [5, None, "5m"])
def test_every_takes_a_timedelta(interval: object) -> None:
    with pytest.raises(ConfigError, match="expected interval to be a timedelta"):
        every(interval)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("after", [AT.replace(tzinfo=None), "now"])
def test_every_refuses_naive_times(after: object) -> None:
    with pytest.raises(ConfigError, match="expected after to be a datetime aware of its zone"):
        every(timedelta(hours=1)).next(after)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("zone", [UTC, BERLIN])
def test_every_ends_where_time_does(zone: ZoneInfo) -> None:
    assert every(timedelta.max).next(AT.astimezone(zone)) is None
    assert every(timedelta(days=2)).next(datetime.max.replace(tzinfo=UTC) - timedelta(days=1)) is None


def test_never_is_never() -> None:
    assert never().next(AT) is None


def test_equal_schedules_are_equal() -> None:
    assert every(timedelta(seconds=60)) == every(timedelta(minutes=1))
    assert never() == never()
    assert len({every(timedelta(1)), every(timedelta(2)), never(), never()}) == 3


@pytest.mark.parametrize("schedule", [every(timedelta(1)), never(), cron("@daily")])
def test_all_are_schedules(schedule: object) -> None:
    assert isinstance(schedule, Schedule)
