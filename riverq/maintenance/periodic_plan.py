"""What the leader keeps in mind about one periodic job, where a durable one takes up, and how a run is made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from riverq.insert_opts import InsertItem, InsertOptions, InsertParams
from riverq.maintenance.periodic_insert import Run
from riverq.periodic import PeriodicHandle, PeriodicJob, next_run
from riverq.query.periodic_job import Advance, StoredRun
from riverq.schedule import Never
from riverq.service import Backoff

CATCH_UP_LIMIT = 1_000
"""Hourly runs of six weeks; those of a job that runs each second, of a quarter of an hour."""

Prepare = Callable[[InsertItem, datetime], InsertParams]


class DueRun(NamedTuple):
    """A run that is due. `is_start`: the one that `run_on_start` asks for."""

    target: datetime
    is_start: bool


@dataclass(eq=False)
class Plan:
    """The next run of one job.

    - `is_planned`: whether `target` is known; None then means never.
    - `stored`: what a durable job's row holds; the row moves on only from there. It may differ from `target`.
    - `start_at`: the run that `run_on_start` asks for, until it is inserted.
    - `not_before`: on the monotonic clock, after a failure of this job alone. `is_alone`: not to be inserted with
      others, which it has held up. `doubt`: a run that may be committed already.
    - `making`: the call of `make_args`, which may outlive its time.
    - `overdue`: runs made up for in a row.
    """

    handle: PeriodicHandle
    backoff: Backoff
    is_durable: bool
    is_planned: bool = False
    target: datetime | None = None
    stored: datetime | None = None
    start_at: datetime | None = None
    not_before: float = 0.0
    is_alone: bool = False
    doubt: DueRun | None = None
    making: Future[Any] | None = None
    overdue: int = 0

    @property
    def job(self) -> PeriodicJob:
        """As it was registered."""
        return self.handle.job

    @property
    def name(self) -> str:
        """The job in a log line."""
        return repr(self.job.id) if self.job.id is not None else f"the job without id by {self.job.schedule!r}"

    def plan(self, target: datetime | None, stored: datetime | None = None) -> None:
        """This is its next run."""
        self.target, self.stored, self.is_planned = target, stored, True

    def forget(self) -> None:
        """What was planned no longer holds."""
        self.is_planned = False

    @property
    def is_before_row(self) -> bool:
        """Whether it is planned for a run before the one that its row holds."""
        return self.target is not None and self.stored is not None and self.target < self.stored

    @property
    def is_shown_by_job(self) -> bool:
        """Whether a job in the table can show that the doubtful run is committed, and nothing better can."""
        return self.doubt is not None and self.job.id is not None and (self.doubt.is_start or not self.is_durable)

    def due_run(self, until: datetime) -> DueRun | None:
        """The run to insert, due before `until`; None for none.

        A durable job is caught up first: its start, being later, would look like a sign that the missed runs were
        inserted, if leadership changed in between.
        """
        is_due = self.target is not None and self.target < until
        if self.start_at is not None and not (is_due and self.is_durable):
            return DueRun(self.start_at, is_start=True)
        return DueRun(self.target, is_start=False) if self.target is not None and is_due else None

    def wait(self, now: datetime, monotonic: float) -> float | None:
        """Seconds until it is worth looking at this job again; None for never."""
        blocked = max(0.0, self.not_before - monotonic)
        if not self.is_planned or self.start_at is not None:
            return blocked
        return None if self.target is None else max(blocked, (self.target - now) / timedelta(seconds=1))

    def failed(self, monotonic: float) -> float:
        """This job's own failure: try again later; returns after how many seconds."""
        wait = self.backoff.next()
        self.not_before = monotonic + wait
        return wait

    def inserted(self, due: DueRun, following: datetime | None) -> None:
        """Its run is committed; the plan moves on."""
        self.backoff.reset()
        self.is_alone = False
        if due.is_start:
            self.start_at = None
        else:
            self.target = following
            self.stored = following if self.is_durable else None


def first_target(job: PeriodicJob, stored: StoredRun | None, now: datetime) -> datetime | None:
    """The run with which a leader begins. `stored`: what a durable job's row says, None without a row."""
    if stored is None or isinstance(job.schedule, Never):
        return next_run(job, now)
    if stored.next_run_at > now:
        following = next_run(job, now if stored.done_until is None else max(now, stored.done_until))
        return None if following is None else min(stored.next_run_at, following)
    if stored.done_until is None:
        return stored.next_run_at
    return next_run(job, max(stored.done_until, stored.next_run_at))


@dataclass(frozen=True)
class Made:
    """A run that is ready to be inserted, whose it is, and which run follows.

    `is_behind`: the following run is overdue too. `is_skipping`: runs in between are given up.
    """

    plan: Plan
    run: Run
    due: DueRun
    following: datetime | None
    is_behind: bool
    is_skipping: bool


def make_run(plan: Plan, prepare: Prepare, due: DueRun, now: datetime) -> Made:
    """Ask the application's code for the run; called in a thread, since it may block. Raises what that raises."""
    job, is_skipping = plan.job, False
    following = None if due.is_start else next_run(job, due.target)
    is_behind = following is not None and following <= now
    if is_behind and plan.overdue + 1 >= CATCH_UP_LIMIT:
        following, is_behind, is_skipping = next_run(job, now), False, True
    made: Any = job.make_args
    given = made(due.target) if job.takes_target else made()
    params = None if given is None else _params(job, given, prepare, due.target)
    step = Advance(str(job.id), plan.stored, following) if plan.stored is not None and not due.is_start else None
    return Made(plan, Run(params, step), due, following, is_behind, is_skipping)


def _params(job: PeriodicJob, given: object, prepare: Prepare, target: datetime) -> InsertParams:
    """Available at its target, unless its own options say when."""
    item = given if isinstance(given, InsertItem) else InsertItem(given)
    metadata = {**(item.options.get("metadata") or {}), "periodic": True}
    if job.id is not None:
        metadata["river:periodic_job_id"] = job.id
    options: InsertOptions = {**item.options, "metadata": metadata}
    params = prepare(InsertItem(item.args, **options), target)
    if params.scheduled_at is None and params.scheduled_in is None:
        params = replace(params, scheduled_at=target)
    return params
