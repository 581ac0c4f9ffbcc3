"""What happened in an attempt becomes the `SetState` that records it. Pure: no clock, no database.

Before: `worker.executor` ran the job. After: `worker.completer` writes what is decided here. `judge` looks at how the
attempt ended; where it failed, the application's error handler is asked (`worker.error_handling`) before `fail` says
what becomes of the job. The order of the questions is River's, with riverq's own answers where River has none:

1. a job cancelled by a client while it ran is cancelled, whatever error its worker ended with;
2. `JobSnooze`, then `JobCancel`, then `JobDiscard`: the error itself, its `__cause__` chain, the members of exception
   groups. The implicit `__context__` does not count: an error that happened while a snooze was being handled is an
   error;
3. a worker that returned has completed, even if it had been told to end;
4. a cancellation that the client's stop caused is an interruption, and the attempt does not count. The same goes for a
   run that was lost, where nothing will be written anyway: the fence sees to that;
5. a cancellation that the timeout caused is a failed attempt that says so; a cancellation that nobody of ours caused is
   an ordinary failed attempt;
6. the error handler's answer: it may want a job cancelled that failed. It is not asked where nobody knows yet whether
   the attempt failed: after a completion in a transaction, and about runs that were lost;
7. no attempts left: discarded;
8. else the worker's retry policy, then the client's; one that raises, or answers with nonsense or the past, is replaced
   by the default with a warning.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from riverq import state
from riverq.errors import (
    JobCancel,
    JobDiscard,
    JobRunLostError,
    JobSnooze,
    JobTimeoutError,
    RiverqError,
    UnknownJobKindError,
)
from riverq.retry_policy import LONGEST_RETRY, DefaultRetryPolicy, RetryPolicy, retry_wait
from riverq.state import SHORT_WAIT, SetState
from riverq.worker.cancellation import CancelReason, is_ctrl_c
from riverq.worker.context import RunContext
from riverq.worker.resumable import StepError

E = TypeVar("E", bound=BaseException)
Retry = timedelta | datetime

CANCELLED_ERRORS = (asyncio.CancelledError, concurrent.futures.CancelledError)
CANCELLED_REMOTELY = "JobCancelError: job cancelled remotely"
"""River's text, which River UI and other clients know."""

TRACE_LIMIT = 64 * 1024
ERROR_LIMIT = 64 * 1024


class UnknownKindError(UnknownJobKindError):
    """No worker is registered for the job's kind. The text is River's."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"job kind is not registered in the client's Workers bundle: {kind}")


class NotCommittedError(RiverqError):
    """The worker completed its job in a transaction, and returned, and the row is running still."""

    def __init__(self) -> None:
        super().__init__("completed in a transaction that did not commit")


_OWN_WORDS = (UnknownKindError, NotCommittedError, JobTimeoutError, StepError)
"""Errors whose text stands for itself, without the name of the class."""


class Finished(NamedTuple):
    """A run that ended, on its way to the database: what to write, and how long it took.

    `started` and `ended` are seconds of the context's monotonic clock around the worker's own time.
    """

    context: RunContext
    state: SetState
    started: float
    ended: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Who decides when a failed job runs again: its worker, by the error (None lets the next decide), then `client`."""

    worker: Callable[[BaseException], Retry | None]
    client: RetryPolicy
    rng: random.Random
    now: Callable[[], datetime]


class Failure(NamedTuple):
    """An attempt that failed: the error that it counts for, and its text and traceback as the row will have them.

    `is_told` says whether the error handler hears of it.
    """

    error: BaseException
    text: str
    trace: str
    is_told: bool


def judge(context: RunContext, error: BaseException | None, *, timeout: timedelta | None) -> SetState | Failure:
    """How a run ended that ended with `error`, or returned (None): what to write, or that it failed."""
    run, metadata, reason = context.run, context.encoded_metadata(), context.cancelled.reason
    if error is None:
        if not context.completed_in_session:
            return state.completed(run, metadata=metadata)
        return _failure(NotCommittedError(), is_told=False)
    if reason is CancelReason.CANCELLED:
        return state.cancelled(run, error=_entry(context, CANCELLED_REMOTELY), metadata=metadata)
    steered = _steered(context, error)
    if steered is not None:
        return steered
    if reason in (CancelReason.STOPPING, CancelReason.LOST) and find(error, *CANCELLED_ERRORS) is not None:
        return state.interrupted(run, attempt=context.claimed.attempt - 1, metadata=metadata)
    if reason is CancelReason.TIMEOUT and timeout is not None and isinstance(error, CANCELLED_ERRORS):
        timed_out = JobTimeoutError(timeout)
        timed_out.__cause__ = error
        error = timed_out
    is_lost = reason is CancelReason.LOST or find(error, JobRunLostError) is not None
    return _failure(error, is_told=not is_lost)


