"""The state machine: which moves exist, and one constructor per move that ends a run.

A run is known by its fence: the job's id, the `attempted_at` that the claim wrote (in microseconds since 1970, carried
and never recomputed) and the claiming client, whose id is the last of `attempted_by`. Every statement that ends a run
carries the fence, so a late loser changes nothing. `attempt` is no fence: it goes down on a snooze.

The drawing in docs/internals/state-machine.md is generated from `TRANSITIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from riverq.job import JobState

S = JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    S.AVAILABLE: frozenset({S.RUNNING, S.CANCELLED}),
    S.SCHEDULED: frozenset({S.AVAILABLE, S.DISCARDED, S.CANCELLED}),
    S.RETRYABLE: frozenset({S.AVAILABLE, S.DISCARDED, S.CANCELLED}),
    S.PENDING: frozenset({S.AVAILABLE, S.CANCELLED}),
    S.RUNNING: frozenset({S.COMPLETED, S.AVAILABLE, S.SCHEDULED, S.RETRYABLE, S.CANCELLED, S.DISCARDED}),
    S.COMPLETED: frozenset({S.AVAILABLE}),
    S.CANCELLED: frozenset({S.AVAILABLE}),
    S.DISCARDED: frozenset({S.AVAILABLE}),
}
"""From each state, the states a client may move a job to (`completed → available` and its kin are retries by hand)."""

SHORT_WAIT = timedelta(seconds=5)
"""A retry or snooze of at most this long goes straight to `available`; the leader's scheduler would come too late."""


class Reason(StrEnum):
    """Why a run ended, where the state alone does not say."""

    COMPLETED = "completed"
    ERRORED = "errored"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Run:
    """The fence of one run, and the cancel mark seen at its claim.

    `attempted_at_us` is in microseconds since 1970 UTC. `cancel_mark` is the job's metadata `cancel_attempted_at` at
    the claim: a job that was cancelled and retried by hand keeps its mark, so only a *different* mark means that this
    run is cancelled.
    """

    job_id: int
    attempted_at_us: int
    cancel_mark: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    """What the state write sets for one run. None leaves a column as it is.

    `scheduled_in` is written as the database's now plus that long, `scheduled_at` as given; at most one is set.
    `error` and `metadata` are encoded JSON objects; metadata is merged at the top level. Final states get
    `finalized_at` from the database's clock.
    """

    run: Run
    state: JobState
    reason: Reason
    attempt: int | None = None
    error: str | None = None
    metadata: str | None = None
    scheduled_at: datetime | None = None
    scheduled_in: timedelta | None = None

    @property
    def is_plain_success(self) -> bool:
        """Whether the slim statement, which returns ids only, can write it."""
        return self.state is S.COMPLETED and self.metadata is None


def completed(run: Run, *, metadata: str | None = None) -> SetState:
    """The worker returned."""
    return SetState(run=run, state=S.COMPLETED, reason=Reason.COMPLETED, metadata=metadata)


def cancelled(run: Run, *, error: str, metadata: str | None = None) -> SetState:
    """The worker asked for it, or a client cancelled the job while it ran."""
    return SetState(run=run, state=S.CANCELLED, reason=Reason.CANCELLED, error=error, metadata=metadata)


def discarded(run: Run, *, error: str, metadata: str | None = None) -> SetState:
    """No attempts are left, or the worker gave the job up."""
    return SetState(run=run, state=S.DISCARDED, reason=Reason.DISCARDED, error=error, metadata=metadata)


def errored(run: Run, *, error: str, retry: timedelta | datetime, short: bool, metadata: str | None = None) -> SetState:
    """The attempt failed and is tried again at `retry`; `short` sends it straight to `available`."""
    return SetState(
        run=run,
        state=S.AVAILABLE if short else S.RETRYABLE,
        reason=Reason.ERRORED,
        error=error,
        metadata=metadata,
        scheduled_in=retry if isinstance(retry, timedelta) else None,
        scheduled_at=retry if isinstance(retry, datetime) else None,
    )


def snoozed(run: Run, *, attempt: int, wait: timedelta, metadata: str) -> SetState:
    """The worker asked to run later; `attempt` is given back."""
    state = S.AVAILABLE if wait <= SHORT_WAIT else S.SCHEDULED
    return SetState(run=run, state=state, reason=Reason.SNOOZED, attempt=attempt, scheduled_in=wait, metadata=metadata)


def interrupted(run: Run, *, attempt: int, metadata: str | None = None) -> SetState:
    """The client stops: the job is given back at once and the attempt does not count."""
    return SetState(
        run=run,
        state=S.AVAILABLE,
        reason=Reason.INTERRUPTED,
        attempt=max(attempt, 0),
        scheduled_in=timedelta(0),
        metadata=metadata,
    )
