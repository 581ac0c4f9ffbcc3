"""How a working client fares: plain figures, for probes, dashboards and tests. All as of the moment of asking."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue in this client; counters since it was begun. `stuck` jobs are running ones past their timeout.

    `paused` is whether this client knows of a pause, and takes no more jobs: no claim of before is under way either.
    """

    name: str
    max_workers: int
    running: int
    stuck: int
    paused: bool
    claims: int
    claimed: int
    ended: int
    failed_claims: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderStats:
    """This client's part in leadership. `elected_at` is its present term, None where it does not lead.

    `trust_left` is how long it may believe that it leads without another renewal; `last_renewal` is this machine's
    time of the last successful bid or renewal.
    """

    takes_part: bool
    is_leader: bool
    elected_at: datetime | None
    last_renewal: datetime | None
    failures_in_a_row: int
    trust_left: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStats:
    """The event loop: the longest time for which it did not run, and what blocked it when that was noticed."""

    blocked: int
    longest_block: timedelta
    blocked_now: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessStats:
    """Proof of life. `enabled` where riverq's own tables are there; `last_seen` is when the row was last touched."""

    enabled: bool
    last_seen: datetime | None
    failures_in_a_row: int
    holds_lock: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """A working client. `written` jobs have their end in the database, `lost` ones belonged to another run by then."""

    client_id: str
    queues: tuple[QueueStats, ...]
    leader: LeaderStats
    liveness: LivenessStats
    loop: LoopStats
    listening: bool
    delivering: bool
    poll_only: bool
    written: int
    lost: int
    unknown_stuck: int
