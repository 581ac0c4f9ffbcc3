"""The state machine: which moves exist, and one constructor per move that ends a run.

A run is known by its fence: the job's id, the `attempted_at` that the claim wrote (in microseconds since 1970, carried
and never recomputed) and the claiming client, whose id is the last of `attempted_by`. Every statement that ends a run
carries the fence, so a late loser changes nothing. `attempt` is no fence: it goes down on a snooze.

The drawing in docs/internals/state-machine.md is `mermaid()`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from riverq.job import JobState

S = JobState

TRIGGERS: dict[tuple[JobState, JobState], str] = {
    (S.AVAILABLE, S.RUNNING): "claim",
    (S.AVAILABLE, S.CANCELLED): "cancel",
    (S.SCHEDULED, S.AVAILABLE): "due, or retry by hand",
    (S.SCHEDULED, S.DISCARDED): "due, unique key taken",
    (S.SCHEDULED, S.CANCELLED): "cancel",
    (S.RETRYABLE, S.AVAILABLE): "due, or retry by hand",
    (S.RETRYABLE, S.DISCARDED): "due, unique key taken",
    (S.RETRYABLE, S.CANCELLED): "cancel",
    (S.PENDING, S.AVAILABLE): "retry by hand",
    (S.PENDING, S.CANCELLED): "cancel",
    (S.RUNNING, S.COMPLETED): "success",
    (S.RUNNING, S.AVAILABLE): "short retry or snooze, interrupted, client died",
    (S.RUNNING, S.SCHEDULED): "snooze",
    (S.RUNNING, S.RETRYABLE): "error, rescue",
    (S.RUNNING, S.CANCELLED): "cancel",
    (S.RUNNING, S.DISCARDED): "no attempts left, given up",
    (S.COMPLETED, S.AVAILABLE): "retry by hand",
    (S.CANCELLED, S.AVAILABLE): "retry by hand",
    (S.DISCARDED, S.AVAILABLE): "retry by hand",
}
"""Every move that a client may make, and what makes it. A retry by hand of an `available` job changes only its time."""

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    state: frozenset(after for before, after in TRIGGERS if before is state) for state in S
}
"""From each state, the states a client may move a job to."""

ENTRIES: dict[JobState, str] = {
    S.AVAILABLE: "insert",
    S.SCHEDULED: "insert with a time",
    S.PENDING: "insert as pending",
}
"""The states a job may begin in."""

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


def next_snooze_count(value: object) -> int:
    """What `metadata.snoozes` becomes with one more snooze; `value` is the decoded value now, None where there is none.

    Other clients may have written anything, so it is read as leniently as they read it: numbers lose their fraction,
    texts count if they are plain integers, true is 1, everything else 0.
    """
    count = 0
    if isinstance(value, (int, float)):
        count = int(value) if abs(value) < 2**63 else 0
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        count = int(value)
    return count + 1 if abs(count) < 2**63 - 1 else 1


_INTEGER = re.compile(r"-?[0-9]{1,19}")


def mermaid() -> str:
    """The state machine as a mermaid diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state}: {what}" for state, what in ENTRIES.items()]
    lines += [f"    {before} --> {after}: {what}" for (before, after), what in TRIGGERS.items()]
    lines += [f"    {state} --> [*]: retention" for state in S if state.is_final]
    return "\n".join(lines)
