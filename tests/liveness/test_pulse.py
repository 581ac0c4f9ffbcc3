from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from riverq.liveness.pulse import Beat, Pulse

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(seconds=5)
NO_GAP = timedelta(0)


def at(seconds: float, *, wall: float | None = None, database: float | None = None) -> Beat:
    """A heartbeat after so many seconds of each clock."""
    clocks = [seconds if given is None else given for given in (wall, database)]
    return Beat(seconds, *(BEGAN + timedelta(seconds=clock) for clock in clocks))


def sure(pulse: Pulse, seconds: float, *, wall: float | None = None) -> float:
    return pulse.sure_for(seconds, at(seconds, wall=wall).wall).total_seconds()


@pytest.fixture
def pulse() -> Pulse:
    """One that beat at 0, 5 and 10 seconds."""
    pulse = Pulse(INTERVAL)
    assert [pulse.succeeded(at(seconds)) for seconds in (0, 5, 10)] == [NO_GAP] * 3
    return pulse


def test_nothing_is_sure_before_the_first() -> None:
    pulse = Pulse(INTERVAL)
    assert sure(pulse, 0) == 0
    pulse.failed()
    assert (pulse.last, pulse.failures_in_a_row, sure(pulse, 0)) == (None, 1, 0)


def test_sure_from_the_first_to_the_last(pulse: Pulse) -> None:
    assert sure(pulse, 10) == sure(pulse, 12) == 10
    assert pulse.last == at(10)


def test_nothing_is_sure_when_the_last_is_two_intervals_ago(pulse: Pulse) -> None:
    assert sure(pulse, 20) == 10
    assert sure(pulse, 20.1) == 0
    assert sure(pulse, 12, wall=20.1) == 0, "the machine was paused, and its monotonic clock with it"
    assert sure(pulse, 12, wall=-0.1) == 0


def test_a_late_heartbeat_begins_the_count_anew(pulse: Pulse) -> None:
    assert pulse.succeeded(at(20)) == NO_GAP
    assert sure(pulse, 20) == 20
    assert pulse.succeeded(at(31)) == timedelta(seconds=11)
    assert sure(pulse, 31) == 0
    pulse.succeeded(at(36))
    assert sure(pulse, 36) == 5


@pytest.mark.parametrize(
    "late",
    [at(15, wall=20.1), at(15, wall=-0.1), at(15, database=20.1), at(15, database=-0.1)],
    ids=["wall forward", "wall back", "database forward", "database back"],
)
def test_a_gap_on_any_clock_counts(pulse: Pulse, late: Beat) -> None:
    assert pulse.succeeded(late) > 2 * INTERVAL
    assert sure(pulse, 15, wall=(late.wall - BEGAN).total_seconds()) == 0


def test_failures_are_counted_and_are_no_gap_by_themselves(pulse: Pulse) -> None:
    pulse.failed()
    pulse.failed()
    assert (pulse.failures_in_a_row, sure(pulse, 19)) == (2, 10)
    pulse.succeeded(at(19))
    assert (pulse.failures_in_a_row, sure(pulse, 19)) == (0, 19)
