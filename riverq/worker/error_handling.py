"""The application's error handler: hears of attempts that failed, and may cancel their jobs.

Before: `outcome.judge` found that an attempt failed. After: `outcome.fail` decides what becomes of the job, by the
handler's answer. In between the job holds its slot and is told of nothing more: what is decided about the cause of its
end was decided before the handler was asked, so a stop or a cancellation that comes while it thinks changes nothing.

    judged --asked--> answered in time: CANCEL cancels the job, everything else leaves it to its retries
                  --> raised, or answered nonsense: logged, as if it had not been asked
                  --> took longer than TIME_LIMIT: logged, as if it had not been asked; an `async def` is cancelled
                  --> it, or the job that waits for it, was cancelled by somebody: logged, as if it had not been asked

A handler is somebody else's code and must not cost the job: a row whose handler hangs would stay `running` while its
client lives, and nobody would rescue it. So there is a time limit, by the event loop's clock. A `def` handler runs on a
thread of those for `def` workers, where it may block; the job's own is free by then. One that outlasts its time keeps
that thread, so the pool is lent another until it returns. A handler that hangs every time would take a thread for each
failed attempt: where OVERDUE_LIMIT calls have not returned, it is not asked until one has. An `async def` handler runs
in a task of its own, so that its cancellations are its own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, runtime_checkable

from riverq.job import JobRow
from riverq.service.context import ServiceContext
from riverq.threads import DaemonThreads
from riverq.validation import fail
from riverq.worker.cancellation import is_ctrl_c
from riverq.worker.context import RunContext, enter_job
from riverq.worker.outcome import Failure
from riverq.worker.run_loop import forget_cancellation, is_closing

OVERDUE_LIMIT = 100
"""Calls that may be at work past their time before the handler is asked no more."""

TIME_LIMIT = 10.0
"""Seconds for which a job waits for its handler's answer."""


class ErrorResult(StrEnum):
    """What an error handler may want for the job. None is the same as CONTINUE."""

    CONTINUE = "continue"
    """Retried, or discarded after its last attempt, as without a handler."""
    CANCEL = "cancel"
    """Cancelled with this error: no more attempts. River's `SetCancelled`."""


ErrorAnswer = ErrorResult | None | Awaitable[ErrorResult | None]


@runtime_checkable
class ErrorHandler(Protocol):
    """Hears of each attempt that failed: for reporting errors, and for giving up on some.

    `def` is called in a thread, `async def` in the event loop, on both clients.
    """

    def handle_error(self, row: JobRow, error: BaseException, /) -> ErrorAnswer:
        """The attempt of `row`, as it was claimed, failed with `error`; its traceback is `error.__traceback__`.

        Called once per attempt, before anything is written: also for kinds without a worker, args that do not fit, and
        timeouts (`JobTimeoutError`). Not called for snoozes, `JobCancel`, `JobDiscard`, jobs that were cancelled by a
        client, interrupted by a stop, or lost. What it raises is logged and otherwise ignored.
        """
        ...


@runtime_checkable
class PanicHandler(ErrorHandler, Protocol):
    """An error handler that is told separately of panics; without `handle_panic` they go to `handle_error`, too.

    A panic is an exception that is no `Exception`, that is, one that `except Exception` does not catch: `SystemExit`
    from a `sys.exit()` in some library, `KeyboardInterrupt`, a `CancelledError` that nobody asked for, a
    `BaseExceptionGroup` with one of these. In Go a panic is what ordinary error handling never sees, and the same is
    true of these. Programming errors such as `TypeError` are ordinary exceptions in Python, and so are `RecursionError`
    and `MemoryError`: no list of them would be one that everybody expects.
    """

    def handle_panic(self, row: JobRow, error: BaseException, trace: str, /) -> ErrorAnswer:
        """The attempt of `row` ended in a panic. `trace` is the traceback as the row will have it, causes included."""
        ...


def check_error_handler(handler: object) -> None:
    """Raises ConfigError for what is neither None nor an ErrorHandler, or is a class and no instance."""
    if handler is None:
        return
    for_panics = getattr(handler, "handle_panic", None)
    if (
        isinstance(handler, type)
        or not callable(getattr(handler, "handle_error", None))
        or not (for_panics is None or callable(for_panics))
    ):
        raise fail("error_handler", "to be an object with a handle_error method", handler)


