"""The client under measurement, used as an application uses it: `Client` with `def` workers, or `AsyncClient` with
`async def` ones.

A sync client is called in a thread; time is taken there, so that the hop is no part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import NamedTuple, Protocol

from riverq.bench.processes import busy_seconds
from riverq.client import AsyncClient, Client
from riverq.client.lifecycle import Runtime
from riverq.config import Config
from riverq.driver import Driver
from riverq.errors import UsageError
from riverq.insert_opts import InsertItem
from riverq.job import Job
from riverq.job_args import job_args
from riverq.registry import Workers
from riverq.threads import DaemonThreads


@job_args("riverq_bench_noop")
@dataclass
class Noop:
    """A job that does nothing."""

    number: int


@job_args("riverq_bench_timed")
@dataclass
class Timed:
    """A job that says when it began."""

    number: int


class Span(NamedTuple):
    """Two moments of `perf_counter`."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """What is between them."""
        return self.ended - self.began


class Mark(NamedTuple):
    """A moment of `perf_counter`, and the CPU that this process, and everybody on its cores, had used by then."""

    at: float
    cpu: float
    everybody: float | None

    @classmethod
    def now(cls) -> Mark:
        """Here."""
        return cls(perf_counter(), process_time(), busy_seconds())


@dataclass
class Meter:
    """What the workers tell: when the first no-op job began, and when each timed job did."""

    first: Mark | None = None
    arrived: dict[int, float] = field(default_factory=dict)

    def begin(self) -> None:
        """A no-op job begins."""
        if self.first is None:
            self.first = Mark.now()

    def workers(self, *, asynchronous: bool) -> Workers:
        """Workers that tell this meter."""
        workers = Workers()
        if asynchronous:

            @workers.work
            async def noop(job: Job[Noop]) -> None:
                self.begin()

            @workers.work
            async def timed(job: Job[Timed]) -> None:
                self.arrived[job.args.number] = perf_counter()
        else:

            @workers.work
            def noop_in_thread(job: Job[Noop]) -> None:
                self.begin()

            @workers.work
            def timed_in_thread(job: Job[Timed]) -> None:
                self.arrived[job.args.number] = perf_counter()

        return workers


class Face(Protocol):
    """A client of either kind."""

    async def insert(self, args: object, queue: str) -> Span:
        """Insert one job in a transaction of its own."""
        ...

    async def insert_many(self, items: Sequence[InsertItem]) -> Span:
        """Insert them in one statement."""
        ...

    async def insert_many_fast(self, items: Sequence[InsertItem]) -> Span:
        """Insert them by COPY."""
        ...

    async def start(self) -> None:
        """Begin to work."""
        ...

    async def stop(self) -> None:
        """Stop working; does nothing where it was not started."""
        ...

    @property
    def runtime(self) -> Runtime:
        """What runs. Raises UsageError where nothing does."""
        ...


def make_face(driver: Driver, config: Config, *, asynchronous: bool) -> Face:
    """A client on the driver's engine."""
    return AsyncFace(driver, config) if asynchronous else SyncFace(driver, config)


class AsyncFace:
    """An `AsyncClient`."""

    def __init__(self, driver: Driver, config: Config) -> None:
        self._client = AsyncClient(driver, config)

    async def insert(self, args: object, queue: str) -> Span:
        """Insert one job in a transaction of its own."""
        began = perf_counter()
        await self._client.insert(args, queue=queue)
        return Span(began, perf_counter())

    async def insert_many(self, items: Sequence[InsertItem]) -> Span:
        """Insert them in one statement."""
        began = perf_counter()
        await self._client.insert_many(items)
        return Span(began, perf_counter())

    async def insert_many_fast(self, items: Sequence[InsertItem]) -> Span:
        """Insert them by COPY."""
        began = perf_counter()
        await self._client.insert_many_fast(items)
        return Span(began, perf_counter())

    async def start(self) -> None:
        """Begin to work."""
        await self._client.start()

    async def stop(self) -> None:
        """Stop working."""
        await self._client.stop()

    @property
    def runtime(self) -> Runtime:
        """What runs."""
        return _running(self._client._runtime)


class SyncFace:
    """A `Client`, all of whose calls are made in one thread, one after the other."""

    def __init__(self, driver: Driver, config: Config) -> None:
        self._client = Client(driver, config)
        self._thread = DaemonThreads(1, name="riverq_bench")

    async def insert(self, args: object, queue: str) -> Span:
        """Insert one job in a transaction of its own."""
        return await self._in_thread(lambda: self._client.insert(args, queue=queue))

    async def insert_many(self, items: Sequence[InsertItem]) -> Span:
        """Insert them in one statement."""
        return await self._in_thread(lambda: self._client.insert_many(items))

    async def insert_many_fast(self, items: Sequence[InsertItem]) -> Span:
        """Insert them by COPY."""
        return await self._in_thread(lambda: self._client.insert_many_fast(items))

    async def start(self) -> None:
        """Begin to work."""
        await self._in_thread(self._client.start)

    async def stop(self) -> None:
        """Stop working. A call that was given up by its caller is waited for, since the thread is still in it."""
        await self._in_thread(self._client.stop)
        self._thread.shutdown(wait=False)

    @property
    def runtime(self) -> Runtime:
        """What runs."""
        return _running(self._client._runtime)

    async def _in_thread(self, call: Callable[[], object]) -> Span:
        def timed() -> Span:
            began = perf_counter()
            call()
            return Span(began, perf_counter())

        return await asyncio.wrap_future(self._thread.submit(timed))


def _running(runtime: Runtime | None) -> Runtime:
    if runtime is None:
        raise UsageError("this client does not run (start it first)")
    return runtime
