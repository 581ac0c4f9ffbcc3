"""Brings events to subscribers without ever making the completer wait. This docstring is its design.

Before: `settlement` tells of every settled run, `remote_control` of queues that were paused or resumed. After: the
iterators of `client.subscribe()`, each of which empties an `Inbox`.

**What a run's event says** is what its row shows, not what was asked for: an error whose retry was turned into a
cancellation is `job_cancelled`, a job that was completed in its worker's own transaction is `job_completed` whatever
the worker did next. A run that was lost (rescued, deleted, ended elsewhere) wrote nothing and is no event. Where the
row shows a later run already (the answer to our statement was lost, and the job went on meanwhile), the event says
what our statement wrote.

**A subscriber that does not keep up.** An inbox holds so many events and no more. What does not fit is counted and
dropped, newest first, as River does; in its place stands one `events_lost` with the number. It is put there when the
next event fits, or when the inbox has been emptied, whichever is first, so a number never changes once it was read. One
line is logged each time a subscriber begins to lose events after it had read everything.

**Threads.** Events come from the client's loop alone; any thread may read, subscribe and unsubscribe. Inboxes are
locked for single steps, never while waiting. The list of inboxes is replaced, never changed, so the loop reads it
without a lock.

**What it costs.** Whether anybody wants a kind of outcome is one look per batch. With no subscriber nothing else
happens; a subscriber to failures costs completions nothing; an event is put together once for all subscribers, and not
at all where no inbox has room.

**The end.** When the client has stopped, and everything it could write is written, all inboxes are closed: what they
hold can still be read, then their iterators end. A start that fails closes none. A subscriber that was dropped without
being closed is noticed by the garbage collector, which may run anywhere, under any lock; so it only leaves a mark, and
the inbox goes with the next event.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from riverq.event import Event, EventKind, JobStatistics
from riverq.job import JobState
from riverq.queue import Queue
from riverq.service.context import ServiceContext
from riverq.state import Reason
from riverq.worker.settlement import Settled

_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)

_BY_STATE = {
    JobState.CANCELLED: EventKind.JOB_CANCELLED,
    JobState.COMPLETED: EventKind.JOB_COMPLETED,
    JobState.DISCARDED: EventKind.JOB_FAILED,
}
"""States that say by themselves what happened."""

_BY_REASON = {
    Reason.CANCELLED: EventKind.JOB_CANCELLED,
    Reason.COMPLETED: EventKind.JOB_COMPLETED,
    Reason.DISCARDED: EventKind.JOB_FAILED,
    Reason.ERRORED: EventKind.JOB_FAILED,
    Reason.INTERRUPTED: EventKind.JOB_INTERRUPTED,
    Reason.SNOOZED: EventKind.JOB_SNOOZED,
}

_STATES = {
    EventKind.JOB_CANCELLED: {JobState.CANCELLED},
    EventKind.JOB_COMPLETED: {JobState.COMPLETED},
    EventKind.JOB_FAILED: {JobState.AVAILABLE, JobState.RETRYABLE, JobState.DISCARDED},
    EventKind.JOB_INTERRUPTED: {JobState.AVAILABLE},
    EventKind.JOB_SNOOZED: {JobState.AVAILABLE, JobState.SCHEDULED},
}
"""In which states a job can be after which event."""


class Inbox:
    """What one subscriber has not read yet: at most `size` events, and how many are missing where.

    `on_change` is called, in whichever thread, after there is something new: an event, or the end.
    """

    def __init__(self, ctx: ServiceContext, kinds: frozenset[EventKind], size: int) -> None:
        self._ctx = ctx
        self.kinds = kinds
        self.on_change: Callable[[], None] | None = None
        self.lost = 0
        """How many events were dropped so far."""
        self.is_closed = False
        self.is_abandoned = False
        self._size = size
        self._changed = threading.Condition()  # its lock may be taken again by a signal handler of the same thread
        self._events: deque[Event] = deque()
        self._held = 0
        self._missing = 0
        self._is_behind = False

    # -- the client's loop

    def admits(self) -> bool:
        """Whether one more event fits; one that does not is counted as lost."""
        with self._changed:
            if self.is_closed:
                return False
            if self._held < self._size:
                return True
            self.lost += 1
            self._missing += 1
            was_behind, self._is_behind = self._is_behind, True
        if not was_behind:
            self._ctx.log.warning(
                "Subscription: Began to lose events, its reader has left %d unread (read faster, or give buffer=…)",
                self._size,
            )
        return False

    def put(self, event: Event) -> None:
        """Add an event that was admitted."""
        with self._changed:
            self._note_missing()
            self._events.append(event)
            self._held += 1
            self._changed.notify_all()
        if self.on_change is not None:
            self.on_change()

    # -- any thread

    def take(self) -> Event | None:
        """The next event; None where there is none now."""
        with self._changed:
            if not self._events:
                self._note_missing()
            if not self._events:
                return None
            event = self._events.popleft()
            if event.kind is not EventKind.EVENTS_LOST:
                self._held -= 1
            if not self._events and not self._missing:
                self._is_behind = False
            return event

    def wait(self, seconds: float | None) -> Event | None:
        """Block until there is an event or the end (None), at most so many seconds. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_closed or self._events or self._missing, seconds):
                raise TimeoutError
            return self.take()

    def close(self) -> None:
        """Nothing comes any more; what is here may still be read."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        if self.on_change is not None:
            self.on_change()

    def abandon(self) -> None:
        """Nobody can read any more. Takes no lock: the garbage collector calls it."""
        self.is_abandoned = True
        self._events.clear()

    def _note_missing(self) -> None:
        if self._missing:
            self._events.append(Event(kind=EventKind.EVENTS_LOST, lost=self._missing))
            self._missing = 0


class Subscriptions:
    """All subscribers of one client, through all its runs."""

    def __init__(self, ctx: ServiceContext) -> None:
        self._ctx = ctx
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._inboxes: tuple[Inbox, ...] = ()
        self._states: frozenset[JobState] = frozenset()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop of the present or last run, where events come from."""

    # -- any thread

    def open(self, kinds: frozenset[EventKind], size: int) -> Inbox:
        """Begin to listen."""
        inbox = Inbox(self._ctx, kinds, size)
        with self._lock:
            self._keep([*self._inboxes, inbox])
        return inbox

    def drop(self, inbox: Inbox) -> None:
        """Listen no more. Does nothing the second time."""
        if os.getpid() != self._process:  # in a forked child nothing comes, and nobody may be left to release the locks
            inbox.is_closed = True
            return
        with self._lock:
            self._keep([each for each in self._inboxes if each is not inbox])
        inbox.close()

    def end(self) -> None:
        """The client has stopped, and nothing more will come of this run."""
        with self._lock:
            ended = self._inboxes
            self._keep([])
        for inbox in ended:
            inbox.close()

    def _keep(self, inboxes: list[Inbox]) -> None:
        self._inboxes = tuple(inbox for inbox in inboxes if not inbox.is_abandoned)
        kinds = {kind for inbox in self._inboxes for kind in inbox.kinds}
        self._states = frozenset(state for kind in kinds for state in _STATES.get(kind, ()))

    # -- the client's loop

    def wants(self, state: JobState | None) -> bool:
        """Whether any subscriber is to hear of runs that end in `state`."""
        return state in self._states

    def settled(self, settled: Settled) -> None:
        """A run has been written, or lost."""
        kind = _kind_of(settled)
        if kind is not None:
            finished = settled.finished
            taken = self._ctx.clock.monotonic() - finished.ended
            self._deliver(kind, partial(_job_event, kind, settled, taken))

    def queue_changed(self, queue: Queue) -> None:
        """A queue that this client works was paused or resumed."""
        kind = EventKind.QUEUE_RESUMED if queue.paused_at is None else EventKind.QUEUE_PAUSED
        self._deliver(kind, partial(Event, kind=kind, queue=queue))

    def _deliver(self, kind: EventKind, make: Callable[[], Event]) -> None:
        event: Event | None = None
        for inbox in self._inboxes:
            if inbox.is_abandoned:
                self.drop(inbox)
            elif kind in inbox.kinds and inbox.admits():
                event = event or make()
                inbox.put(event)


def _kind_of(settled: Settled) -> EventKind | None:
    if settled.lost or settled.state is None:
        return None
    by_reason = _BY_REASON[settled.finished.state.reason]
    return by_reason if _has_moved_on(settled) else _BY_STATE.get(settled.state, by_reason)


def _has_moved_on(settled: Settled) -> bool:
    """Whether the row was claimed again before it was read."""
    row = settled.persisted
    if row is None or row.attempted_at is None:
        return False
    return (row.attempted_at - _EPOCH) // _MICROSECOND != settled.finished.context.run.attempted_at_us


def _job_event(kind: EventKind, settled: Settled, taken: float) -> Event:
    finished = settled.finished
    claimed = finished.context.claimed
    statistics = JobStatistics(
        complete_duration=timedelta(seconds=max(taken, 0.0)),
        queue_wait_duration=timedelta(microseconds=max(claimed.attempted_at_us - claimed.scheduled_at_us, 0)),
        run_duration=timedelta(seconds=max(finished.ended - finished.started, 0.0)),
    )
    return Event(kind=kind, job=settled.row, statistics=statistics)