class ErrorHandling:
    """Asks `handler`, where there is one. `threads` are those of the client's `def` workers."""

    def __init__(self, ctx: ServiceContext, threads: DaemonThreads, handler: ErrorHandler | None) -> None:
        self._ctx = ctx
        self._threads = threads
        self._handler = handler
        self._overdue: set[object] = set()
        """Calls whose time is over and that have not ended: tasks, and the futures of threads."""

    async def wants_cancel(self, context: RunContext, failure: Failure) -> bool:
        """Whether the job is to be cancelled. Raises only what ends the process or the loop."""
        if self._handler is None:
            return False
        if len(self._overdue) >= OVERDUE_LIMIT:
            why = f"{len(self._overdue)} calls of which have not returned"
        else:
            name = f"riverq.error_handler.{context.run.job_id}"
            task = asyncio.create_task(self._ask(self._handler, context, failure), name=name)
            was_cancelled = await self._waited(task)
            if task.done() and not task.cancelled():
                return task.result()
            why = "which was cancelled" if task.done() or was_cancelled else f"which took longer than {TIME_LIMIT:g} s"
        self._ctx.log.warning(
            "job %s: Went on without its error handler, %s (kind=%s)", context.claimed.id, why, context.claimed.kind
        )
        return False

    async def _waited(self, task: asyncio.Task[bool]) -> bool:
        """Wait for the handler, no longer than it may take, then end it; whether somebody cancelled the job meanwhile.

        Nobody of ours does: the worker may have left something behind that does, or the loop ends. The attempt has
        failed all the same.
        """
        was_cancelled = False
        try:
            await asyncio.wait({task}, timeout=TIME_LIMIT)
        except asyncio.CancelledError:
            was_cancelled = True
        if not task.done():
            self._overdue.add(task)
            task.add_done_callback(self._overdue.discard)
            task.cancel()
        job = asyncio.current_task()
        if was_cancelled and job is not None:
            await forget_cancellation(job)
        return was_cancelled

    async def _ask(self, handler: ErrorHandler, context: RunContext, failure: Failure) -> bool:
        enter_job(self._ctx.client_id)  # a handler that stops the client would wait for itself, as the job would
        task = asyncio.current_task()
        try:
            call = _call(handler, context.row, failure)
            answer = call() if inspect.iscoroutinefunction(call.func) else await self._in_thread(call)
            if inspect.isawaitable(answer):
                answer = await answer
            return answer is not None and ErrorResult(answer) is ErrorResult.CANCEL
        except BaseException as error:
            if is_ctrl_c(error) or is_closing(error, task):
                raise
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            self._ctx.log.exception(
                "job %s: Ignored its error handler, which failed (kind=%s)", context.claimed.id, context.claimed.kind
            )
            return False

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        future = self._threads.submit(_caught, call)
        try:
            answer, error = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():  # it is at work, and nothing can end it
                self._threads.lend()
                self._overdue.add(future)
                future.add_done_callback(self._returned)
            raise
        if error is not None:
            raise error
        return answer

    def _returned(self, future: Future[Any]) -> None:
        """In the handler's thread."""
        self._overdue.discard(future)
        self._threads.take_back()


def _call(handler: ErrorHandler, row: JobRow, failure: Failure) -> partial[Any]:
    if isinstance(handler, PanicHandler) and not isinstance(failure.error, Exception):
        return partial(handler.handle_panic, row, failure.error, failure.trace)
    return partial(handler.handle_error, row, failure.error)


def _is_being_cancelled() -> bool:
    """Whether somebody cancelled this task, and not one that its handler waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _caught(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """The error is returned, not raised: a future refuses StopIteration."""
    try:
        return call(), None
    except Exception as error:  # noqa: BLE001  # handed to the task that waits
        return None, error
    except BaseException as error:  # noqa: BLE001  # in a thread it is nobody's Ctrl-C
        defect = RuntimeError(f"an error handler raised {error!r}")
        defect.__cause__ = error
        return None, defect
