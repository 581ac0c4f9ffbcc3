"""Runs an `async def` worker in the event loop, in the job's own task.

Being told to end means that this task is cancelled, once. What the worker makes of that is its own affair: it may let
`CancelledError` pass, raise something else, or finish and return. Afterwards the task must be as if it had never been
cancelled, since the outcome is still to be reported from it; an undelivered cancellation is therefore waited out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from riverq.worker.cancellation import Cancellation, CancelReason, is_ctrl_c


async def call_cancellable(work: Callable[[], Awaitable[object]], signal: Cancellation) -> BaseException | None:
    """Await `work()`, cancelled when `signal` is set; what it raised, or None.

    Ctrl-C passes, and so does the end of the coroutine itself, which its caller closes: both are none of the job's.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a job runs in a task of its own")
    signal.watch(task.cancel)
    raised: BaseException | None = None
    try:
        await work()
    except BaseException as error:  # SystemExit of a job must not end the process that runs all the others
        if is_ctrl_c(error) or is_closing(error, task):
            raise
        raised = error
    finally:
        signal.watch(None)
    await forget_cancellation(task)
    return raised


def is_closing(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether the coroutine of `task` is closed from outside, and did not raise GeneratorExit of its own."""
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no loop runs here any more
        return True


@contextmanager
def timer(signal: Cancellation, timeout: timedelta | None) -> Generator[None]:
    """Set `signal` with reason `timeout` when the block takes longer; None is no limit."""
    if timeout is None:
        yield
        return
    handle = asyncio.get_running_loop().call_later(timeout.total_seconds(), signal.set, CancelReason.TIMEOUT)
    try:
        yield
    finally:
        handle.cancel()


async def run_in_loop(work: Callable[[], Awaitable[object]], signal: Cancellation, timeout: timedelta | None) -> None:
    """Await `work()` within `timeout`; raises what it raises. Middleware around it sees no trace of a timeout."""
    with timer(signal, timeout):
        try:
            await work()
        finally:
            if signal.reason is CancelReason.TIMEOUT:
                task = asyncio.current_task()
                if task is not None:
                    await forget_cancellation(task)


async def forget_cancellation(task: asyncio.Task[object]) -> None:
    """Make the current task as if it had not been cancelled."""
    if not task.cancelling():
        return
    while task.uncancel():
        pass
    with suppress(asyncio.CancelledError):
        await _Once()  # a cancellation that was not delivered yet is delivered here
    while task.cancelling():
        task.uncancel()


class _Once:
    """Gives the loop one turn."""

    def __await__(self) -> Generator[None]:
        yield
