from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from math import inf
from typing import Any, ParamSpec, TypeVar, cast

import pytest

from riverq.errors import ConfigError
from riverq.registry import NO_TIMEOUT
from riverq.service import ServiceContext
from riverq.stuck import StuckAnswer, StuckHandler, StuckJob
from riverq.testing.fake_clock import FakeClock
from riverq.threads import DaemonThreads
from riverq.worker.context import RunContext
from riverq.worker.executor import ExecutorConfig
from riverq.worker.stuck import StuckWatch
from tests.worker.harness import NEVER, House, Raw, one, run_context, until

P = ParamSpec("P")
T = TypeVar("T")

SHORT = timedelta(milliseconds=20)
ADD = StuckAnswer.ADD_WORKER_SLOT


def stuck_soon(house: House, handler: StuckHandler | None = None) -> None:
    house.executor_config = ExecutorConfig(job_timeout=SHORT, job_stuck_threshold=SHORT, job_stuck_handler=handler)


class OneThread(DaemonThreads):
    """Holds up the event loop until `began` is set: what its thread is late by is nothing of a job's time."""

    def __init__(self, began: threading.Event) -> None:
        super().__init__(1, name="riverq_job")
        self._began = began

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = super().submit(fn, *args, **kwargs)
        assert self._began.wait(10)
        return future


class Deaf:
    """A worker of `echo` that does not hear its timeout, until it is let go; jobs of the kind `quick` end at once."""

    def __init__(self, house: House, style: str) -> None:
        self.go_on = threading.Event()
        self.began = threading.Event()
        house.threads = OneThread(self.began)
        house.gates.append(cast("Any", self.go_on))  # an event of threads does as well

        def work(job: Raw) -> None:
            self.began.set()
            assert self.go_on.wait(10)

        async def work_async(job: Raw) -> None:
            while not self.go_on.is_set():
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    assert job.cancelled.reason == "timeout"

        def quick(job: Raw) -> None: ...

        async def quick_async(job: Raw) -> None: ...

        house.workers.work(kind="echo")(work if style == "def" else work_async)
        house.workers.work(kind="quick", timeout=NO_TIMEOUT)(quick if style == "def" else quick_async)


async def test_a_stuck_job_is_told_of_and_another_runs_in_its_stead(
    house: House, style: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One slot, one thread, and both are held by a job that does not end: the second job runs all the same."""
    caplog.set_level(logging.INFO, "riverq")
    told: list[StuckJob] = []
    threads: list[int] = []

    def handler(job: StuckJob) -> StuckAnswer:
        told.append(job)
        threads.append(threading.get_ident())
        return ADD

    stuck_soon(house, handler)
    deaf = Deaf(house, style)
    [first] = house.rows.insert()
    [second] = house.rows.insert(kind="quick")
    [third] = house.rows.insert(kind="quick", scheduled_at="2100-01-01")
    producer = house.producer(max_workers=1, fetch_poll_interval=NEVER, fetch_cooldown=SHORT)
    await house.start(house.completer, producer)
    assert (await house.settled.wait()).finished.context.claimed.id == second
    assert (producer.stats.stuck, producer.stats.running, producer.stats.max_workers) == (1, 1, 1)
    assert "Got stuck" in caplog.text
    assert ("test_stuck.py" in caplog.text) == (style == "def")
    [job] = told
    assert (job.job_id, job.kind, job.queue, job.timeout, job.total_stuck) == (first, "echo", "default", SHORT, 1)
    assert job.running_for >= 2 * SHORT
    assert threads[0] != threading.get_ident()

    deaf.go_on.set()
    assert (await house.settled.wait()).finished.context.claimed.id == first
    assert house.rows.get(first)["state"] == "completed"
    assert (producer.stats.stuck, producer._slots.free, house.threads._lent) == (0, 1, 0)
    assert f"job {first}: Ended after it had been stuck" in caplog.text
    house.rows.sql("UPDATE JOB SET scheduled_at = now() WHERE id = %(id)s RETURNING id", id=third)
    producer.trigger()
    await house.settled.wait()
    assert len(told) == 1


async def test_without_an_answer_the_slot_stays_taken(house: House, style: str) -> None:
    stuck_soon(house)
    deaf = Deaf(house, style)
    house.rows.insert()
    house.rows.insert(kind="quick")
    producer = house.producer(max_workers=1, fetch_poll_interval=SHORT, fetch_cooldown=SHORT)
    await house.start(house.completer, producer)
    await until(lambda: producer.stats.stuck)
    assert (producer._slots.free, house.rows.states()) == (0, {"running": 1, "available": 1})
    deaf.go_on.set()
    for _ in range(2):
        await house.settled.wait()
    assert producer.stats.stuck == 0


async def test_a_job_stuck_at_a_stop_is_noticed_and_left(house: House, caplog: pytest.LogCaptureFixture) -> None:
    stops = threading.Event()

    def handler(job: StuckJob) -> StuckAnswer:
        assert stops.wait(10)
        return ADD

    stuck_soon(house, handler)
    deaf = Deaf(house, "def")
    [job_id] = house.rows.insert()
    house.rows.insert(kind="quick")
    producer = house.producer(max_workers=1)
    producer._stuck.handled.watch()
    await house.start(house.completer, producer)
    await until(deaf.began.is_set)
    stopping = asyncio.create_task(producer.stop())
    await producer.waiting_for_jobs.wait()
    stops.set()
    assert await producer._stuck.handled.wait() == job_id
    assert (producer.stats.stuck, house.threads._lent) == (1, 1)
    assert producer.leave() == [job_id]
    await stopping
    assert house.rows.states() == {"running": 1, "available": 1}  # no slot helps a queue that stops
    deaf.go_on.set()
    await house.settled.wait()
    await until(lambda: not producer.stats.stuck)
    assert house.threads._lent == 0


async def test_the_workers_own_timeout_counts(house: House) -> None:
    """River ignored it at first, and called jobs stuck that had hours left."""
    stuck_soon(house)
    seen: list[RunContext] = []

    @house.workers.work(kind="echo", timeout=timedelta(hours=2))
    async def work(job: Raw) -> None:
        seen.append(job._context)  # type: ignore[arg-type]  # a RunContext

    @house.workers.work(kind="endless", timeout=NO_TIMEOUT)
    async def endless(job: Raw) -> None:
        seen.append(job._context)  # type: ignore[arg-type]  # a RunContext
        assert job._context.due_at == inf  # type: ignore[attr-defined]  # a RunContext
        assert job._context.begun_at > 0  # type: ignore[attr-defined]  # a RunContext

    await one(house)
    await one(house, kind="endless")
    assert [context.timeout for context in seen] == [timedelta(hours=2), None]
    assert [context.due_at for context in seen] == [inf, inf]  # once ended, they cannot be stuck


# -- the watch alone


class Watched:
    """Runs in a held time, for a watch that asks `handler`."""

    def __init__(self, ctx: ServiceContext, handler: Callable[[StuckJob], Any] | None) -> None:
        self.threads = DaemonThreads(1, name="riverq_job")
        self.watch = StuckWatch(ctx, self.threads, timedelta(seconds=10), handler)
        self.watch.handled.watch()
        self.running: list[RunContext] = []
        self.helped: list[int] = []
        self.task = asyncio.create_task(self.watch.run(lambda: self.running, self._add_slot))

    def begin(self, job_id: int, timeout: timedelta | None, now: float = 0.0) -> RunContext:
        context = run_context(id=job_id)
        context.timeout = timeout
        context.worker_begins(now)
        self.running.append(context)
        return context

    def _add_slot(self, context: RunContext) -> None:
        self.helped.append(context.claimed.id)

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        await clock.until_sleeping()
        await clock.advance(seconds)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


MINUTE = timedelta(minutes=1)


async def test_stuck_is_past_timeout_and_threshold(held_ctx: ServiceContext, held_clock: FakeClock) -> None:
    watched = Watched(held_ctx, None)
    begun = [watched.begin(1, MINUTE), watched.begin(2, None), watched.begin(3, timedelta(minutes=10))]
    await watched.advance(held_clock, 69.5)
    assert watched.watch.total == 0
    await watched.advance(held_clock, 1)
    assert [context in watched.watch for context in begun] == [True, False, False]
    await watched.advance(held_clock, 1000)
    assert watched.watch.total == 2
    for context in begun:
        watched.watch.ended(context)
    assert watched.watch.total == 0
    await watched.end()


async def test_the_handler_is_asked_once_and_may_be_async(held_ctx: ServiceContext, held_clock: FakeClock) -> None:
    told: list[tuple[int, int]] = []

    async def handler(job: StuckJob) -> str:
        assert asyncio.current_task() is not None  # in the loop
        told.append((job.job_id, job.total_stuck))
        return "add_worker_slot" if job.job_id == 1 else "leave"

    watched = Watched(held_ctx, handler)
    first, second = watched.begin(1, MINUTE), watched.begin(2, MINUTE)
    await watched.advance(held_clock, 72)
    assert [await watched.watch.handled.wait() for _ in range(2)] == [1, 2]
    await watched.advance(held_clock, 1000)
    assert told == [(1, 1), (2, 2)]
    assert (watched.helped, watched.threads._lent) == ([1], 1)
    watched.watch.ended(second)
    assert watched.threads._lent == 1
    watched.watch.ended(first)
    assert watched.threads._lent == 0
    await watched.end()


async def test_a_handler_that_fails_changes_nothing(
    held_ctx: ServiceContext, held_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(job: StuckJob) -> Any:
        match job.job_id:
            case 1:
                raise ValueError("the handler's own")
            case 2:
                raise SystemExit(3)
            case 3:
                return "nonsense"
        return ADD

    watched = Watched(held_ctx, handler)
    for job_id in (1, 2, 3, 4):
        watched.begin(job_id, MINUTE)
    await watched.advance(held_clock, 72)
    assert [await watched.watch.handled.wait() for _ in range(4)] == [1, 2, 3, 4]
    assert watched.helped == [4]
    assert caplog.text.count("the handler of stuck jobs failed") == 3
    assert "ValueError: the handler's own" in caplog.text
    await watched.end()


async def test_an_answer_that_comes_too_late_adds_nothing(held_ctx: ServiceContext, held_clock: FakeClock) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def handler(job: StuckJob) -> StuckAnswer:
        asked.set()
        go_on.wait(10)
        return ADD

    watched = Watched(held_ctx, handler)
    context = watched.begin(1, MINUTE)
    await watched.advance(held_clock, 72)
    await asyncio.to_thread(asked.wait, 10)
    watched.watch.ended(context)
    go_on.set()
    await watched.watch.handled.wait()
    assert (watched.helped, watched.threads._lent) == ([], 0)
    await watched.end()


async def test_a_handler_that_hangs_holds_up_neither_the_next_look_nor_the_end(
    held_ctx: ServiceContext, held_clock: FakeClock
) -> None:
    go_on = threading.Event()

    def handler(job: StuckJob) -> StuckAnswer:
        if job.job_id == 1:
            go_on.wait(10)
        return ADD

    watched = Watched(held_ctx, handler)
    watched.begin(1, MINUTE)
    watched.begin(2, MINUTE, now=30)
    await watched.advance(held_clock, 110)
    assert await watched.watch.handled.wait() == 2
    await watched.end()
    assert watched.helped == [2]
    go_on.set()


def test_a_threshold_of_nothing_is_refused(ctx: ServiceContext) -> None:
    with pytest.raises(ConfigError, match="job_stuck_threshold"):
        StuckWatch(ctx, DaemonThreads(1, name="x"), timedelta(0))
