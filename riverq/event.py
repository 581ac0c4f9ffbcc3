"""What a subscriber receives: the things that happened to jobs and queues in this process, after they were written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from riverq.job import JobRow
from riverq.queue import Queue


class EventKind(StrEnum):
    """What happened. Events are local to a client: what other clients do is not among them."""

    JOB_CANCELLED = "job_cancelled"
    JOB_COMPLETED = "job_completed"
    JOB_FAILED = "job_failed"
    """An attempt failed: the job is now retryable, available again, or discarded."""
    JOB_INTERRUPTED = "job_interrupted"
    """The client stopped and gave the job back; the attempt does not count."""
    JOB_SNOOZED = "job_snoozed"
    QUEUE_PAUSED = "queue_paused"
    QUEUE_RESUMED = "queue_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatistics:
    """How long one attempt took: waiting in the queue since it was due, running, and being written."""

    complete_duration: timedelta
    queue_wait_duration: timedelta
    run_duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened: to `job`, with `statistics`, or to `queue`."""

    kind: EventKind
    job: JobRow | None = None
    queue: Queue | None = None
    statistics: JobStatistics | None = None
