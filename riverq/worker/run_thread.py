"""Runs a `def` worker on a daemon thread.

Python cannot end a thread. Being told to end is therefore only `job.cancelled` for these workers, and the job's task
waits for the thread whatever happens. If even that task is cancelled (the loop ends), `context.thread_runs` tells that
the worker may be at work still; such a run is never reported and never given back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

from riverq.threads import DaemonThreads
from riverq.worker.context import RunContext
from riverq.worker.run_loop import timer


async def run_in_thread(
    threads: DaemonThreads, work: Callable[[], object], context: RunContext, timeout: timedelta | None
) -> None:
    """Call `work()` on one of `threads`; raises what it raised. After `timeout` the job is told to end, no more."""
    signal = context.cancelled
    watcher = signal.watch(None)  # cancelling the task that waits would not reach the worker
    try:
        with timer(signal, timeout):
            error = await asyncio.wrap_future(threads.submit(_call, work, context))
    finally:
        signal.watch(watcher)
    if error is not None:
        raise error


def _call(work: Callable[[], object], context: RunContext) -> BaseException | None:
    """The error is returned, not raised: a future refuses StopIteration, and its frames would stand in the trace."""
    context.thread_id = threading.get_ident()
    try:
        context.cancelled.raise_if_set()  # it may have waited for a free thread
        work()
    except BaseException as error:  # noqa: BLE001  # handed to the task that waits
        return error
    finally:
        context.thread_id = None
    return None
