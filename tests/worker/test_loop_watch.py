from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from riverq.errors import ConfigError
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from riverq.worker.loop_watch import LoopWatch
from tests.service.stress import stress_start_stop
from tests.worker.harness import House, Raw, until

SHORT = timedelta(milliseconds=50)


class Told(logging.Handler):
    """Keeps the lines of the watch and lets a thread wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.lines.append(record.getMessage())
            self._changed.notify_all()

    def wait(self, *parts: str, count: int = 1) -> str:
        def found() -> list[str]:
            return [line for line in self.lines if all(part in line for part in parts)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, 10), (parts, self.lines)
            return found()[-1]


@pytest.fixture
def told() -> Any:
    handler = Told()
    logging.getLogger("riverq").addHandler(handler)
    yield handler
    logging.getLogger("riverq").removeHandler(handler)


def no_job(task: asyncio.Task[Any]) -> None:
    return None


async def test_start_stop_stress(ctx: ServiceContext) -> None:
    await stress_start_stop(LoopWatch(ctx, SHORT, no_job), tasks=4, rounds=5)


def test_a_threshold_of_nothing_is_refused(ctx: ServiceContext) -> None:
    with pytest.raises(ConfigError, match="loop_block_threshold"):
        LoopWatch(ctx, timedelta(0), no_job)


async def test_the_job_that_blocks_the_loop_is_named_until_it_goes_on(house: House, told: Told) -> None:
    seen: list[Any] = []
    producer = house.producer()
    watch = LoopWatch(house.ctx, SHORT, producer.run_of)

    @house.workers.work(kind="echo")
    async def blocks(job: Raw) -> None:
        told.wait("Blocked event loop", f"job_id={job.id}, kind=echo, queue=default", count=2)
        seen.append(watch.stats)

    [job_id] = house.rows.insert()
    await house.start(watch, house.completer, producer)
    await house.settled.wait()
    await asyncio.to_thread(told.wait, "Unblocked event loop", f"job_id={job_id}, kind=echo")
    line = told.wait("Blocked event loop", f"job_id={job_id}")
    assert "test_loop_watch.py:" in line  # one's own line, and the library's that it led to
    assert "in Told.wait, inside " in line
    assert "in Condition.wait (" in line
    [during] = seen
    assert during.blocked >= 1
    assert during.blocked_now >= 2 * SHORT  # it was told twice
    await until(lambda: watch.stats.blocked_now == timedelta(0))
    assert watch.stats.blocked >= 1
    assert watch.stats.longest_block >= during.blocked_now


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a task does not show its context")
async def test_a_task_that_the_job_started_is_the_jobs(house: House, told: Told) -> None:
    producer = house.producer()
    watch = LoopWatch(house.ctx, SHORT, producer.run_of)

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        async def inner() -> None:
            told.wait("Blocked event loop", f"job_id={job.id}, kind=echo")

        await asyncio.create_task(inner())

    house.rows.insert()
    await house.start(watch, house.completer, producer)
    await house.settled.wait()


async def test_code_that_is_no_job_is_named_as_such(ctx: ServiceContext, told: Told) -> None:
    watch = LoopWatch(ctx, SHORT, no_job)
    await watch.start()
    task = asyncio.create_task(asyncio.sleep(0), name="other work")
    task.add_done_callback(lambda _: told.wait("by a callback, which is no job"))

    async def block() -> None:
        told.wait("by the task other work, which is no job")

    await task
    await asyncio.create_task(block(), name="other work")
    await asyncio.to_thread(told.wait, "Unblocked event loop", count=2)
    await watch.stop()
    assert watch.stats.blocked >= 2


async def test_a_worker_in_a_thread_does_not_block_the_loop(house: House, told: Told) -> None:
    producer = house.producer()
    watch = LoopWatch(house.ctx, SHORT, producer.run_of)
    answers = Answers(watch)

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        answers.wait(8)  # a pause each: the loop runs on for longer than the threshold

    house.rows.insert()
    await house.start(watch, house.completer, producer)
    await house.settled.wait()
    assert [line for line in told.lines if "by a job" in line] == []


class Answers:
    """Counts what the loop answers."""

    def __init__(self, watch: LoopWatch) -> None:
        self._counted = threading.Semaphore(0)
        real: Callable[[Any], None] = watch._answer

        def answer(question: Any) -> None:
            real(question)
            self._counted.release()

        watch._answer = answer  # type: ignore[method-assign]  # to see each answer

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._counted.acquire(timeout=10)


# -- standstills, with waits and clocks that the test makes


class Script:
    """The watching thread's waits: each takes `(seconds, processor time, whether the event comes)`, then the end."""

    def __init__(self, clock: FakeClock, *waits: tuple[float, float, bool]) -> None:
        self._clock = clock
        self._waits = list(waits)
        self.used = 0.0

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if not self._waits:
            event.set()
            raise RuntimeError("the script is over")
        took, used, comes = self._waits.pop(0)
        self._clock._elapsed += took or seconds
        self.used += used
        return comes


class HeldLoop:
    """Runs what it is given only when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        self.calls.append((call, args))

    def is_closed(self) -> bool:
        return True

    def told(self) -> list[timedelta]:
        return [args[0] for call, args in self.calls if call.__name__ == "_tell_standstill"]


def watched(ctx: ServiceContext, clock: FakeClock, *waits: tuple[float, float, bool]) -> tuple[LoopWatch, HeldLoop]:
    watch, loop, script = LoopWatch(ctx, timedelta(seconds=1), no_job), HeldLoop(), Script(clock, *waits)
    watch._wait, watch._processor_time = script.wait, lambda: script.used
    watch._watch(loop, threading.get_ident(), threading.Event())  # type: ignore[arg-type]  # all it needs of a loop
    return watch, loop


def test_a_process_that_stood_still_had_no_blocked_loop(
    held_ctx: ServiceContext, held_clock: FakeClock, told: Told
) -> None:
    """It is stopped while the thread rests, and while a question is out."""
    watch, loop = watched(held_ctx, held_clock, (100.25, 0.1, False))
    assert loop.told() == [timedelta(seconds=100)]
    watch, loop = watched(held_ctx, held_clock, (0, 0, False), (101, 0.1, False), (0.5, 0, False))
    assert loop.told() == [timedelta(seconds=100)]
    assert (watch.stats.blocked, told.lines) == (0, [])


def test_a_call_that_held_the_interpreter_is_a_block(
    held_ctx: ServiceContext, held_clock: FakeClock, told: Told
) -> None:
    watch, loop = watched(held_ctx, held_clock, (5.25, 5, False))
    assert loop.told() == []
    assert (watch.stats.blocked, watch.stats.longest_block) == (1, timedelta(seconds=5))
    assert "job_id=None" in told.wait("Unblocked event loop")


def test_a_wait_that_is_a_little_late_means_nothing(
    held_ctx: ServiceContext, held_clock: FakeClock, told: Told
) -> None:
    watch, loop = watched(held_ctx, held_clock, (1.2, 0, False))
    assert (loop.told(), watch.stats.blocked, told.lines) == ([], 0, [])


PROGRAM = """
import asyncio, logging, sys
from datetime import timedelta
from riverq.service import ServiceContext
from riverq.worker.loop_watch import LoopWatch

logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    watch = LoopWatch(ServiceContext(client_id="x"), timedelta(seconds=0.5), lambda task: None)
    watch.stood_still.watch()
    await watch.start()
    while watch._mark is None:  # its thread is at work
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    length = await watch.stood_still.wait(60)
    print("longest block", watch.stats.longest_block.total_seconds(), flush=True)
    await watch.stop()

asyncio.run(main())
"""


def test_a_stopped_process_knows_it_when_it_goes_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(1.5)  # this is the case: longer than pause and threshold
        os.kill(process.pid, signal.SIGCONT)
        shown = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
    assert "the whole process stood still" in shown
    assert float(shown.split("longest block")[1]) < 1  # a machine under load may have held it up a little


async def test_the_thread_ends_with_its_loop(ctx: ServiceContext) -> None:
    def run_and_forget() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(LoopWatch(ctx, SHORT, no_job).start())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    await asyncio.to_thread(run_and_forget)
    await until(lambda: not any(thread.name == "riverq_loop_watch" for thread in threading.enumerate()))


def test_a_loop_that_was_closed_is_watched_no_more(ctx: ServiceContext, told: Told) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    LoopWatch(ctx, SHORT, no_job)._watch(loop, threading.get_ident(), threading.Event())
    assert told.lines == []
