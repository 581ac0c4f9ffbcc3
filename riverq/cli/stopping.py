"""What signals mean to a worker: the first stops softly, the second cancels jobs, the third leaves at once.

A supervisor's orders mean the same, but are levels and not counts, so that none is lost where two come at the same
moment, and none counts twice where a process was stopping already. Signals are handled while a job blocks the loop
too (`signals.py`); the third level does not wait for the loop at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

from riverq.cli.signals import handling

if TYPE_CHECKING:
    from riverq.client.lifecycle import Runtime

HARD_EXIT = 2.0
"""Seconds between the third signal and the end of the process, whatever happens."""

SOFT, CANCEL, LEAVE = 1, 2, 3


class Stopping:
    """Counts the signals, takes a supervisor's orders, and does what each means. `hints`: say how to go on."""

    def __init__(self, starting: asyncio.Task[Runtime], say: Callable[[str], None], *, hints: bool = True) -> None:
        self._starting = starting
        self._say = say
        self._hints = hints
        self._runtime: Runtime | None = None
        self._loop = asyncio.get_running_loop()
        self._signals = 0
        self._level = 0
        self._task: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()

    def on_signals(self) -> AbstractContextManager[None]:
        """Handle SIGINT and SIGTERM here while the block runs."""
        return handling((signal.SIGINT, signal.SIGTERM), self._handle)

    async def started(self) -> Runtime:
        """What runs now. Raises CancelledError where a signal came first; what was started is then stopped."""
        self._runtime = await self._starting
        return self._runtime

    async def wait(self) -> int:
        """Until everything has ended; the exit code."""
        return await self._ended

    def order(self, level: int) -> None:
        """Go at least so far. From any thread."""
        if level >= LEAVE:
            threading.Thread(target=_leave_soon, daemon=True).start()
        self._loop.call_soon_threadsafe(self._rise, level)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._signals = max(self._signals, self._level) + 1
        self.order(self._signals)

    def _rise(self, level: int) -> None:
        while self._level < min(level, LEAVE):
            self._level += 1
            self._act(self._level)

    def _act(self, level: int) -> None:
        if self._runtime is None and not self._starting.cancel():
            self._runtime = _result(self._starting)  # it has just started, and `started` has not seen it yet
        if self._runtime is None:
            return
        if level == SOFT:
            self._say("stopping; waiting for running jobs" + (" (again to cancel them)" if self._hints else ""))
            self._task = self._loop.create_task(self._stop(self._runtime))
        elif level == CANCEL:
            self._say("cancelling running jobs" + (" (again to leave at once)" if self._hints else ""))
            self._runtime.cancel_jobs()
        elif level == LEAVE:
            self._task = self._loop.create_task(self._abort(self._runtime))

    async def _stop(self, runtime: Runtime) -> None:
        try:
            await runtime.stop()
        except Exception:
            logging.getLogger("riverq").exception("worker: Stop failed")
            self._end(1)
        else:
            if self._level < LEAVE:  # else it ended because jobs were left, and `_abort` has the last word
                self._end(0)

    async def _abort(self, runtime: Runtime) -> None:
        left = await runtime.abort(timedelta(seconds=HARD_EXIT / 2))
        if left:
            self._say(f"left running, for rescue: {', '.join(str(job_id) for job_id in left)}")
        self._end(1)
        # Threads of jobs that never end must not hold the process; everything that can be written is written.
        self._say(f"stopped hard: {runtime.summary()}")
        sys.stderr.flush()
        os._exit(1)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


def _result(starting: asyncio.Task[Runtime]) -> Runtime | None:
    """What was started; None where the start has failed or was cancelled, as `started` will say."""
    return None if starting.cancelled() or starting.exception() is not None else starting.result()


def _leave_soon() -> None:
    time.sleep(HARD_EXIT)
    os._exit(1)
