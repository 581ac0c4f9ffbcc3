"""A time limit that names the operation, and that returns in time whatever the operation does.

`asyncio.timeout` cancels and then waits for the cancelled code, which on a connection whose packets go nowhere may take
ten seconds more. A leader that must step down before its lease ends cannot wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from riverq.errors import UnavailableError

T = TypeVar("T")

GRACE = 2.0
"""Seconds for which the caller's own cancellation waits for the operation to clean up."""


class OperationTimeoutError(UnavailableError, TimeoutError):
    """An operation took longer than it was given. What it would have done may still happen."""


async def within(seconds: float, what: str, operation: Coroutine[Any, Any, T]) -> T:
    """The result of `operation`, or OperationTimeoutError naming `what` after `seconds`.

    On the limit the operation is cancelled and left to end by itself. When the caller is cancelled, so is the
    operation, and it is given `GRACE` seconds to clean up. An operation that was cancelled by nobody here raises
    UnavailableError.
    """
    task = asyncio.create_task(operation, name=f"riverq.within.{what}")
    try:
        done, _ = await asyncio.wait({task}, timeout=max(0.0, seconds))
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE)
        _forget(task)
        raise
    if done:
        if task.cancelled():  # by itself: raised here it would look like the caller's own, and end the caller's task
            raise UnavailableError(f"{what} was cut short")
        try:
            return task.result()
        finally:
            del task, done  # else its error, this frame and the task hold each other until the collector comes
    task.cancel()
    _forget(task)
    raise OperationTimeoutError(f"{what} took longer than {seconds:.3g} s")


def _forget(task: asyncio.Task[Any]) -> None:
    task.add_done_callback(_read_error)


def _read_error(task: asyncio.Task[Any]) -> None:
    """Nobody will ask for this result; unread, the loop would complain that it was never retrieved."""
    if not task.cancelled():
        task.exception()
