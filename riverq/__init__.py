"""riverq: River, the Postgres job queue, for Python.

`Client` and `AsyncClient` insert and work jobs; `job_args` marks a class as a job's args; `Workers` says what works
them; `migrate` brings the tables about. Everything public is here; modules are where it is written.
"""

from __future__ import annotations

from riverq import migrate
from riverq.client import AsyncClient, Client
from riverq.config import Config, QueueConfig
from riverq.errors import (
    ArgsDecodeError,
    ArgsEncodeError,
    ConfigError,
    DatabaseError,
    DriverError,
    JobCancel,
    JobDiscard,
    JobRunLostError,
    JobSnooze,
    JobTimeoutError,
    MayBeCommittedError,
    MigrationError,
    PoolerError,
    PoolExhaustedError,
    RemotelyCancelledError,
    RiverqError,
    SchemaError,
    SessionError,
    UnavailableError,
    UnknownJobKindError,
    UsageError,
)
from riverq.fields import nanoseconds, omitempty
from riverq.hook import AsyncInsertMiddleware, AsyncWorkMiddleware, InsertMiddleware, Middleware, WorkMiddleware
from riverq.insert_opts import InsertItem, InsertOptions
from riverq.job import AttemptError, InsertResult, Job, JobContext, JobRow, JobState
from riverq.job_args import RawArgs, TypedArgs, job_args
from riverq.registry import NO_TIMEOUT, Worker, Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy
from riverq.unique import UniqueOpts, unique

__all__ = [
    "NO_TIMEOUT",
    "ArgsDecodeError",
    "ArgsEncodeError",
    "AsyncClient",
    "AsyncInsertMiddleware",
    "AsyncWorkMiddleware",
    "AttemptError",
    "Client",
    "Config",
    "ConfigError",
    "DatabaseError",
    "DefaultRetryPolicy",
    "DriverError",
    "InsertItem",
    "InsertMiddleware",
    "InsertOptions",
    "InsertResult",
    "Job",
    "JobCancel",
    "JobContext",
    "JobDiscard",
    "JobRow",
    "JobRunLostError",
    "JobSnooze",
    "JobState",
    "JobTimeoutError",
    "MayBeCommittedError",
    "Middleware",
    "MigrationError",
    "PoolExhaustedError",
    "PoolerError",
    "QueueConfig",
    "RawArgs",
    "RemotelyCancelledError",
    "RetryPolicy",
    "RiverqError",
    "SchemaError",
    "SessionError",
    "TypedArgs",
    "UnavailableError",
    "UniqueOpts",
    "UnknownJobKindError",
    "UsageError",
    "WorkMiddleware",
    "Worker",
    "Workers",
    "job_args",
    "migrate",
    "nanoseconds",
    "omitempty",
    "unique",
]
