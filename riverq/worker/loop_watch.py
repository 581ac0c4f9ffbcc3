"""Notices an event loop that does not run, says which job's code it is in, and notices a process that stood still.

An `async def` worker that blocks holds up everything in its loop: all other jobs, claims, completions, and the leader's
work. A daemon thread therefore asks the loop for an answer, again and again, a little after each answer:

    asked --answered in time--> asked again after a pause
    asked --no answer for the threshold--> blocked: a warning, repeated after twice, four times, eight times ... as long
    blocked --answered--> counted, its whole length logged

A warning names the job whose task is the loop's current one, or whose code started that task (from Python 3.12 on,
where a task shows its context), since when, and where the loop's thread is. Time is counted from the question, so it is
never exaggerated; the loop may have been blocked a pause longer.

**A process that stands still** (SIGSTOP, a frozen container, a machine that sleeps) must not look like a blocked loop.
The thread measures its own turns: one that took the threshold longer than its wait, by either clock, while the process
used hardly any processor time, was a standstill. It is not counted as a block. `on_standstill` is called in the loop
with its length: no proof of life was given meanwhile, so runs may have been taken away. A step of the wall clock looks
the same, and costs one needless look. A call that holds the interpreter's lock holds up the thread too, but uses the
processor, and counts as a block, whose job cannot be told.

**The thread dies** with the process, or when the loop is closed. If it ever failed, nothing but these warnings would be
lost. Clocks: the context's, read from the thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from riverq.service.context import ServiceContext
from riverq.service.service import Service
from riverq.service.testsignal import TestSignal
from riverq.stats import LoopStats
from riverq.validation import duration
from riverq.worker.context import RunContext, job_task_of
from riverq.worker.place import place_of

PAUSES_PER_THRESHOLD = 4
SHORTEST_PAUSE = 0.02
LONGEST_WAIT = 1.0
"""Seconds; a thread that waits no longer ends soon after its loop, whatever became of that."""

IDLE_SHARE = 0.5
"""Of a standstill; a process that used more processor time than that was running."""

AnyTask = asyncio.Task[Any]


@dataclass(slots=True)
class _Question:
    """Put to the loop at `asked_at`, in monotonic seconds; `since` is the same by the wall clock.

    `job` is the one found when the block was noticed.
    """

    asked_at: float
    since: datetime
    answered: threading.Event = field(default_factory=threading.Event)
    answered_at: float | None = None
    tell_at: float = 0.0
    job: RunContext | None = None

    def lasted(self, now: float) -> float:
        """For how long there was no answer."""
        return (now if self.answered_at is None else self.answered_at) - self.asked_at


class LoopWatch(Service):
    """For the loop that starts it. `run_of(task)` gives a job's run by its task; it is called in the watching thread.

    `on_standstill` (settable) is called in the loop after the process stood still.
    """

    def __init__(
        self, ctx: ServiceContext, threshold: timedelta, run_of: Callable[[AnyTask], RunContext | None]
    ) -> None:
        super().__init__(ctx)
        duration("loop_block_threshold", threshold, timedelta(milliseconds=1))
        self.on_standstill: Callable[[timedelta], None] | None = None
        self.stood_still: TestSignal[timedelta] = TestSignal()
        self._run_of = run_of
        self._threshold = threshold.total_seconds()
        self._pause = min(LONGEST_WAIT, max(SHORTEST_PAUSE, self._threshold / PAUSES_PER_THRESHOLD))
        self._wait: Callable[[threading.Event, float], bool] = threading.Event.wait
        self._processor_time: Callable[[], float] = time.process_time
        self._blocked = 0
        self._longest = 0.0
        self._question: _Question | None = None
        self._mark: tuple[float, datetime, float] | None = None

    @property
    def stats(self) -> LoopStats:
        """How often and how long the loop was blocked. For any thread: in a blocked loop nobody could ask."""
        question = self._question
        lasted = 0.0 if question is None or question.answered.is_set() else question.lasted(self._now())
        now = lasted if lasted >= self._threshold else 0.0
        return LoopStats(
            blocked=self._blocked + (now > 0),
            longest_block=timedelta(seconds=max(self._longest, now)),
            blocked_now=timedelta(seconds=now),
        )

    async def run(self) -> None:
        """Have this loop watched until cancelled."""
        loop, end = asyncio.get_running_loop(), threading.Event()
        watching = (loop, threading.get_ident(), end)
        threading.Thread(target=self._watch, args=watching, name="riverq_loop_watch", daemon=True).start()
        try:
            await loop.create_future()
        finally:
            end.set()

    def _now(self) -> float:
        return self.ctx.clock.monotonic()

    def _moment(self) -> tuple[float, datetime, float]:
        return self._now(), self.ctx.clock.now(), self._processor_time()

    # -- in the loop

    def _answer(self, question: _Question) -> None:
        question.answered_at = self._now()
        question.answered.set()

    def _tell_standstill(self, length: timedelta) -> None:
        self.ctx.log.warning("%s: Found that the whole process stood still (duration=%s)", self.name, length)
        if self.on_standstill is not None:
            self.on_standstill(length)
        self.stood_still.signal(length)

    # -- in the watching thread

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int, end: threading.Event) -> None:
        self._mark = self._moment()
        try:
            while not self._rest(loop, end, self._pause):
                question = _Question(self._now(), self.ctx.clock.now(), tell_at=self._threshold)
                self._question = question
                loop.call_soon_threadsafe(self._answer, question)
                self._await_answer(loop, thread_id, question, end)
                self._question = None
        except RuntimeError:
            if not loop.is_closed():
                self.ctx.log.exception("%s: Watches the event loop no more", self.name)

    def _await_answer(
        self, loop: asyncio.AbstractEventLoop, thread_id: int, question: _Question, end: threading.Event
    ) -> None:
        while not question.answered.is_set() and not end.is_set():
            left = question.tell_at - question.lasted(self._now())
            # At least a moment: after a standstill the loop must have had its chance, and the standstill be noticed.
            self._rest(loop, question.answered, min(max(left, SHORTEST_PAUSE), LONGEST_WAIT), question)
            if question.lasted(self._now()) >= question.tell_at and self._tell_blocked(loop, thread_id, question):
                question.tell_at *= 2
                self._mark = self._moment()  # a slow log is no standstill
        lasted = question.lasted(self._now())
        if question.answered.is_set() and lasted >= self._threshold:
            self._count(lasted, question.since, question.job)

    def _rest(
        self, loop: asyncio.AbstractEventLoop, event: threading.Event, seconds: float, question: _Question | None = None
    ) -> bool:
        """Wait for `event`, at most `seconds`; whether it is set. Notices a process that stood still since the last."""
        began, wall, used = self._mark or self._moment()
        is_set = self._wait(event, seconds)
        now, wall_now, used_now = self._mark = self._moment()
        took = now - began
        extra = max(took, (wall_now - wall).total_seconds()) - seconds
        if extra < self._threshold:
            return is_set
        if used_now - used < extra * IDLE_SHARE:
            if question is not None:
                question.asked_at += took  # how much of it the loop could have run in is not known
            loop.call_soon_threadsafe(self._tell_standstill, timedelta(seconds=extra))
        elif question is None:
            self._count(took - seconds, wall, None)
        return is_set

    # -- telling

    def _tell_blocked(self, loop: asyncio.AbstractEventLoop, thread_id: int, question: _Question) -> bool:
        """False where the loop went on before one could see where it was."""
        task = asyncio.current_task(loop)
        job = self._job_of(task)
        place = place_of(thread_id)
        if question.answered.is_set():
            return False
        question.job = job
        since = question.since.isoformat(timespec="milliseconds")
        lasted = timedelta(seconds=round(question.lasted(self._now()), 3))
        if job is None:
            self.ctx.log.warning(
                "%s: Blocked event loop since %s, by %s, which is no job, at %s (duration=%s)",
                self.name,
                since,
                "a callback" if task is None else f"the task {task.get_name()}",
                place,
                lasted,
            )
        else:
            self.ctx.log.warning(
                "%s: Blocked event loop since %s, by a job at %s (job_id=%s, kind=%s, queue=%s, duration=%s)",
                self.name,
                since,
                place,
                job.claimed.id,
                job.claimed.kind,
                job.queue,
                lasted,
            )
        return True

    def _count(self, lasted: float, since: datetime, job: RunContext | None) -> None:
        """A block is over."""
        self._blocked, self._longest = self._blocked + 1, max(self._longest, lasted)
        self.ctx.log.warning(
            "%s: Unblocked event loop, it had not run since %s (job_id=%s, kind=%s, duration=%s)",
            self.name,
            since.isoformat(timespec="milliseconds"),
            None if job is None else job.claimed.id,
            None if job is None else job.claimed.kind,
            timedelta(seconds=round(lasted, 3)),
        )
        self._mark = self._moment()

    def _job_of(self, task: AnyTask | None) -> RunContext | None:
        """The run of the job whose task this is, or whose code started it."""
        if task is None:
            return None
        parent = job_task_of(task)
        return self._run_of(task) or (None if parent is None else self._run_of(parent))
