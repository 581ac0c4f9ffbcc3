"""The child's half of the protocol between harness and contender, with the standard library alone.

The harness starts one process per task and measures it from outside. Lines of JSON: the task comes in, `ready` goes
out, `{"do": "go"}` starts the clock, `progress` (or one `result`) tells how far it is, `{"do": "stop"}` ends it. What
the contender prints goes to stderr, so that a chatty library cannot break the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

PROGRESS_SECONDS = 0.05

Handler = Callable[["Child"], Awaitable[None]]


class Unsupported(Exception):
    """The contender has no such way of doing it; the message says why."""


class Child:
    """One task: what the harness asked for, and how far this process is with it. `done` may be called in any thread."""

    def __init__(self, task: Mapping[str, Any], out: int) -> None:
        self.task = task
        self.url: str = task["url"]
        self.tuned = task.get("settings") == "tuned"
        self.until: int = task.get("until", 0)
        self.executed = 0
        self._out = out
        self._writing = threading.Lock()
        self._counting = threading.Lock()
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        data = json.dumps({"event": event, **fields}).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(self._out, data) :]

    async def go(self) -> None:
        """Say that everything is ready, and wait for the clock's start."""
        self.emit("ready")
        await self._expect("go")

    async def stop_requested(self) -> None:
        """Wait until the harness has seen enough."""
        await self._expect("stop")

    def done(self) -> None:
        """One more job has run; called at the end of the job. Reports at once when the last one has."""
        with self._counting:
            self.executed += 1
            is_last = self.executed == self.until
        if is_last:
            self.emit("progress", count=self.until)

    async def stop_requested_beside(self, worker: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        """The same, raising if the worker ends before it, or anything fails."""
        stop = asyncio.create_task(self.stop_requested())
        pending: set[asyncio.Task[None]] = {stop, worker, *others}
        while not stop.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if worker in done:
                raise RuntimeError("the worker ended by itself")

    async def report_progress(self) -> None:
        """Tell `executed` as long as it changes; run this as a task beside the work."""
        told = 0
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if self.executed != told:
                told = self.executed
                self.emit("progress", count=told)

    async def linger(self) -> None:
        """Wait to be ended: a process that is gone has no memory to be read."""
        await self._lines.get()

    def stopped(self) -> None:
        """The last line of a task that works jobs."""
        self.emit("stopped", executed=self.executed)

    async def insert_evenly(self, total: int, insert: Callable[[int], Awaitable[None]], *, step: int = 1) -> None:
        """Call `insert(i)` when i/rate seconds have passed, for every `step`-th of `total` numbers.

        Who is late goes at once, none is left out, and calls may overlap; returns when all have ended.
        """
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(0, total, step):
                delay = began + number / self.task["rate"] - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                group.create_task(_called(insert, number))

    async def _expect(self, word: str) -> None:
        line = await self._lines.get()
        got = json.loads(line) if line else {}
        if got.get("do") != word:
            raise RuntimeError(f"expected the harness to say {word!r}, got: {line!r}")

    def _read_lines(self, loop: asyncio.AbstractEventLoop) -> None:
        line = "?"
        with contextlib.suppress(RuntimeError):  # the loop has ended before the harness
            while line:  # the empty one says that the harness has gone: do not outlive it
                line = sys.stdin.readline()
                loop.call_soon_threadsafe(self._lines.put_nowait, line)


async def _called(insert: Callable[[int], Awaitable[None]], number: int) -> None:
    await insert(number)


async def _serve(handlers: Mapping[str, Handler], child: Child) -> None:
    threading.Thread(target=child._read_lines, args=(asyncio.get_running_loop(),), daemon=True).start()
    handler = handlers.get(child.task["task"])
    if handler is None:
        raise Unsupported(f"no task {child.task['task']!r}")
    await handler(child)
    if child.task["task"] == "insert":
        await child.linger()


def main(handlers: Mapping[str, Handler], *, uvloop: Callable[[Mapping[str, Any]], bool] = lambda task: False) -> None:
    """Read the task, run its handler in an event loop (uvloop's where asked), and exit 0 or 1."""
    out = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    child = Child(task, out)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop(task):
        from importlib import import_module

        factory = import_module("uvloop").new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(handlers, child))
    except Unsupported as error:
        child.emit("unsupported", message=str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, the harness must hear of it
        traceback.print_exc()
        child.emit("error", message=f"{type(error).__name__}: {error}")
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # a library's lingering threads are not the measurement's business
