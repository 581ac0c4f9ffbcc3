"""What a subscriber's inbox holds and loses, by itself: no database."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from riverq.event import Event, EventKind
from riverq.job import JobState
from riverq.queue import Queue
from riverq.service import ServiceContext
from riverq.state import completed, errored
from riverq.worker.settlement import Settled
from riverq.worker.subscription import Inbox, Subscriptions
from tests.worker.harness import ERROR, finished, run_context

COMPLETED = frozenset({EventKind.JOB_COMPLETED})
ALL = frozenset(EventKind)
AT = datetime(2026, 1, 1, tzinfo=UTC)
PAUSED = Queue(name="mail", created_at=AT, updated_at=AT, paused_at=AT)


def settled(job_id: int = 7, state: JobState = JobState.COMPLETED, *, lost: bool = False) -> Settled:
    context = run_context(id=job_id)
    wanted = completed(context.run)
    if state is not JobState.COMPLETED:
        wanted = errored(context.run, error=ERROR, retry=timedelta(hours=1), short=False)
    return Settled(finished=finished(context, wanted), state=state, lost=lost, at=AT)


def read(inbox: Inbox) -> Iterator[int | str]:
    """The ids of the jobs of all events that are there; what is lost as text."""
    while (event := inbox.take()) is not None:
        yield f"{event.lost} lost" if event.job is None else event.job.id


def send(subscriptions: Subscriptions, *job_ids: int) -> None:
    for job_id in job_ids:
        subscriptions.settled(settled(job_id))


@pytest.fixture
def subscriptions(ctx: ServiceContext) -> Subscriptions:
    return Subscriptions(ctx)


# -- what does not fit


def test_the_newest_are_lost_and_the_gap_stands_in_their_place(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 3)
    send(subscriptions, 1, 2, 3, 4, 5)
    first = inbox.take()
    assert first is not None
    assert first.job is not None
    assert first.job.id == 1
    send(subscriptions, 6, 7)
    assert list(read(inbox)) == [2, 3, "2 lost", 6, "1 lost"]
    send(subscriptions, 8)
    assert list(read(inbox)) == [8]
    assert inbox.lost == 3


def test_a_buffer_of_one_works(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 1)
    send(subscriptions, 1, 2, 3)
    assert inbox.take() is not None
    send(subscriptions, 4, 5)
    assert list(read(inbox)) == ["2 lost", 4, "1 lost"]


def test_each_subscriber_loses_its_own(subscriptions: Subscriptions) -> None:
    small, large = subscriptions.open(COMPLETED, 2), subscriptions.open(COMPLETED, 1000)
    send(subscriptions, *range(10))
    assert list(read(small)) == [0, 1, "8 lost"]
    assert list(read(large)) == list(range(10))
    assert (small.lost, large.lost) == (8, 0)


def test_one_warning_each_time_a_reader_falls_behind(
    subscriptions: Subscriptions, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = subscriptions.open(ALL, 2)
    with caplog.at_level(logging.WARNING, "riverq"):
        send(subscriptions, *range(10))
        inbox.take()
        send(subscriptions, *range(10))  # behind still: it has not read everything in between
        assert caplog.text.count("Began to lose events") == 1
        assert list(read(inbox))[-1] == "9 lost"
        send(subscriptions, *range(3))
        assert caplog.text.count("Began to lose events") == 2


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    """Threads take turns in the middle of whatever they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient_threads")
def test_losses_are_counted_exactly_while_threads_read(subscriptions: Subscriptions) -> None:
    inbox, sent = subscriptions.open(ALL, 3), 20_000
    counts: list[tuple[int, int]] = []
    context = run_context()
    one = replace(settled(), finished=finished(context))

    def reader() -> None:
        events = lost = 0
        while (event := inbox.wait(30)) is not None:
            events += event.kind is EventKind.JOB_COMPLETED
            lost += event.lost
        counts.append((events, lost))

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(sent):
        subscriptions.settled(one)
    subscriptions.end()
    for thread in threads:
        thread.join(30)
    total = sum(events + lost for events, lost in counts)
    assert (len(counts), total) == (4, sent)
    assert inbox.lost == sum(lost for _, lost in counts)


# -- what is sent to whom


def test_kinds_are_kept_apart(subscriptions: Subscriptions) -> None:
    done, failed, paused = (
        subscriptions.open(frozenset({kind}), 10)
        for kind in (EventKind.JOB_COMPLETED, EventKind.JOB_FAILED, EventKind.QUEUE_PAUSED)
    )
    send(subscriptions, 1)
    subscriptions.settled(settled(2, JobState.RETRYABLE))
    subscriptions.queue_changed(PAUSED)
    subscriptions.queue_changed(replace(PAUSED, paused_at=None))
    assert (list(read(done)), list(read(failed))) == ([1], [2])
    assert paused.take() == Event(kind=EventKind.QUEUE_PAUSED, queue=PAUSED)
    assert paused.take() is None


