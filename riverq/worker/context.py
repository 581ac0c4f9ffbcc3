"""What the runtime knows of one claimed job while it runs; `Job` shows its worker the part that is the worker's.

One object per run carries everything through the house: the producer makes it of a `ClaimedRow`, the executor runs it,
the completer writes what became of it. What most jobs never look at (the `JobRow`, a logger, staged metadata) is made
on first use.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Any

from riverq.codec import encode
from riverq.errors import ConfigError, JobRunLostError, UsageError
from riverq.job import JobRow
from riverq.query.job_fetch import ClaimedRow, claimed_job
from riverq.query.job_set_state import job_complete_in_transaction
from riverq.query.job_step import job_save_step
from riverq.state import Run, next_snooze_count
from riverq.worker.cancellation import Cancellation
from riverq.worker.resumable import RESUMABLE, StepError, Steps
from riverq.worker.step_runner import StepRunner

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from riverq.client import AsyncClient, Client

NOT_FROM_A_JOB = "a job cannot start or stop the client that runs it (signal the process, or stop it from outside)"

_Entered = tuple[str, "asyncio.Task[Any] | None", "RunContext | None"]
_job: ContextVar[_Entered | None] = ContextVar("riverq_job", default=None)


def enter_job(client_id: str, run: RunContext | None = None) -> None:
    """This task, and the thread that its worker may run in, are the job's of `run` from now on."""
    _job.set((client_id, asyncio.current_task(), run))


def running_job(client_id: str, job_id: int) -> RunContext | None:
    """The run of this job, asked for by its own code; None anywhere else.

    Its own code is its worker, its middleware, and the tasks that they start; of threads only the worker's own.
    """
    job = _job.get()
    if job is None or job[0] != client_id or job[2] is None or job[2].claimed.id != job_id:
        return None
    return job[2]


