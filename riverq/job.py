"""The words every part of riverq shares about a job: its states, its row, and what a worker is given.

A row keeps its JSON as text and decodes it on first use: most rows that pass through a client are never looked into.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    from riverq.client import AsyncClient, Client

log = logging.getLogger("riverq")

A = TypeVar("A")
P = ParamSpec("P")


class JobState(StrEnum):
    """Where a job stands. The names are the labels of the enum `river_job_state`."""

    AVAILABLE = "available"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    PENDING = "pending"
    RETRYABLE = "retryable"
    RUNNING = "running"
    SCHEDULED = "scheduled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: cancelled, completed or discarded."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.CANCELLED, JobState.COMPLETED, JobState.DISCARDED})


@dataclass(frozen=True, slots=True)
class AttemptError:
    """One failed attempt: when it started, its number, the error's text, and the traceback."""

    at: datetime
    attempt: int
    error: str
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A row of `river_job`, as it was when it was read.

    `encoded_args`, `encoded_metadata` and `encoded_errors` are the stored JSON texts; `args`, `metadata` and `errors`
    decode them on first use. A metadata or errors text that cannot be decoded reads as empty, with a warning: a worker
    must not fail because somebody else's bookkeeping is broken.
    """

    id: int
    kind: str
    state: JobState
    attempt: int
    max_attempts: int
    priority: int
    queue: str
    created_at: datetime
    scheduled_at: datetime
    attempted_at: datetime | None = None
    finalized_at: datetime | None = None
    attempted_by: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    unique_key: bytes | None = None
    unique_states: frozenset[JobState] | None = None
    encoded_args: str = field(default="{}", repr=False)
    encoded_metadata: str = field(default="{}", repr=False)
    encoded_errors: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def args(self) -> dict[str, Any]:
        """The args as stored, decoded from JSON. Raises ValueError where they are not JSON."""
        decoded: dict[str, Any] = json.loads(self.encoded_args)
        return decoded

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata object; empty where it is not an object."""
        try:
            decoded = json.loads(self.encoded_metadata)
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, dict):
            log.warning("job %s: Reading metadata as empty, for it is no JSON object", self.id)
            return {}
        return decoded

    @cached_property
    def errors(self) -> tuple[AttemptError, ...]:
        """The failed attempts, oldest first; entries that cannot be decoded are left out with a warning."""
        decoded: list[AttemptError] = []
        for text in self.encoded_errors:
            try:
                entry = json.loads(text)
                at = _parse_time(entry["at"])
                decoded.append(AttemptError(at, entry["attempt"], entry["error"], entry.get("trace") or ""))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                log.warning("job %s: Leaving out an entry of errors that cannot be read", self.id)
        return tuple(decoded)

    @property
    def output(self) -> Any:
        """What the worker recorded with `record_output`, or None."""
        return self.metadata.get("output")


def _parse_time(stamp: str) -> datetime:
    """RFC 3339, as Go writes it. A time without a zone, which is nobody's to write, is taken as UTC."""
    at = datetime.fromisoformat(_microseconds(stamp))
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _microseconds(stamp: str) -> str:
    """Go writes nanoseconds; Python reads at most microseconds."""
    head, dot, tail = stamp.partition(".")
    if not dot:
        return stamp
    digits = len(tail) - len(tail.lstrip("0123456789"))
    return f"{head}.{tail[: min(digits, 6)].ljust(6, '0')}{tail[digits:]}"


@dataclass(frozen=True, slots=True)
class InsertResult:
    """What came of inserting one job.

    `unique_skipped_as_duplicate` is true when a job with the same unique key was there already; `job` is then that one.
    """

    job: JobRow
    unique_skipped_as_duplicate: bool = False


class CancelSignal(Protocol):
    """Tells a running job that it should end, and why. Safe to read from the job's own thread."""

    @property
    def reason(self) -> str | None:
        """None while the job may go on; else `"cancelled"`, `"timeout"`, `"stopping"` or `"lost"`."""
        ...

    def is_set(self) -> bool:
        """Whether the job should end."""
        ...

    def raise_if_set(self) -> None:
        """Raise `asyncio.CancelledError` if the job should end; a `def` worker's way to end as interrupted."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread (for `def` workers) until the job should end, at most `timeout` seconds."""
        ...


class StepCursor(Protocol):
    """How far a cursor step has come: given to its body, and of use only there.

    A cursor is anything that is JSON, encoded like args; at most 32 MiB.
    """

    @property
    def value(self) -> Any:
        """The cursor decoded from JSON, as it was last set or saved, by an earlier attempt too; None before that."""
        ...

    def set(self, value: object) -> None:
        """The step has come so far; stored when the attempt ends, unless the step is done or the job succeeds.

        Raises ConfigError where it is not JSON or too large.
        """
        ...

    @overload
    def save(self, value: object, *, session: Session | scoped_session[Any] | Connection) -> None: ...
    @overload
    def save(
        self, value: object, *, session: AsyncSession | async_scoped_session[Any] | AsyncConnection
    ) -> Coroutine[Any, Any, None]: ...
    def save(self, value: object, *, session: Any) -> Any:
        """The step has come so far, if the caller's transaction commits; else as `Job.save_step`."""
        ...


