from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from riverq.maintenance.job_scheduler import GRAIN, NOTIFY_GAP, DueTimers


def test_nothing_is_due_without_jobs() -> None:
    timers = DueTimers()
    assert timers.next() is None
    assert timers.take(1e9) == []


def test_single_job_is_due_at_its_time_to_the_grain() -> None:
    timers = DueTimers()
    timers.add("mail", 3.0)
    due = timers.next()
    assert due is not None
    assert 3.0 <= due <= 3.0 + 2 * GRAIN
    assert timers.take(2.9) == []
    assert timers.take(due) == ["mail"]
    assert timers.next() is None


def test_queues_do_not_hold_each_other_up() -> None:
    timers = DueTimers()
    timers.add("mail", 1.0)
    timers.add("video", 1.05)
    assert timers.take(1.02) == ["mail"]
    assert timers.take(1.07) == ["video"]


def test_a_notification_for_another_reason_delays_the_next_by_the_gap() -> None:
    timers = DueTimers()
    timers.add("mail", 1.0)
    timers.notified("mail", 0.95)
    assert timers.next() == 0.95 + NOTIFY_GAP


@given(st.lists(st.floats(min_value=0, max_value=5), min_size=1, max_size=200))
def test_every_job_is_notified_after_it_falls_due_and_never_closer_than_the_limiter_allows(dues: list[float]) -> None:
    timers = DueTimers()
    for due in dues:
        timers.add("mail", due)
    sent: list[float] = []
    while (at := timers.next()) is not None:
        assert timers.take(at) == ["mail"]
        sent.append(at)
    assert all(any(due <= at <= due + NOTIFY_GAP + 2 * GRAIN for at in sent) for due in dues)
    assert all(later - earlier >= NOTIFY_GAP - 1e-9 for earlier, later in pairwise(sent))
