"""Every exception riverq raises, and the three a worker raises to steer its job.

Messages are lower case, without a full stop: what failed, the value, and the way out. Errors that come from the
database keep the driver's exception as `__cause__` and carry its SQLSTATE; they are told apart by SQLSTATE only, never
by text.
"""

from __future__ import annotations

from datetime import timedelta


class RiverqError(Exception):
    """The base of every error riverq raises."""


# -- what the caller got wrong, found before anything is written


class ConfigError(RiverqError, ValueError):
    """An option, an argument or a configuration value is not acceptable. Nothing was written."""


class ArgsEncodeError(ConfigError):
    """Job args cannot be encoded as Go would encode them.

    `path` names the offending value, as in `args.items[2].price`.
    """

    def __init__(self, message: str, path: str = "args") -> None:
        super().__init__(message)
        self.path = path


class ArgsDecodeError(RiverqError, ValueError):
    """Stored args do not fit the class that the worker declares; the attempt fails by the client's retry policy."""


class SessionError(RiverqError, TypeError):
    """`session=` was given something that this client cannot insert through."""


class UnknownJobKindError(ConfigError):
    """No worker is registered for the kind: of an insert by a client that has workers, or of a claimed job."""


class DriverError(RiverqError):
    """No adapter serves the engine that was given, or the adapter lacks what was asked of it."""


class UsageError(RiverqError, RuntimeError):
    """A client was used in a way that cannot work: not started, from another event loop, after a fork."""


# -- what the database said


class DatabaseError(RiverqError):
    """A statement failed. `sqlstate` is the server's five-character code, or None where the connection broke."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class UnavailableError(DatabaseError):
    """The database cannot be reached, or the connection broke; trying again later may work."""


class PoolExhaustedError(UnavailableError):
    """No connection became free in time."""


class PoolerError(DatabaseError):
    """PgBouncer refused the connection or the transaction; the message names the setting that cures it."""


class MayBeCommittedError(UnavailableError):
    """The answer to COMMIT was lost: what was asked for may be done or not.

    Insert again with a unique key if a second job would do harm.
    """


class SchemaError(RiverqError):
    """River's tables are missing or older than this riverq needs; the message names the command."""


class MigrationError(RiverqError):
    """A migration cannot be run as asked; nothing was changed."""


# -- what the tables said


class JobNotFoundError(RiverqError, LookupError):
    """No job has this id."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job not found: {job_id} (it may have been deleted by retention)")
        self.job_id = job_id


class JobRunningError(RiverqError):
    """The job is running, and what was asked for is only done to jobs that are not."""

    def __init__(self, job_id: int, what: str = "deleted") -> None:
        super().__init__(f"job {job_id} is running and cannot be {what} (cancel it, or wait for its end)")
        self.job_id = job_id


class JobConflictError(RiverqError):
    """The job cannot take the state that was asked for: another job holds its unique key. Nothing was changed."""

    def __init__(self, job_id: int, what: str = "retried") -> None:
        super().__init__(f"job {job_id} cannot be {what}: another job holds its unique key (cancel or delete that one)")
        self.job_id = job_id


class JobRunLostError(RiverqError):
    """The run that wanted to write is no longer the job's run: rescued, deleted, cancelled or finished elsewhere.

    Raised by `job.complete(session=…)` and `job.save_step(…)`, so that the application's transaction does not commit
    its work twice, and by `job_update` in a worker whose recorded output is no longer the job's.
    """

    def __init__(self, job_id: int, detail: str = "the job is no longer running as claimed here") -> None:
        super().__init__(f"the run of job {job_id} is lost: {detail} (roll back: its work belongs to another run)")
        self.job_id = job_id


class QueueNotFoundError(RiverqError, LookupError):
    """No queue has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"queue not found: {name!r} (a queue appears when a client first works it)")
        self.name = name


# -- what a worker raises to steer its job


class JobCancel(Exception):
    """Raise it from a worker: the job becomes `cancelled`, with the reason among its errors, and is not retried."""

    def __init__(self, reason: object = "cancelled by its worker") -> None:
        super().__init__(str(reason))


class JobDiscard(Exception):
    """Raise it from a worker: the job becomes `discarded` now, whatever attempts are left."""

    def __init__(self, reason: object = "discarded by its worker") -> None:
        super().__init__(str(reason))


class JobSnooze(Exception):
    """Raise it from a worker: the job runs again after `duration`, and this run does not count as an attempt.

    Raises ConfigError when `duration` is negative.
    """

    def __init__(self, duration: timedelta) -> None:
        if not isinstance(duration, timedelta):
            raise ConfigError(f"expected a snooze to be a timedelta, got: {duration!r} (timedelta(seconds=…))")
        if duration < timedelta(0):
            raise ConfigError(f"expected a snooze to last at least 0 seconds, got: {duration}")
        super().__init__(f"snoozed for {duration}")
        self.duration = duration


# -- why a running attempt was interrupted from outside


class RemotelyCancelledError(RiverqError):
    """The job was cancelled by a client while it ran."""

    def __init__(self) -> None:
        super().__init__("job cancelled remotely")


class JobTimeoutError(RiverqError, TimeoutError):
    """The attempt took longer than its timeout."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(f"job timed out after {timeout.total_seconds():g} s")
        self.timeout = timeout
