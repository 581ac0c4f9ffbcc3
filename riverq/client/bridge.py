"""The faces that running jobs see: `job.client` and `job.async_client`, on either runtime.

A `def` worker on an `AsyncClient` runs in a thread and needs sync calls; what needs the event loop is done there while
the thread waits. An `async def` worker on a `Client` runs in the runtime's loop and needs awaitable calls; what blocks
is done in a thread. No face of a job can start or stop the client: a job cannot wait for its own end.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from riverq.client.async_client import AsyncClient
from riverq.client.client import Client
from riverq.client.lifecycle import Runtime
from riverq.client.queues import Change, refuse_in_own_loop
from riverq.errors import UsageError
from riverq.hook import chain_insert_async
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult
from riverq.worker.context import NOT_FROM_A_JOB

T = TypeVar("T")

Write = Callable[[Sequence[InsertParams]], list[InsertResult]]
Handed = tuple[Sequence[InsertParams], "asyncio.Future[list[InsertResult]]"]


class SyncJobFace(Client):
    """A sync client as its `def` workers see it. `loop` is the one that runs the jobs."""

    def __init__(self, owner: Client | AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._init(owner._core, owner._engines)
        self._loop = loop

    def start(self) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)

    def stop(self, *, timeout: timedelta | None = None) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)

    def stop_and_cancel(self, *, timeout: timedelta | None = None) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)

    def _in_runtime(self, change: Change) -> None:
        """Straight to the runtime that runs this job, not through the client: that one may be starting still.

        A start that fails waits for the jobs that it began; a job that waited for the start would never end.
        """
        refuse_in_own_loop(self.id)
        self._submit(self._change(change)).result()

    async def _change(self, change: Change) -> None:
        await change(self._runtime)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the loop. Raises UsageError in the loop's own thread, which would wait for itself for ever."""
        if self._is_in_loop():
            work.close()
            raise UsageError("job.client would block the event loop here (use it in the def worker, not in middleware)")
        if self._loop.is_closed():
            work.close()
            raise UsageError("the client that runs this job was stopped")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _is_in_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class AsyncJobFace(AsyncClient):
    """An async client as its `async def` workers see it."""

    def __init__(self, owner: Client | AsyncClient) -> None:
        self._init(owner._core, owner._engines)

    async def start(self) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)

    async def stop(self, *, timeout: timedelta | None = None) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)

    async def stop_and_cancel(self, *, timeout: timedelta | None = None) -> None:
        """Raises UsageError."""
        raise UsageError(NOT_FROM_A_JOB)


class SyncBridge(SyncJobFace):
    """The sync face of an async client, for its `def` workers."""

    def __init__(self, owner: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner, loop)
        self._owner = owner

    def _transact(self, fn: Callable[[Connection], T]) -> T:
        return self._submit(self._owner._transact(fn)).result()

    def _find_schema(self) -> str:
        return self._submit(self._owner._schema()).result()

    def _around(self, params: Sequence[InsertParams], do_write: Write) -> list[InsertResult]:
        """Middleware runs in the loop that it belongs to; the writing comes back to this thread and its session."""
        middleware = self._core.config.middleware
        if not middleware:
            return do_write(params)
        inbox: queue.SimpleQueue[Handed | None] = queue.SimpleQueue()

        async def hand_over(todo: Sequence[InsertParams]) -> list[InsertResult]:
            answer: asyncio.Future[list[InsertResult]] = self._loop.create_future()
            inbox.put((todo, answer))
            return await answer

        async def run() -> list[InsertResult]:
            return await chain_insert_async(middleware, hand_over)(params)

        whole = self._submit(run())
        whole.add_done_callback(lambda _: inbox.put(None))
        while (handed := inbox.get()) is not None:
            self._answer(handed, do_write)
        return whole.result()

    def _answer(self, handed: Handed, do_write: Write) -> None:
        todo, answer = handed
        try:
            results = do_write(todo)
        except BaseException as error:  # noqa: BLE001  # it is raised where the middleware awaits the write
            self._loop.call_soon_threadsafe(_fail, answer, error)
        else:
            self._loop.call_soon_threadsafe(_succeed, answer, results)


class AsyncBridge(AsyncJobFace):
    """The async face of a sync client, for its `async def` workers, in the runtime's own loop."""

    def __init__(self, owner: Client, threads: Executor, runtime: Runtime) -> None:
        super().__init__(owner)
        self._runtime = runtime
        self._owner = owner
        self._threads = threads

    async def _transact(self, fn: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._owner._transact, fn)

    async def _find_schema(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._owner._schema)


def _succeed(answer: asyncio.Future[list[InsertResult]], results: list[InsertResult]) -> None:
    if not answer.done():
        answer.set_result(results)


def _fail(answer: asyncio.Future[list[InsertResult]], error: BaseException) -> None:
    if isinstance(error, StopIteration):  # a future refuses it, and the middleware would wait for ever
        error = RuntimeError(f"inserting raised {error!r}")
    if not answer.done():
        answer.set_exception(error)
