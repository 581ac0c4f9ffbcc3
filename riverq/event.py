"""What a subscriber receives: the things that happened to jobs and queues in this process, after they were written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from riverq.job import JobRow
from riverq.queue import Queue


class EventKind(StrEnum):
    """What happened. Events are local to a client: what other clients do is not among them."""

    EVENTS_LOST = "events_lost"
    """This subscriber did not keep up: `Event.lost` events are missing here. Every subscriber gets these."""
    JOB_CANCELLED = "job_cancelled"
    """A running job ended as cancelled: its worker asked for it, or a client did."""
    JOB_COMPLETED = "job_completed"
    JOB_FAILED = "job_failed"
    """An attempt failed: the job is now retryable, available again, or discarded."""
    JOB_INTERRUPTED = "job_interrupted"
    """The client stopped and gave the job back; the attempt does not count."""
    JOB_SNOOZED = "job_snoozed"
    QUEUE_PAUSED = "queue_paused"
    """A queue that this client works was paused, and it takes no more jobs of it: no claim is under way either."""
    QUEUE_RESUMED = "queue_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatistics:
    """How long one attempt took. None of the three is ever negative.

    - `queue_wait_duration`: from the time the job was due to its claim, both by the database's clock.
    - `run_duration`: running, from the claim's answer to the worker's end, middleware included.
    - `complete_duration`: from the worker's end until its outcome was known to be written.
    """

    complete_duration: timedelta
    queue_wait_duration: timedelta
    run_duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Kinds `job_…` have `job`, the row after the write, and `statistics`; kinds `queue_…` have `queue`; `events_lost` has
    `lost`, how many events are missing at this place.

    Of a job that simply completed, `job` is put together from the row as claimed: what others changed in it while it
    ran (its metadata, say) is not in there, and `finalized_at` is by this machine's clock.
    """

    kind: EventKind
    job: JobRow | None = None
    queue: Queue | None = None
    statistics: JobStatistics | None = None
    lost: int = 0