def fail(context: RunContext, failure: Failure, *, cancel: bool, policies: Policies) -> SetState:
    """What to write for an attempt that failed; `cancel` is what the error handler wanted."""
    entry, metadata = _encoded(context, failure.text, failure.trace), context.encoded_metadata()
    if cancel:
        return state.cancelled(context.run, error=entry, metadata=metadata)
    if context.claimed.attempt >= context.claimed.max_attempts:
        return state.discarded(context.run, error=entry, metadata=metadata)
    retry, wait = _retry(context, failure.error, policies)
    return state.errored(context.run, error=entry, retry=retry, short=wait <= SHORT_WAIT, metadata=metadata)


def _failure(error: BaseException, *, is_told: bool) -> Failure:
    return Failure(error, clean(describe(error), ERROR_LIMIT), clean(trace_of(error), TRACE_LIMIT), is_told)


def _steered(context: RunContext, error: BaseException) -> SetState | None:
    snooze = find(error, JobSnooze)
    if snooze is not None:
        return state.snoozed(
            context.run,
            attempt=max(context.claimed.attempt - 1, 0),
            wait=min(snooze.duration, LONGEST_RETRY),
            metadata=context.encoded_metadata_of_snooze(),
        )
    cancel = find(error, JobCancel)
    if cancel is not None:
        entry = _entry(context, f"JobCancelError: {_message(cancel)}")
        return state.cancelled(context.run, error=entry, metadata=context.encoded_metadata())
    discard = find(error, JobDiscard)
    if discard is not None:
        entry = _entry(context, describe(discard))
        return state.discarded(context.run, error=entry, metadata=context.encoded_metadata())
    return None


def unstorable(context: RunContext, error: BaseException, rng: random.Random) -> list[SetState]:
    """What to try, in turn, instead of an outcome that the database refuses for what it holds.

    Metadata is left out, it may be the reason. Being discarded is the last resort, where even the retry's state is
    refused (a unique key that another job took meanwhile).
    """
    entry = _entry(context, f"the outcome of this attempt could not be stored: {_message(error)}")
    last = state.discarded(context.run, error=entry)
    if context.claimed.attempt >= context.claimed.max_attempts:
        return [last]
    wait = _default_wait(context, rng)
    return [state.errored(context.run, error=entry, retry=wait, short=wait <= SHORT_WAIT), last]


# -- when to try again


def _retry(context: RunContext, error: BaseException, policies: Policies) -> tuple[Retry, timedelta]:
    """When to run again, as the policy said it, and how long that is from now."""
    try:
        retry = policies.worker(error)
        if retry is None:
            retry = policies.client.next_retry(context.row, rng=policies.rng)
        return retry, retry_wait(retry, policies.now)
    except BaseException as defect:  # whatever a user's policy raises must not cost the job
        if is_ctrl_c(defect):
            raise
        logging.getLogger("riverq").warning(
            "job %s: Asked the default retry policy, its own failed (error=%s)", context.claimed.id, describe(defect)
        )
    wait = _default_wait(context, policies.rng)
    return wait, wait


def _default_wait(context: RunContext, rng: random.Random) -> timedelta:
    default = DefaultRetryPolicy()
    try:
        return default.next_retry(context.row, rng=rng)
    except Exception:  # noqa: BLE001  # a row that cannot be read must still be written
        return default.wait(context.claimed.attempt, rng=rng)


# -- what the row says about an error


def find(error: BaseException, *kinds: type[E]) -> E | None:
    """The first of `kinds` in the error, its causes and the members of groups; None where there is none."""
    for each in _family(error, set()):
        if isinstance(each, kinds):
            return each
    return None


def _family(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            for member in each.exceptions:
                yield from _family(member, seen)
        each = each.__cause__


def describe(error: BaseException) -> str:
    """`ValueError: what it says`, or the class alone where it says nothing."""
    message = _message(error)
    if isinstance(error, _OWN_WORDS):
        return message
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # an exception's own __str__ may be broken
        return "(its text cannot be shown: __str__ failed)"


def trace_of(error: BaseException) -> str:
    """The traceback, without riverq's own frames at its head; the middle is cut where it is very long."""
    try:
        lines = traceback.format_exception(type(error), error, _user_frames(error.__traceback__))
    except Exception:  # noqa: BLE001  # the user's classes take part in formatting
        return ""
    return "".join(lines)


_OWN_FOLDER = str(Path(__file__).parent)


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    frames = trace
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        frames = frames.tb_next
    return frames or trace


def _entry(context: RunContext, error: str) -> str:
    return _encoded(context, clean(error, ERROR_LIMIT))


def _encoded(context: RunContext, error: str, trace: str = "") -> str:
    """River's error object, of texts that are clean. `at` is when the attempt started, by the database's clock."""
    at = datetime.fromtimestamp(context.claimed.attempted_at_us // 1_000_000, UTC)
    at += timedelta(microseconds=context.claimed.attempted_at_us % 1_000_000)
    return json.dumps(
        {
            "at": at.isoformat().replace("+00:00", "Z"),
            "attempt": context.claimed.attempt,
            "error": error,
            "trace": trace,
        },
        ensure_ascii=False,
    )


def clean(text: str, limit: int) -> str:
    """What Postgres stores as jsonb: no NUL, no lone surrogates, at most `limit` characters (the middle goes)."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