def test_all_subscribers_are_given_the_same_event(subscriptions: Subscriptions) -> None:
    first, second = subscriptions.open(ALL, 1), subscriptions.open(ALL, 1)
    send(subscriptions, 1)
    event = first.take()
    assert event is not None
    assert event is second.take()


def test_events_for_which_there_is_no_room_are_not_put_together(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 1)
    send(subscriptions, 1)
    unread = settled(2)
    subscriptions.settled(unread)
    assert isinstance(unread.finished.context._row, str)  # the row as claimed was not even decoded
    assert inbox.lost == 1


def test_a_lost_run_is_no_event(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 10)
    for state in JobState:
        subscriptions.settled(settled(1, state, lost=True))
    assert inbox.take() is None


def test_only_what_somebody_listens_to_is_wanted(subscriptions: Subscriptions) -> None:
    def wanted() -> set[JobState]:
        return {state for state in JobState if subscriptions.wants(state)}

    assert wanted() == set()
    queues = subscriptions.open(frozenset({EventKind.QUEUE_PAUSED}), 1)
    assert wanted() == set()
    failures = subscriptions.open(frozenset({EventKind.JOB_FAILED}), 1)
    assert wanted() == {JobState.AVAILABLE, JobState.RETRYABLE, JobState.DISCARDED}
    subscriptions.drop(failures)
    everything = subscriptions.open(ALL, 1)
    assert wanted() == set(JobState) - {JobState.PENDING, JobState.RUNNING}
    subscriptions.drop(everything)
    subscriptions.drop(queues)
    assert wanted() == set()
    assert not subscriptions.wants(None)


def test_no_duration_is_ever_negative(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 10)
    context = run_context(attempted_at_us=1_000_000, scheduled_at_us=1_000_001)
    later = subscriptions._ctx.clock.monotonic() + 100
    run = finished(context)._replace(started=later + 1, ended=later)
    subscriptions.settled(replace(settled(), finished=run))
    event = inbox.take()
    assert event is not None
    assert event.statistics is not None
    durations = event.statistics.queue_wait_duration, event.statistics.run_duration, event.statistics.complete_duration
    assert durations == (timedelta(0),) * 3


def test_durations_are_those_of_the_run(held_ctx: ServiceContext) -> None:
    subscriptions = Subscriptions(held_ctx)
    inbox = subscriptions.open(ALL, 10)
    now = held_ctx.clock.monotonic()
    context = run_context(attempted_at_us=5_000_007, scheduled_at_us=2_000_000)
    run = finished(context)._replace(started=now - 3.5, ended=now - 0.25)
    subscriptions.settled(replace(settled(), finished=run))
    event = inbox.take()
    assert event is not None
    assert event.statistics is not None
    assert event.statistics.queue_wait_duration == timedelta(seconds=3, microseconds=7)
    assert event.statistics.run_duration == timedelta(seconds=3.25)
    assert event.statistics.complete_duration == timedelta(seconds=0.25)


# -- the end


def test_what_was_not_read_can_be_read_after_the_end(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 2)
    send(subscriptions, 1, 2, 3)
    subscriptions.end()
    send(subscriptions, 4)
    assert inbox.is_closed
    assert list(read(inbox)) == [1, 2, "1 lost"]
    assert inbox.wait(None) is None
    assert not subscriptions.wants(JobState.COMPLETED)


def test_a_thread_that_waits_is_told_of_the_end(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 2)
    heard: list[Event | None] = []
    waiting = threading.Thread(target=lambda: heard.append(inbox.wait(30)))
    waiting.start()
    subscriptions.drop(inbox)
    subscriptions.drop(inbox)
    waiting.join(30)
    assert heard == [None]


def test_an_abandoned_inbox_goes_with_the_next_event(subscriptions: Subscriptions) -> None:
    left, kept = subscriptions.open(ALL, 10), subscriptions.open(COMPLETED, 10)
    left.abandon()
    send(subscriptions, 1, 2)
    assert subscriptions._inboxes == (kept,)
    assert list(read(kept)) == [1, 2]
    assert list(read(left)) == []
    assert not subscriptions.wants(JobState.RETRYABLE)


def test_nothing_to_read_in_time_is_an_error(subscriptions: Subscriptions) -> None:
    inbox = subscriptions.open(ALL, 10)
    with pytest.raises(TimeoutError):
        inbox.wait(0)
