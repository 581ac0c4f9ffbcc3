"""Looks, up to twenty times a second, at what our connections do inside the server, until it cannot.

From a thread with an event loop and a connection of its own: on the loop under measurement it would look only when that
loop is at rest, and so see a server that is always busy.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from time import perf_counter

from riverq.bench.figures import Observed, is_wal_event
from riverq.bench.processes import cpu_seconds
from riverq.clock import SystemClock
from riverq.database import Database
from riverq.driver import AnyEngine, load_driver
from riverq.query.measure import Backend, backends

INTERVAL = 0.05
PATIENCE = 5.0
"""Seconds that anybody waits for the thread to begin or to end."""


class Doing(Enum):
    """What a connection does at one look."""

    COMPUTING = "computing"
    WAL = "WAL"
    WAITING = "waiting"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `cpu` has the seconds of CPU of each process so far, None for one that cannot be read."""

    at: float
    backends: Sequence[Backend]
    cpu: Sequence[float | None]


def doing(backend: Backend) -> Doing:
    """What this connection does. One that answers nobody waits for its client."""
    if backend.state not in ("active", "fastpath function call"):
        return Doing.CLIENT
    if backend.wait_type is None:
        return Doing.COMPUTING
    if backend.wait_type == "Client":
        return Doing.CLIENT
    return Doing.WAL if is_wal_event(backend.wait_event or "") else Doing.WAITING


def observe(samples: Sequence[Sample]) -> Observed:
    """Sum up what was seen."""
    seen: Counter[Doing] = Counter()
    events: Counter[str] = Counter()
    for sample in samples:
        kinds = [doing(backend) for backend in sample.backends]
        seen.update(set(kinds))
        events.update(
            f"{backend.wait_type}:{backend.wait_event}"
            for backend, kind in zip(sample.backends, kinds, strict=True)
            if kind in (Doing.WAL, Doing.WAITING)
        )
    looks = len(samples) or 1
    return Observed(
        samples=len(samples),
        computing=seen[Doing.COMPUTING] / looks,
        wal=seen[Doing.WAL] / looks,
        waiting=seen[Doing.WAITING] / looks,
        events=dict(events.most_common()),
        cpu=_cores_used(samples),
    )


def _cores_used(samples: Sequence[Sample]) -> float | None:
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for sample in samples:
        for backend, cpu in zip(sample.backends, sample.cpu, strict=True):
            if cpu is None:
                return None
            first.setdefault(backend.pid, cpu)
            last[backend.pid] = cpu
    if not last or samples[-1].at <= samples[0].at:
        return None
    return sum(last[pid] - first[pid] for pid in last) / (samples[-1].at - samples[0].at)


class Watcher:
    """Collects samples of the connections called `application_name`, on an engine that `make_engine` makes."""

    def __init__(self, make_engine: Callable[[], AnyEngine], application_name: str) -> None:
        self._make_engine = make_engine
        self._application_name = application_name
        self._clock = SystemClock()
        self._samples: list[Sample] = []
        self._error: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._main, name="riverq_bench_watch", daemon=True)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look while the block runs, which begins after the first look. One that cannot look says so in what it saw."""
        self._thread.start()
        try:
            await self._wait(lambda: bool(self._samples) or self._error is not None)
            yield
        finally:
            self._end.set()
            await self._wait(lambda: not self._thread.is_alive())

    def between(self, began: float, ended: float) -> Observed:
        """What was seen between two moments of `perf_counter`."""
        found = observe([sample for sample in list(self._samples) if began <= sample.at <= ended])
        return replace(found, error=self._error)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        limit = self._clock.monotonic() + PATIENCE
        while not is_so() and self._clock.monotonic() < limit:
            await self._clock.sleep(0.01)

    def _main(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception as error:  # noqa: BLE001  # what is measured goes on without what is seen
            self._error = str(error)

    async def _watch(self) -> None:
        engine = self._make_engine()
        db = Database(engine, load_driver(engine), schema="", slots=1)
        try:
            while not self._end.is_set():
                found = await db.run_single(backends, self._application_name)
                self._samples.append(Sample(perf_counter(), found, [cpu_seconds(backend) for backend in found]))
                await self._clock.sleep(INTERVAL)
        finally:
            await db.close()
