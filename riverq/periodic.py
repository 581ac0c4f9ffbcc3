"""Jobs that the leader inserts by a schedule: what one is, and which ones a client has.

Every client that may lead keeps its own `PeriodicJobs` in memory, and only the leader's are inserted; so the clients of
a fleet register the same ones, in every language. The registry is used from any thread: on a sync `Client` the
application's threads add and remove while the leader's loop reads. Whoever reads it to act on it subscribes, and is
called, outside the lock and in the changing thread, after every change.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime

from riverq.clock import Clock, SystemClock
from riverq.errors import ConfigError
from riverq.schedule import Schedule
from riverq.validation import fail

MAX_ID_LENGTH = 127

# The alphabet of kinds, in which River reads these ids too.
_ID = re.compile(r"\w[\w\-\[\]<>/.·:+]+", re.ASCII)

MakeArgs = Callable[[], object] | Callable[[datetime], object]


@dataclass(frozen=True, slots=True, eq=False)
class PeriodicJob:
    """A job to insert whenever `schedule` says.

    - `schedule`: `riverq.cron("0 9 * * MON-FRI")`, `riverq.every(timedelta(…))`, `riverq.never()`, or any object with
      `next(after)`; asked in UTC.
    - `make_args` is called for each run, in a thread, and returns args, an `InsertItem`, or None to skip that run. If
      it needs an argument, it gets the time that the run is for, in UTC.
    - `id`: a name that stays the same between deployments, needed to remove the job by name and for `durable`; 2 to
      127 letters, digits, underscores and `-[]<>/.·:+`.
    - `run_on_start`: insert one whenever a client of this fleet begins to lead, and when it is added to one that leads.
    - `durable`: keep the next run in the database, so that runs missed while nobody led are caught up.

    Raises ConfigError for what cannot be.
    """

    schedule: Schedule
    make_args: MakeArgs
    _: KW_ONLY
    id: str | None = None
    run_on_start: bool = False
    durable: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.schedule, type) or not callable(getattr(self.schedule, "next", None)):
            raise fail("schedule", "to be a schedule", self.schedule, "riverq.cron(…), every(…), never()")
        _check_make_args(self.make_args)
        if self.id is not None:
            check_periodic_id(self.id)
        for name in ("run_on_start", "durable"):
            if not isinstance(getattr(self, name), bool):
                raise fail(name, "to be True or False", getattr(self, name))
        if self.durable and self.id is None:
            raise ConfigError("a durable periodic job needs an id, under which its next run is kept (id='…')")

    @property
    def takes_target(self) -> bool:
        """Whether `make_args` is given the time that the run is for."""
        return _required_arguments(self.make_args) == 1


@dataclass(frozen=True, slots=True, eq=False)
class PeriodicHandle:
    """What `PeriodicJobs.add` returns, to remove that job by. Equal only to itself."""

    job: PeriodicJob


@dataclass(frozen=True, slots=True)
class RegisteredPeriodicJob:
    """One registered job. `next_run_at`: None for never again, or where its schedule fails to say."""

    handle: PeriodicHandle
    next_run_at: datetime | None

    @property
    def job(self) -> PeriodicJob:
        """As it was registered."""
        return self.handle.job

    @property
    def id(self) -> str | None:
        """The job's id."""
        return self.handle.job.id


