"""Notices jobs that run on past their timeout, says so, and may let another job run in their stead.

After: `worker.executor` told the context when the worker's time is over. Before: `worker.producer`, which gives the
running jobs and takes the slots. One `StuckWatch` per client, one `run` per queue.

A job is stuck when it runs longer than its timeout and the threshold: a `def` worker whose thread ignores the timeout,
which nothing can end, or an `async def` one that swallows its cancellation. Without a timeout a job is never stuck.

    running --timeout + threshold--> stuck: a warning, counted, the handler asked once
    stuck --the handler says ADD_WORKER_SLOT--> its queue has one slot more, the threads for `def` workers one thread
    stuck --the job ends, however--> counted no more, slot and thread go back; its outcome is written as always

Jobs that end in time cost nothing: no timer each, but one look at all running jobs per queue, at most once a second
unless the threshold is shorter. An answer that comes after its job has ended changes nothing.

A handler is somebody else's code: a `def` is called in a daemon thread of its own, so it may block or hang; an
`async def` in the loop. The jobs of one look are asked about one after the other. What a handler raises is logged, and
means LEAVE. Clock: the context's monotonic one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from riverq.service.context import ServiceContext
from riverq.service.testsignal import TestSignal
from riverq.stuck import StuckAnswer, StuckHandler, StuckJob
from riverq.threads import DaemonThreads
from riverq.validation import duration
from riverq.worker.context import RunContext
from riverq.worker.place import place_of

LONGEST_PERIOD = 1.0
SHORTEST_PERIOD = 0.05
"""Seconds between two looks."""


class StuckWatch:
    """The stuck jobs of a client. `threads` are those of its `def` workers."""

    def __init__(
        self, ctx: ServiceContext, threads: DaemonThreads, threshold: timedelta, handler: StuckHandler | None = None
    ) -> None:
        duration("job_stuck_threshold", threshold, timedelta(milliseconds=1))
        self.handled: TestSignal[int] = TestSignal()
        self._ctx = ctx
        self._threads = threads
        self._threshold = threshold.total_seconds()
        self._handler = handler
        self._period = min(LONGEST_PERIOD, max(SHORTEST_PERIOD, self._threshold / 2))
        self._stuck: set[RunContext] = set()
        self._helped: set[RunContext] = set()

    def __contains__(self, context: RunContext) -> bool:
        return context in self._stuck

    @property
    def total(self) -> int:
        """How many jobs are stuck now."""
        return len(self._stuck)

    async def run(self, running: Callable[[], Iterable[RunContext]], add_slot: Callable[[RunContext], None]) -> None:
        """Look after the jobs that `running()` gives, until cancelled; `add_slot(context)` adds a slot for one."""
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._ctx.clock.sleep(self._period)
                try:
                    late = [(context, self._notice(context)) for context in self._late(running())]
                except Exception:
                    self._ctx.log.exception("StuckWatch: Failed to look for stuck jobs")
                    continue
                if late and self._handler is not None:
                    task = asyncio.create_task(self._ask(self._handler, late, add_slot), name="riverq.StuckWatch.ask")
                    asking.add(task)
                    task.add_done_callback(asking.discard)
        finally:
            for task in list(asking):
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def ended(self, context: RunContext) -> None:
        """The job's task has ended; to be called for every job."""
        if context not in self._stuck:
            return
        self._stuck.discard(context)
        if context in self._helped:
            self._helped.discard(context)
            self._threads.take_back()
        self._ctx.log.info(
            "job %s: Ended after it had been stuck (kind=%s, queue=%s, duration=%s)",
            context.claimed.id,
            context.claimed.kind,
            context.queue,
            self._running_for(context),
        )

    # -- noticing

    def _late(self, running: Iterable[RunContext]) -> list[RunContext]:
        limit = self._ctx.clock.monotonic() - self._threshold
        return [context for context in running if context.due_at <= limit and context not in self._stuck]

    def _notice(self, context: RunContext) -> StuckJob:
        self._stuck.add(context)
        claimed = context.claimed
        told = StuckJob(
            job_id=claimed.id,
            kind=claimed.kind,
            queue=context.queue,
            timeout=context.timeout or timedelta(0),
            running_for=self._running_for(context),
            total_stuck=len(self._stuck),
            place=place_of(context.thread_id),
        )
        self._ctx.log.warning(
            "job %s: Got stuck: claimed at %s, past its timeout of %s, %s (kind=%s, queue=%s, attempt=%d, duration=%s)",
            claimed.id,
            datetime.fromtimestamp(claimed.attempted_at_us // 1_000_000, UTC).isoformat(),
            told.timeout,
            _where(context, told.place),
            claimed.kind,
            context.queue,
            claimed.attempt,
            told.running_for,
        )
        return told

    def _running_for(self, context: RunContext) -> timedelta:
        return timedelta(seconds=self._ctx.clock.monotonic() - context.begun_at)

    # -- the handler

    async def _ask(
        self,
        handler: StuckHandler,
        late: list[tuple[RunContext, StuckJob]],
        add_slot: Callable[[RunContext], None],
    ) -> None:
        thread = DaemonThreads(1, name="riverq_stuck")
        try:
            for context, told in late:
                if await self._answer(thread, handler, told) is StuckAnswer.ADD_WORKER_SLOT and context in self._stuck:
                    self._helped.add(context)
                    self._threads.lend()
                    add_slot(context)
                self.handled.signal(told.job_id)
        finally:
            thread.shutdown(wait=False)

    async def _answer(self, thread: DaemonThreads, handler: StuckHandler, told: StuckJob) -> StuckAnswer:
        try:
            answer = await asyncio.wrap_future(thread.submit(handler, told))
            if inspect.isawaitable(answer):
                answer = await answer
            return StuckAnswer.LEAVE if answer is None else StuckAnswer(answer)
        except (Exception, SystemExit):
            self._ctx.log.exception(
                "job %s: Left its slot as it is, the handler of stuck jobs failed (kind=%s)", told.job_id, told.kind
            )
            return StuckAnswer.LEAVE


def _where(context: RunContext, place: str | None) -> str:
    if context.is_async:
        return "its task ignored the cancellation"
    return "it waits for a thread" if place is None else f"its thread is at {place}"
