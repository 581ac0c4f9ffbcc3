"""How a background service starts and stops. Written once, so that no service has its own idea of it.

The contract: `start()` while running does nothing. `stop()` while stopped does nothing. A stopped service may start
again. `stop()` returns once `run()` has ended, and keeps the caller's own cancellation. A `run()` that raises is logged
and leaves the service startable. Services that cannot simply be cancelled override `request_stop`.

A `stop()` whose caller was cancelled has still asked: `run()` ends in its own time, a second `stop()` waits for that
without asking again (a second cancellation would tear the first one's clean-up), and `start()` waits for it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

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
                    self.request_stop(self._task)
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

    async def _run_logged(self) -> None:
        try:
            await self.run()
        except asyncio.CancelledError:
            pass
        except Exception:
            self.ctx.log.exception("%s: Run ended with an error", self.name)


async def start_all(services: Sequence[Service]) -> None:
    """Start in order; where one fails, those already started are stopped in reverse and its error is raised."""
    started: list[Service] = []
    try:
        for service in services:
            started.append(service)
            await service.start()
    except BaseException:
        await stop_all(reversed(started))
        raise


async def stop_all(services: Iterable[Service]) -> None:
    """Stop one after the other, in the order given."""
    for service in services:
        await service.stop()
