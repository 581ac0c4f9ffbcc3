"""riverq: River, the Postgres job queue, for Python.

`Client` and `AsyncClient` insert and work jobs; `job_args` marks a class as a job's args; `Workers` says what works
them; `migrate` brings the tables about. Everything public is here; modules are where it is written.
"""

from __future__ import annotations

from riverq import migrate
from riverq.client import AsyncClient, Client
from riverq.client.job_changes import JobDeleteFilters
from riverq.client.queues import AsyncQueues, Queues
from riverq.client.subscribing import AsyncSubscription, Subscription
from riverq.config import Config, QueueConfig
from riverq.cron import CronSchedule, cron
from riverq.errors import (
    ArgsDecodeError,
    ArgsEncodeError,
    ConfigError,
    DatabaseError,
    DriverError,
    JobCancel,
    JobConflictError,
    JobDiscard,
    JobNotFoundError,
    JobRunLostError,
    JobRunningError,
    JobSnooze,
    JobTimeoutError,
    MayBeCommittedError,
    MigrationError,
    PoolerError,
    PoolExhaustedError,
    QueueNotFoundError,
    RemotelyCancelledError,
    RiverqError,
    SchemaError,
    SessionError,
    UnavailableError,
    UnknownJobKindError,
    UsageError,
)
from riverq.event import Event, EventKind, JobStatistics
from riverq.fields import nanoseconds, omitempty
from riverq.hook import AsyncInsertMiddleware, AsyncWorkMiddleware, InsertMiddleware, Middleware, WorkMiddleware
from riverq.insert_opts import InsertItem, InsertOptions
from riverq.job import AttemptError, InsertResult, Job, JobContext, JobRow, JobState, StepCursor
from riverq.job_args import RawArgs, TypedArgs, job_args
from riverq.job_list import JobListOptions, JobPage
from riverq.periodic import PeriodicHandle, PeriodicJob, PeriodicJobs, RegisteredPeriodicJob
from riverq.query.job_count import JobCounts
from riverq.queue import Queue
from riverq.registry import NO_TIMEOUT, Worker, Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy
from riverq.schedule import Schedule, every, never
from riverq.stats import ClientStats, LeaderStats, LivenessStats, LoopStats, QueueStats
from riverq.stuck import StuckAnswer, StuckHandler, StuckJob
from riverq.unique import UniqueOpts, unique
from riverq.worker.error_handling import ErrorHandler, ErrorResult, PanicHandler

__all__ = [
    "NO_TIMEOUT",
    "ArgsDecodeError",
    "ArgsEncodeError",
    "AsyncClient",
    "AsyncInsertMiddleware",
    "AsyncQueues",
    "AsyncSubscription",
    "AsyncWorkMiddleware",
    "AttemptError",
    "Client",
    "ClientStats",
    "Config",
    "ConfigError",
    "CronSchedule",
    "DatabaseError",
    "DefaultRetryPolicy",
    "DriverError",
    "ErrorHandler",
    "ErrorResult",
    "Event",
    "EventKind",
    "InsertItem",
    "InsertMiddleware",
    "InsertOptions",
    "InsertResult",
    "Job",
    "JobCancel",
    "JobConflictError",
    "JobContext",
    "JobCounts",
    "JobDeleteFilters",
    "JobDiscard",
    "JobListOptions",
    "JobNotFoundError",
    "JobPage",
    "JobRow",
    "JobRunLostError",
    "JobRunningError",
    "JobSnooze",
    "JobState",
    "JobStatistics",
    "JobTimeoutError",
    "LeaderStats",
    "LivenessStats",
    "LoopStats",
    "MayBeCommittedError",
    "Middleware",
    "MigrationError",
    "PanicHandler",
    "PeriodicHandle",
    "PeriodicJob",
    "PeriodicJobs",
    "PoolExhaustedError",
    "PoolerError",
    "Queue",
    "QueueConfig",
    "QueueNotFoundError",
    "QueueStats",
    "Queues",
    "RawArgs",
    "RegisteredPeriodicJob",
    "RemotelyCancelledError",
    "RetryPolicy",
    "RiverqError",
    "Schedule",
    "SchemaError",
    "SessionError",
    "StepCursor",
    "StuckAnswer",
    "StuckHandler",
    "StuckJob",
    "Subscription",
    "TypedArgs",
    "UnavailableError",
    "UniqueOpts",
    "UnknownJobKindError",
    "UsageError",
    "WorkMiddleware",
    "Worker",
    "Workers",
    "cron",
    "every",
    "job_args",
    "migrate",
    "nanoseconds",
    "never",
    "omitempty",
    "unique",
]