class JobSteps(Protocol):
    """The steps of one attempt."""

    def step(self, name: str, body: Callable[[], object]) -> Any:
        """Run a step, or skip it."""
        ...

    def cursor_step(self, name: str, body: Callable[[StepCursor], object]) -> Any:
        """Run a step that goes on from its cursor, or skip it."""
        ...

    def save(self, session: Any) -> Any:
        """Save the step that is under way in the caller's transaction."""
        ...


class JobContext(Protocol):
    """What the runtime supplies to a `Job` while it runs; a test may supply its own."""

    @property
    def row(self) -> JobRow:
        """The row as claimed."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, kind, queue and attempt."""
        ...

    @property
    def cancelled(self) -> CancelSignal:
        """Set when the job should end."""
        ...

    @property
    def client(self) -> Client:
        """The sync face of the client, for `def` workers."""
        ...

    @property
    def async_client(self) -> AsyncClient:
        """The async face of the client, for `async def` workers."""
        ...

    def record_output(self, value: object) -> None:
        """Stage the job's output."""
        ...

    def set_metadata(self, key: str, value: object) -> None:
        """Stage one metadata key."""
        ...

    def complete(self, session: Any) -> Any:
        """Complete the job in the caller's transaction."""
        ...

    @property
    def steps(self) -> JobSteps:
        """The steps of this attempt."""
        ...


class Job(Generic[A]):
    """A job as its worker sees it: decoded args, the row, and what one may do while it runs."""

    __slots__ = ("_context", "args")

    def __init__(self, args: A, context: JobContext) -> None:
        self.args = args
        self._context = context

    def __repr__(self) -> str:
        row = self._context.row
        return f"<Job {row.id} {row.kind} attempt {row.attempt}>"

    @property
    def row(self) -> JobRow:
        """The row as claimed: id, kind, attempt, queue, metadata, errors of earlier attempts."""
        return self._context.row

    @property
    def id(self) -> int:
        """The job's id."""
        return self._context.row.id

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `job_id`, `kind`, `queue` and `attempt`."""
        return self._context.log

    @property
    def cancelled(self) -> CancelSignal:
        """Set when the job should end; its `reason` says why. `async def` workers are cancelled as well."""
        return self._context.cancelled

    @property
    def client(self) -> Client:
        """The client that runs this job, for a `def` worker. Raises UsageError in an `async def` worker."""
        return self._context.client

    @property
    def async_client(self) -> AsyncClient:
        """The client that runs this job, for an `async def` worker. Raises UsageError in a `def` worker."""
        return self._context.async_client

    def record_output(self, value: object) -> None:
        """Store `value` as the job's output (metadata key `output`), with whatever outcome this attempt has.

        The last call wins. Raises ConfigError where it is not JSON or larger than 32 MiB.
        """
        self._context.record_output(value)

    def set_metadata(self, key: str, value: object) -> None:
        """Merge one metadata key when the attempt ends. Raises ConfigError for keys starting `river:`."""
        self._context.set_metadata(key, value)

    @overload
    def complete(self, session: Session | scoped_session[Any] | Connection) -> None: ...
    @overload
    def complete(
        self, session: AsyncSession | async_scoped_session[Any] | AsyncConnection
    ) -> Coroutine[Any, Any, None]: ...
    def complete(self, session: Any) -> Any:
        """Complete this job in the caller's transaction, together with what the worker wrote there.

        With an async session the result is awaitable. Raises JobRunLostError where the run is no longer this job's,
        so that the transaction does not commit work that another run does again. If the transaction does not commit,
        the attempt fails and is retried.
        """
        return self._context.complete(session)

    # -- resumable steps

    @overload
    def step(  # type: ignore[overload-overlap]  # an async def body fits both; the first that fits counts
        self, name: str, body: Callable[P, Coroutine[Any, Any, object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def step(self, name: str, body: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def step(self, name: str, body: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
        """Call `body(*args, **kwargs)`, unless an earlier attempt has done this step; then skip it.

        A `def` body has run when this returns. An `async def` body, in an `async def` worker, is to be awaited:
        `await job.step("charge", charge)`. What the body returns is dropped. When it raises, so does this; later steps
        are then skipped, and the attempt fails with that error even if the worker catches it. Steps keep their names
        and their order, run one after the other and do not nest. Raises UsageError where they do not fit each other.
        """
        return self._context.steps.step(name, partial(body, *args, **kwargs))

    @overload
    def cursor_step(  # type: ignore[overload-overlap]  # as above
        self,
        name: str,
        body: Callable[Concatenate[StepCursor, P], Coroutine[Any, Any, object]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def cursor_step(
        self, name: str, body: Callable[Concatenate[StepCursor, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> None: ...
    def cursor_step(self, name: str, body: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
        """Call `body(cursor, *args, **kwargs)`: a step that goes on from where an earlier attempt left it.

        `cursor.value` is None at first; `cursor.set(…)` says how far the step has come. Else as `step`.
        """
        return self._context.steps.cursor_step(name, lambda cursor: body(cursor, *args, **kwargs))

    @overload
    def save_step(self, session: Session | scoped_session[Any] | Connection) -> None: ...
    @overload
    def save_step(
        self, session: AsyncSession | async_scoped_session[Any] | AsyncConnection
    ) -> Coroutine[Any, Any, None]: ...
    def save_step(self, session: Any) -> Any:
        """In a step's body: the step is done if the caller's transaction commits, together with what it wrote there.

        Commit before the body returns. With an async session the result is to be awaited. Raises JobRunLostError where
        the run is no longer this job's, so that the transaction does not commit work that another run does again.
        """
        return self._context.steps.save(session)
