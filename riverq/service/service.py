"""How a background service starts and stops. Written once, so that no service has its own idea of it.

The contract: `start()` while running does nothing. `stop()` while stopped does nothing. A stopped service may start
again. `stop()` returns once `run()` has ended, and keeps the caller's own cancellation. A `run()` that raises is logged
and leaves the service startable. Services that cannot simply be cancelled override `request_stop`.

A `stop()` whose caller was cancelled has still asked: `run()` ends in its own time, a second `stop()` waits for that
without asking again (a second cancellation would tear the first one's clean-up), and `start()` waits for it too.

`start()` and `stop()` take turns. A `stop()` that meets a `start()` in `prepare()` waits for it and then stops what has
begun, so the last word counts; to give up a `prepare()` that hangs, cancel the `start()`. A `start()` that is cancelled
or fails in `prepare()` leaves the service stopped and startable: `prepare()` undoes what it has done itself. Nothing is
awaited between the end of `prepare()` and the birth of the task, so no start is half made. A `request_stop` that raises
is logged, and `run()` is cancelled instead: a service must not outlive its stop because of a mistake in asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from riverq.service.context import ServiceContext


class Service:
    """Something that starts, runs in the background, and stops. Subclasses write `run()`."""

    def __init__(self, ctx: ServiceContext) -> None:
        self.ctx = ctx
        self.name = type(self).__name__
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._stop_requested = False

    @property
    def is_running(self) -> bool:
        """Whether `run()` is under way."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Begin `run()` in a task of its own. Does nothing while running."""
        async with self._lock:
            if self._stop_requested and self._task is not None:
                await asyncio.wait([self._task])
            if not self.is_running:
                await self.prepare()
                self._stop_requested = False
                self._task = asyncio.create_task(self._run_logged(), name=f"riverq.{self.name}")

    async def stop(self) -> None:
        """End `run()` and wait for its end. Does nothing while stopped."""
        async with self._lock:
            if self._task is not None:
                if not self._stop_requested:
                    self._stop_requested = True
                    self._ask(self._task)
                await asyncio.wait([self._task])  # `await self._task` would swallow the caller's own cancellation
                self._task = None

    async def prepare(self) -> None:
        """What must have succeeded before `start` returns; what it raises, `start` raises."""

    async def run(self) -> None:
        """The service's life. Ends by cancellation unless `request_stop` says otherwise."""
        raise NotImplementedError

    def request_stop(self, task: asyncio.Task[None]) -> None:
        """Ask `run()` to end; cancels it unless overridden."""
        task.cancel()

    def _ask(self, task: asyncio.Task[None]) -> None:
        try:
            self.request_stop(task)
        except Exception:
            self.ctx.log.exception("%s: Asking it to stop failed, cancelling it", self.name)
            task.cancel()

    async def _run_logged(self) -> None:
        try:
            await self.run()
        except asyncio.CancelledError:
            pass
        except Exception:
            self.ctx.log.exception("%s: Run ended with an error", self.name)


async def stop_all(services: Iterable[Service]) -> None:
    """Stop one after the other, in the order given. An error of one does not spare the others; the first is raised."""
    errors: list[Exception] = []
    for service in services:
        try:
            await service.stop()
        except Exception as error:  # noqa: BLE001  # raised at the end
            errors.append(error)
    if errors:
        raise errors[0]


async def stop_together(services: Iterable[Service]) -> None:
    """Ask all in the order given and in one go, then wait for all.

    For services that do not need each other: one whose clean-up hangs does not keep the next from being asked.
    """
    stops = [asyncio.create_task(service.stop(), name=f"riverq.{service.name}.stop") for service in services]
    if stops:
        await asyncio.wait(stops)
    errors = [error for stop in stops if (error := stop.exception())]
    if errors:
        raise errors[0]


async def start_all(
    services: Sequence[Service], *, undo: Callable[[Iterable[Service]], Awaitable[None]] = stop_all
) -> None:
    """Start in order; where one fails, those already started are given to `undo` in reverse and its error is raised.

    Being cancelled counts as failing, and being cancelled again does not cut `undo` short.
    """
    started: list[Service] = []
    try:
        for service in services:
            started.append(service)
            await service.start()
    except BaseException:
        await to_the_end(undo(reversed(started)))
        raise


async def to_the_end(work: Awaitable[None]) -> None:
    """Wait for `work` even while being cancelled; the cancellation is raised when it has ended.

    For clean-up: an `await` in an `except` clause is itself cut short by a second cancellation.
    """

    async def run() -> None:
        await work

    task = asyncio.create_task(run(), name="riverq.to_the_end")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
    failure = task.exception()  # read even where the cancellation comes first, else the loop complains
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure
