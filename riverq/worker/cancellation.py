"""Tells a running job that it should end, and why: the `job.cancelled` of every job.

One object serves two worlds. It is set in the event loop (by the producer, or by the job's timeout) and read wherever
the worker runs: a `def` worker asks or waits on its own thread; for an `async def` worker the executor registers one
callback, which cancels the job's task. The first reason stays: what comes later finds a job that is already ending,
and the database's own marks (fence and cancel mark) decide what is written in the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from enum import StrEnum


class CancelReason(StrEnum):
    """Why a job was told to end. The values are what `job.cancelled.reason` shows."""

    CANCELLED = "cancelled"
    LOST = "lost"
    STOPPING = "stopping"
    TIMEOUT = "timeout"


def is_ctrl_c(error: BaseException) -> bool:
    """Whether somebody may have pressed a key: that arrives on the main thread only."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


_making_event = threading.Lock()


class Cancellation:
    """The `CancelSignal` of one run. `set` is for the event loop's thread, everything else for any thread."""

    __slots__ = ("_event", "_on_set", "_reason")

    def __init__(self) -> None:
        self._reason: CancelReason | None = None
        self._event: threading.Event | None = None
        self._on_set: Callable[[], object] | None = None

    @property
    def reason(self) -> CancelReason | None:
        """None while the job may go on; else why it should end."""
        return self._reason

    def is_set(self) -> bool:
        """Whether the job should end."""
        return self._reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the job should end, at most `timeout` seconds; whether it should."""
        with _making_event:  # most jobs never wait, so most signals never pay for an event
            if self._reason is not None:
                return True
            if self._event is None:
                self._event = threading.Event()
            event = self._event
        return event.wait(timeout)

    def raise_if_set(self) -> None:
        """Raise `asyncio.CancelledError` if the job should end.

        A `def` worker ends that way to be recorded as interrupted, cancelled or timed out, whichever it was.
        """
        if self._reason is not None:
            raise asyncio.CancelledError(f"the job should end: {self._reason}")

    def set(self, reason: CancelReason) -> bool:
        """Tell the job to end. False where it had been told before; then nothing changes."""
        with _making_event:
            if self._reason is not None:
                return False
            self._reason = reason
            event, on_set = self._event, self._on_set
        if event is not None:
            event.set()
        if on_set is not None:
            on_set()
        return True

    def watch(self, on_set: Callable[[], object] | None) -> Callable[[], object] | None:
        """Have `on_set` called, in the loop, by the next `set`; None ends that. Returns the callback it replaces."""
        before, self._on_set = self._on_set, on_set
        return before