class PeriodicJobs:
    """The periodic jobs of one client, in the order in which they were added; for any thread.

    Changes are this client's alone and last as long as it does. On a client that leads they take effect at once; on
    another, if and when it leads.
    """

    def __init__(self, jobs: Iterable[PeriodicJob] = (), *, may_lead: bool = True, clock: Clock | None = None) -> None:
        self._may_lead = may_lead
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._handles: dict[PeriodicHandle, None] = {}
        self._by_id: dict[str, PeriodicHandle] = {}
        self._planned: dict[PeriodicHandle, datetime | None] = {}
        self._subscribers: list[Callable[[], None]] = []
        initial = list(jobs)
        if initial:
            self.add_many(initial)

    # -- for the application

    def add(self, job: PeriodicJob) -> PeriodicHandle:
        """Register one job. Raises ConfigError for an id that is taken, or on a client that may not lead."""
        return self.add_many([job])[0]

    def add_many(self, jobs: Sequence[PeriodicJob]) -> Sequence[PeriodicHandle]:
        """Register all of them, or none: raises ConfigError as `add` does, before the first is added."""
        handles = [PeriodicHandle(_checked(job)) for job in jobs]
        if handles and not self._may_lead:
            raise ConfigError("periodic jobs need a client that may lead (drop leader_election=False)")
        with self._lock:
            named: dict[str, PeriodicHandle] = {}
            for handle in handles:
                if handle.job.id is not None:
                    if handle.job.id in self._by_id or handle.job.id in named:
                        raise ConfigError(
                            f"periodic job id {handle.job.id!r} is taken (ids are unique within a client: "
                            "remove_by_id first, or choose another)"
                        )
                    named[handle.job.id] = handle
            self._handles.update(dict.fromkeys(handles))
            self._by_id.update(named)
        self._changed()
        return handles

    def remove(self, handle: PeriodicHandle) -> bool:
        """Remove one job; False where it is not there (any more). Jobs inserted already stay."""
        return self.remove_many([handle]) == 1

    def remove_by_id(self, job_id: str) -> bool:
        """Remove the job of this id; False where there is none."""
        with self._lock:
            handle = self._by_id.get(job_id)
            if handle is not None:
                self._forget(handle)
        self._changed()
        return handle is not None

    def remove_many(self, handles: Iterable[PeriodicHandle]) -> int:
        """Remove all of them; returns how many were there."""
        with self._lock:
            present = [handle for handle in dict.fromkeys(handles) if handle in self._handles]
            for handle in present:
                self._forget(handle)
        self._changed()
        return len(present)

    def clear(self) -> None:
        """Remove every job; their ids are free again."""
        with self._lock:
            for handle in [*self._handles]:
                self._forget(handle)
        self._changed()

    def next_run_times(self, after: datetime | None = None) -> Sequence[tuple[PeriodicJob, datetime | None]]:
        """Each job with the first run after `after`, or now, as its schedule says, whoever leads; None for never.

        A schedule that fails counts as never here.
        """
        moment = self._clock.now() if after is None else after
        return [(handle.job, _next_or_none(handle.job, moment)) for handle in self.handles()]

    def list(self) -> Sequence[RegisteredPeriodicJob]:
        """Each job with its next run: what this client is about to insert while it leads, else as the schedule says."""
        now = self._clock.now()
        with self._lock:
            known = [(handle, handle in self._planned, self._planned.get(handle)) for handle in self._handles]
        return [
            RegisteredPeriodicJob(handle, at if is_planned else _next_or_none(handle.job, now))
            for handle, is_planned, at in known
        ]

    def __len__(self) -> int:
        return len(self._handles)

    # -- for the leader

    def handles(self) -> Sequence[PeriodicHandle]:
        """Everything registered now."""
        with self._lock:
            return [*self._handles]

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change()` after every change, in whichever thread made it."""
        with self._lock:
            self._subscribers.append(on_change)

    def unsubscribe(self, on_change: Callable[[], None]) -> None:
        """No more calls begin; nobody leads here any more, so what was planned is forgotten."""
        with self._lock:
            self._subscribers.remove(on_change)
            self._planned.clear()

    def plan(self, handle: PeriodicHandle, next_run_at: datetime | None) -> None:
        """Show this as the job's next run."""
        with self._lock:
            if handle in self._handles:
                self._planned[handle] = next_run_at

    # -- private

    def _forget(self, handle: PeriodicHandle) -> None:
        del self._handles[handle]
        self._planned.pop(handle, None)
        if handle.job.id is not None:
            del self._by_id[handle.job.id]

    def _changed(self) -> None:
        with self._lock:
            subscribers = [*self._subscribers]
        for on_change in subscribers:
            on_change()


def next_run(job: PeriodicJob, after: datetime) -> datetime | None:
    """What the job's schedule says, in UTC. Raises ConfigError for a naive or an earlier answer, and what it raises."""
    found = job.schedule.next(after.astimezone(UTC))
    if found is None:
        return None
    name = f"the next run of {job.schedule!r}"
    if not isinstance(found, datetime) or found.utcoffset() is None:
        raise fail(name, "to be an aware datetime or None", found)
    if found <= after:
        raise fail(name, f"to be after {after.isoformat()}", found.isoformat())
    return found.astimezone(UTC)


def check_periodic_id(job_id: object) -> None:
    """Raises ConfigError for an id that River refuses."""
    if not isinstance(job_id, str) or len(job_id) > MAX_ID_LENGTH or not _ID.fullmatch(job_id):
        raise fail(
            "id",
            f"to be 2 to {MAX_ID_LENGTH} letters, digits, underscores and -[]<>/.·:+, "
            "the first a letter, digit or underscore",
            job_id,
        )


def _checked(job: object) -> PeriodicJob:
    if not isinstance(job, PeriodicJob):
        raise fail("a periodic job", "to be a riverq.PeriodicJob", job)
    return job


def _next_or_none(job: PeriodicJob, after: datetime) -> datetime | None:
    try:
        return next_run(job, after)
    except Exception:  # noqa: BLE001  # the application's own code; the leader logs what it raises
        return None


def _check_make_args(make_args: object) -> None:
    way_out = "a function, such as lambda: SendReport()"
    if not callable(make_args):
        raise fail("make_args", "to be a function", make_args, way_out)
    if inspect.iscoroutinefunction(make_args):
        raise fail("make_args", "to be a plain def", make_args, "what has to be awaited belongs into the worker")
    if _required_arguments(make_args) > 1:
        raise fail("make_args", "to need no argument, or the run's time only", make_args, way_out)


def _required_arguments(make_args: Callable[..., object]) -> int:
    """How many arguments it cannot do without; none where Python cannot tell."""
    try:
        parameters = inspect.signature(make_args).parameters.values()
    except (TypeError, ValueError):
        return 0
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [each for each in parameters if each.default is each.empty and each.kind not in optional]
    return 99 if any(each.kind is each.KEYWORD_ONLY for each in required) else len(required)