def job_task_of(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """The task of the job whose code started this one; None where none did, or Python does not tell (before 3.12)."""
    get_context = getattr(task, "get_context", None)
    job = None if get_context is None else get_context().get(_job)
    return None if job is None else job[1]


def refuse_in_own_job(client_id: str) -> None:
    """Raises UsageError in a job that the client runs: waiting for its end, the job would wait for itself.

    Tasks that a job has started may wait; the job ends without them.
    """
    job = _job.get()
    if job is None or job[0] != client_id:
        return
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None  # a thread: the job's, or one that the job waits for
    if task is None or task is job[1]:
        raise UsageError(NOT_FROM_A_JOB)


METADATA_LIMIT = 32 * 1024 * 1024
"""Bytes of JSON that the output, or one staged metadata key, may have; River's limit for the output."""

OUTPUT_KEY = "output"
_RESERVED = "river:"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run needs of the client around it; the same for all runs of a client.

    `complete_in(session, write)` calls `write(connection)` on the sync connection behind the user's session and returns
    what it returned, or, for an async session, an awaitable of it. `client` and `async_client` give the client's faces.
    `log` is the client's logger, of which `job.log` is a child.
    """

    client_id: str
    schema: str
    complete_in: Callable[[Any, Callable[[Connection], bool]], bool | Awaitable[bool]]
    client: Callable[[], Client]
    async_client: Callable[[], AsyncClient]
    log: logging.Logger


class RunContext:
    """One run. Implements `riverq.job.JobContext`."""

    __slots__ = (
        "_around",
        "_log",
        "_row",
        "_staged",
        "_steps",
        "begun_at",
        "cancelled",
        "claimed",
        "completed_in_session",
        "due_at",
        "is_async",
        "run",
        "thread_id",
        "timeout",
        "wake",
    )

    def __init__(self, claimed: ClaimedRow, queue: str, around: Surroundings) -> None:
        self.claimed = claimed
        self.run = Run(claimed.id, claimed.attempted_at_us, claimed.cancel_mark)
        self.cancelled = Cancellation()
        self.completed_in_session = False
        self.is_async: bool | None = None
        """Whether the worker is an `async def`; None until it is known which worker it is."""
        self.thread_id: int | None = None
        """The thread that is at work for this run; set by that thread."""
        self.timeout: timedelta | None = None
        """How long the worker may take; None is no limit."""
        self.begun_at = 0.0
        """When the worker began, in seconds of the monotonic clock."""
        self.due_at = inf
        """When its time is over; infinite before it begins, after it has ended, and where there is no limit."""
        self.wake: Callable[[timedelta], None] | None = None
        """What to call with how soon this client may look again, where the job goes straight back to `available`."""
        self._around = around
        self._row: JobRow | str = queue  # the queue's name until somebody asks for the row
        self._log: logging.LoggerAdapter[logging.Logger] | None = None
        self._staged: dict[str, str] | None = None
        self._steps: StepRunner | None = None

    def worker_begins(self, now: float) -> None:
        """Its time runs from `now`, a moment of the monotonic clock. Raises StepError for what no step could resume."""
        if RESUMABLE in self.claimed.metadata:
            self._begin_steps()
        self.begun_at = now
        if self.timeout is not None:
            self.due_at = now + self.timeout.total_seconds()

    def ended(self, error: BaseException | None) -> BaseException | None:
        """The worker has ended, with `error` or by returning; gives the error that the attempt ends with."""
        if self._steps is None or self.thread_runs:
            return error
        try:
            return self._steps_ended(self._steps.steps, error)
        except Exception as defect:  # the job has ended, and must be reported
            self._around.log.exception("job %s: Failed to record its steps", self.claimed.id)
            return error or defect

    @property
    def thread_runs(self) -> bool:
        """Whether a thread is at work for this run."""
        return self.thread_id is not None

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._row if isinstance(self._row, str) else self._row.queue

    @property
    def row(self) -> JobRow:
        """The row as claimed."""
        if isinstance(self._row, str):
            self._row = claimed_job(self.claimed, queue=self._row, client_id=self._around.client_id)
        return self._row

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `job_id`, `kind`, `queue` and `attempt`."""
        if self._log is None:
            claimed = self.claimed
            extra = {"job_id": claimed.id, "kind": claimed.kind, "queue": self.queue, "attempt": claimed.attempt}
            self._log = logging.LoggerAdapter(self._around.log.getChild("job"), extra)
        return self._log

    @property
    def client(self) -> Client:
        """The sync face of the client. Raises UsageError in an `async def` worker."""
        if self.is_async:
            raise UsageError("job.client would block the event loop in an async def worker (use job.async_client)")
        return self._around.client()

    @property
    def async_client(self) -> AsyncClient:
        """The async face of the client. Raises UsageError in a `def` worker."""
        if self.is_async is False:
            raise UsageError("job.async_client cannot be awaited in a def worker (use job.client)")
        return self._around.async_client()

    # -- steps

    @property
    def steps(self) -> StepRunner:
        """The steps of this run."""
        return self._steps or self._begin_steps()

    def _begin_steps(self) -> StepRunner:
        self._steps = StepRunner(Steps(self.claimed.metadata), self._save_in, is_async=bool(self.is_async))
        return self._steps

    def _steps_ended(self, steps: Steps, error: BaseException | None) -> BaseException | None:
        if error is None and not self.completed_in_session:
            error = steps.verdict()
        # What follows job.complete is only written if its transaction was not committed after all.
        succeeded = error is None and not self.completed_in_session
        members = steps.cleared() if succeeded else steps.left_off()
        steps.close()
        if members:
            self._staged = {**(self._staged or {}), **{key: f'"{key}":{text}' for key, text in members.items()}}
        return error

    def _save_in(self, session: Any, metadata: str, saved: Callable[[Connection], None]) -> Any:
        """Merge `metadata` in the caller's transaction, and call `saved` with its connection."""

        def write(conn: Connection) -> bool:
            around = self._around
            written = job_save_step(conn, around.schema, client_id=around.client_id, run=self.run, metadata=metadata)
            if written:
                saved(conn)
            return written

        written = self._around.complete_in(session, write)
        if inspect.isawaitable(written):
            return self._saved_later(written)
        self._saved(written=bool(written))
        return None

    async def _saved_later(self, written: Awaitable[bool]) -> None:
        self._saved(written=await written)

    def _saved(self, *, written: bool) -> None:
        if not written:
            self._refuse_if_completed()
            raise JobRunLostError(
                self.claimed.id, "its step cannot be saved, for it is no longer running as claimed here"
            )

    # -- metadata, encoded when it is given: a value that cannot be stored fails here, in the worker's own line

    def record_output(self, value: object) -> None:
        """Stage the job's output; the last call wins. Raises ConfigError for what is not JSON or too large."""
        self.stage(OUTPUT_KEY, value)

    def set_metadata(self, key: str, value: object) -> None:
        """Stage one metadata key. Raises ConfigError for keys starting `river:` and values that are not JSON."""
        if not isinstance(key, str) or key.startswith(_RESERVED):
            raise ConfigError(f"expected a metadata key to be a text not starting with {_RESERVED!r}, got: {key!r}")
        self.stage(key, value)

    def stage(self, key: str, value: object) -> None:
        """Stage any metadata key, River's own included."""
        member = encode({key: value}, "metadata")[1:-1]
        size = len(member) if member.isascii() else len(member.encode())
        if size > METADATA_LIMIT:
            raise ConfigError(f"expected metadata {key!r} to be at most {METADATA_LIMIT} bytes of JSON, got: {size}")
        if self.completed_in_session:
            self.log.warning(
                "job %s: Lost metadata that was recorded after job.complete (record it before)", self.claimed.id
            )
        if self._staged is None:
            self._staged = {}
        self._staged[key] = member

    def recorded_output(self) -> str | None:
        """The output that was recorded and is not stored yet, encoded; None where there is none."""
        member = None if self._staged is None else self._staged.get(OUTPUT_KEY)
        return None if member is None else member.removeprefix(f'"{OUTPUT_KEY}":')

    def encoded_metadata(self) -> str | None:
        """What was staged, as one JSON object; None where nothing was."""
        if self._staged is None:
            return None
        return "{" + ",".join(list(self._staged.values())) + "}"

    def encoded_metadata_of_snooze(self) -> str:
        """The same with River's counter of snoozes, one higher than in the row as claimed."""
        try:
            before = json.loads(self.claimed.metadata).get("snoozes")
        except (ValueError, AttributeError):
            before = None
        members = [] if self._staged is None else list(self._staged.values())
        return "{" + ",".join([*members, f'"snoozes":{next_snooze_count(before)}']) + "}"

    # -- completing in the user's own transaction

    def complete(self, session: Any) -> Any:
        """Complete the job in the caller's transaction, with the metadata staged so far."""
        steps = None if self._steps is None else self._steps.steps
        metadata = self.encoded_metadata()
        if steps is not None:
            metadata = self._completed_steps(steps, metadata)

        def write(conn: Connection) -> bool:
            around = self._around
            written = job_complete_in_transaction(
                conn, around.schema, client_id=around.client_id, run=self.run, metadata=metadata
            )
            if written and steps is not None:
                steps.completed(conn)
            return written

        written = self._around.complete_in(session, write)
        if inspect.isawaitable(written):
            return self._completed_later(written)
        self._completed(written=bool(written))
        return None

    def _completed_steps(self, steps: Steps, metadata: str | None) -> str | None:
        """The metadata with which the job is completed: nothing is left to resume."""
        if steps.error is not None:
            raise StepError("a step of this job has failed, so the job cannot be completed") from steps.error
        cleared = [f'"{key}":{text}' for key, text in steps.cleared().items()]
        return metadata if not cleared else "{" + ",".join([*(self._staged or {}).values(), *cleared]) + "}"

    async def _completed_later(self, written: Awaitable[bool]) -> None:
        self._completed(written=await written)

    def _completed(self, *, written: bool) -> None:
        if not written:
            self._refuse_if_completed()
            raise JobRunLostError(self.claimed.id)
        self.completed_in_session = True

    def _refuse_if_completed(self) -> None:
        if self.completed_in_session:
            raise UsageError(
                f"job {self.claimed.id} was completed by this run before "
                "(call job.complete once, in the transaction that holds the worker's writes)"
            )
