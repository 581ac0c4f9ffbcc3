"""Claims jobs of one queue and sees them through. This docstring is its design.

Before: `notifier` (a job was inserted), the poll timer, a slot that became free. After: `worker.executor` runs each
claimed job in a task of its own.

**States.** Working → stopping → stopped. Working: whenever a fetch is due (`fetch_limiter`), the queue is not paused
and slots are free, claim at most as many rows as there are free slots; nothing is claimed ahead. Stopping: no new
claim; running jobs are waited for, and cancellations by others still reach them. `cancel_jobs` tells the running jobs
to end, and those that a claim still under way will bring, which then do not begin and are given back.

**What makes a fetch due.** The start; a notification for this queue; the poll timer (with jitter, so that a fleet does
not poll in step); a resume; a gap in the notifications; a slot that became free when there had been none, or after a
claim that came back full; a short wait of one of our own jobs that is over (nobody notifies for these). All of them
keep the cooldown, except after a claim that returned exactly its limit while at least a tenth of the slots is free:
then waiting would only leave a backlog unworked.

**A claim is never cancelled by a stop**: cancelled, its rows would be `running` with nobody to run them. It has a time
limit all the same, since a connection that died silently would otherwise end all fetching.

**The connection dies between claim and answer.** The rows are then `running` under our name, and nobody knows them.
They are found again and worked (`lost_claims`), also while the queue is paused: they were claimed before. A client that
is stopped while there may be such rows keeps its row in the registry, so that they are rescued as a dead client's.

**Another configuration** (`reconfigure`) holds from the next claim on, which it brings about. Where it allows fewer
jobs than run, nothing is claimed until enough have ended; no job is ended for it.

**A broken row** fails only itself: a claim returns texts and integers, and what is in the texts is looked at when the
job runs.

**A hard end** (`leave()`): whatever still runs stays `running` in the database, above all jobs whose thread cannot be
ended; their ids are logged. They are never given back while they may still be at work.

**Clocks.** Which rows are due is decided by the database. Cooldown, polling and local timers are measured by the
context's monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from riverq.database import Database
from riverq.errors import UnavailableError
from riverq.notification import Topic, parse_insert
from riverq.notifier import Notifier
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.service.context import ServiceContext
from riverq.service.service import Service
from riverq.service.testsignal import TestSignal
from riverq.state import SHORT_WAIT
from riverq.validation import fail
from riverq.worker.cancellation import CancelReason
from riverq.worker.claim_watch import ClaimWatch
from riverq.worker.context import RunContext
from riverq.worker.executor import Executor
from riverq.worker.fetch_limiter import FetchLimiter
from riverq.worker.lost_claims import LostClaims
from riverq.worker.producer_config import ProducerConfig, ProducerStats
from riverq.worker.remote_control import RemoteControl
from riverq.worker.slots import Slots
from riverq.worker.waiting import wait_first

LARGEST_CLAIM = 1000
"""More rows in one claim are slower, not faster."""

END_GRACE = 2.0
"""Seconds for which a stop waits for a read under way."""

LEAST_JITTER = 0.01
"""Seconds by which polls differ at least."""


class Producer(Service):
    """One queue. `stop()` waits for the running jobs, however long they take; see `cancel_jobs` and `leave`.

    `on_pause` (settable) is called in the loop with whether the queue is paused, at every change.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        db: Database,
        notifier: Notifier | None,
        executor: Executor,
        config: ProducerConfig,
    ) -> None:
        super().__init__(ctx)
        self._db = db
        self._notifier = notifier
        self._executor = executor
        self._config = config
        self._limiter = FetchLimiter(ctx, config.fetch_cooldown)
        self._claim_watch = ClaimWatch(ctx, config.queue, lambda: executor.kinds)
        self._slots = Slots(config.max_workers)
        self.lost_claims = LostClaims(ctx, db, config.queue)
        self._stuck = executor.stuck
        self.control = RemoteControl(
            ctx, db, notifier, queue=config.queue, runs=self._slots.runs, on_pause=self._pause_changed
        )
        self.on_pause: Callable[[bool], None] | None = None
        self.claimed: TestSignal[int] = TestSignal()
        self.waiting_for_jobs: TestSignal[int] = TestSignal()
        self._stop = asyncio.Event()
        self._leave = asyncio.Event()
        self._idle = asyncio.Event()
        self._poll_soon = asyncio.Event()
        self._told_to_end: CancelReason | None = None
        self._slots_wanted = False
        self.claim_was_cut = False
        """Whether a claim was cut off by a hard end, or lost: rows may be running that nobody here knows of."""
        self._backlog = False
        self._unsubscribe: Callable[[], None] | None = None
        self._stats = ProducerStats(config.queue, config.max_workers)

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._config.queue

    @property
    def config(self) -> ProducerConfig:
        """How the queue is worked now."""
        return self._config

    @property
    def stats(self) -> ProducerStats:
        """Counters, with the present number of running and of stuck jobs."""
        self._stats.paused = self.control.told_paused  # first: what a claim brought before the pause is counted, too
        running = self._slots.running
        self._stats.running = len(running)
        self._stats.stuck = sum(context in self._stuck for context in running) if self._stuck.total else 0
        return self._stats

    @property
    def running_ids(self) -> list[int]:
        """The ids of the jobs that run now."""
        return [context.run.job_id for context in self._slots.running]

    def run_of(self, task: asyncio.Task[Any]) -> RunContext | None:
        """The run that this task works, if it is one of this queue's. For any thread."""
        return self._slots.tasks.get(task)

    def trigger(self) -> None:
        """Look for jobs soon; for inserts of this same process, and whoever else knows that there are some."""
        self._limiter.trigger()

    def look_at_everything(self) -> None:
        """Something may have been missed: read whether the queue is paused, and whether the running jobs are ours."""
        self.control.look_at_everything()
        self._limiter.trigger()

    def reconfigure(self, config: ProducerConfig) -> None:
        """Work the same queue in another way from the next claim on. Raises ConfigError for another queue."""
        if config.queue != self.queue:
            raise fail("queue", f"to stay {self.queue!r}", config.queue, "another queue needs a producer of its own")
        self._config = config
        self._stats.max_workers = self._slots.max_workers = config.max_workers
        self._limiter.set_cooldown(config.fetch_cooldown)
        self._poll_soon.set()

    def cancel_jobs(self, reason: CancelReason = CancelReason.STOPPING) -> None:
        """Tell all jobs to end, those that a claim under way brings included, until the next start."""
        self._told_to_end = reason
        for context in self._slots.running:
            context.cancelled.set(reason)

    def leave(self) -> list[int]:
        """End a stop that waits for jobs; returns the ids of those that still run, which stay `running`."""
        self._leave.set()
        return self.running_ids

    async def prepare(self) -> None:
        """Make the queue's row and read whether it is paused. Raises what the database raises."""
        for event in (self._stop, self._leave, self._idle):
            event.clear()
        self._told_to_end = None
        self.claim_was_cut = False
        await self.control.begin()
        self.lost_claims.begin(self.control.touched_at)
        if self._notifier is not None:
            self._unsubscribe = self._notifier.subscribe(Topic.INSERT, self._heard_insert, on_gap=self.trigger)

    def request_stop(self, task: asyncio.Task[None]) -> None:
        """Claim no more; `run` ends when the last job has."""
        self._stop.set()

    async def run(self) -> None:
        """Work until stopped, then wait for the jobs that run."""
        fetching = self._spawn("fetch", self._fetch_until_stopped())
        control = self._spawn("control", self.control.run())
        others = [
            self._spawn("poll", self._poll()),
            self._spawn("stuck", self._stuck.run(lambda: self._slots.running, self._add_slot)),
        ]
        try:
            await self._stop.wait()
            self._limiter.trigger_now()  # so that a fetch loop at rest sees the stop
            await self._wait_or_leave(fetching)
            self.claim_was_cut = fetching.cancelled() or self.lost_claims.may_be
            if self.claim_was_cut:
                self.ctx.log.warning(
                    "%s: Leaves a claim that was not answered; its jobs stay running until they are rescued (queue=%s)",
                    self.name,
                    self.queue,
                )
            self._limiter.stop_timers()
            if self._slots.tasks:
                self.waiting_for_jobs.signal(len(self._slots.tasks))
                await self._wait_or_leave(asyncio.create_task(self._until_idle()))
        finally:
            if self._unsubscribe is not None:
                self._unsubscribe()
            self.control.end()
            self._limiter.stop_timers()
            self._log_left()
            await asyncio.wait([control], timeout=END_GRACE)
            for task in (fetching, control, *others):
                task.cancel()
            await asyncio.gather(fetching, control, *others, return_exceptions=True)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=f"riverq.Producer.{name}.{self.queue}")

    async def _until_idle(self) -> None:
        while self._slots.tasks:  # the jobs before a claim under way may have ended before it brought others
            self._idle.clear()
            await self._idle.wait()

    async def _wait_or_leave(self, task: asyncio.Task[None]) -> None:
        """Wait for the task's end, or for `leave()`, which ends the task."""
        leave = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait([task, leave], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (task, leave):
                each.cancel()
            await asyncio.gather(task, leave, return_exceptions=True)

    def _log_left(self) -> None:
        if self._slots.tasks:
            self.ctx.log.warning(
                "%s: Left jobs at work, their rows stay running and will be rescued (queue=%s, num_jobs=%d, job_id=%s)",
                self.name,
                self.queue,
                len(self._slots.tasks),
                self.running_ids[:100],
            )

    # -- what makes a fetch due

    async def _poll(self) -> None:
        while True:
            self._poll_soon.clear()
            self._limiter.trigger()
            interval = self._config.fetch_poll_interval.total_seconds()
            jitter = self.ctx.rng.uniform(0, max(interval / 10, LEAST_JITTER))
            await wait_first(self.ctx, self._poll_soon, interval + jitter)

    def _heard_insert(self, payload: str) -> None:
        if parse_insert(payload) == self.queue:
            self._limiter.trigger()

    def _pause_changed(self, paused: bool) -> None:  # noqa: FBT001  # a callback with one obvious argument
        if not paused:
            self._limiter.trigger()
        if self.on_pause is not None:
            self.on_pause(paused)

    def _wake_in(self, wait: timedelta) -> None:
        """One of our jobs may run again after `wait`; nobody notifies for waits as short as these."""
        if not self._stop.is_set() and wait <= SHORT_WAIT:
            self._limiter.trigger_in(wait)

    # -- claiming

    async def _fetch_until_stopped(self) -> None:
        while not self._stop.is_set():
            await self._limiter.wait()
            if self._stop.is_set():
                continue
            if self.lost_claims.is_due:
                await self._work_lost_claims()
            if self._stop.is_set() or self.control.paused:
                continue
            free = self._slots.free
            if free <= 0:
                self._slots_wanted = True
                continue
            self._slots_wanted = self._backlog = False
            limit = min(free, LARGEST_CLAIM)
            try:
                rows = await self._claim(limit)
            except Exception as error:  # noqa: BLE001  # whatever it is, the next trigger tries again
                self._claim_failed(error)
            else:
                await self._begin(rows)
                self._backlog = len(rows) == limit
                self._fetch_again()

    async def _claim(self, limit: int) -> list[ClaimedRow]:
        self.control.claim_begins()
        self.lost_claims.sent()
        claim: Callable[..., list[ClaimedRow]] = job_get_available
        if self._config.fetch_only_known_kinds:
            claim = self._claim_watch.around(claim)
        try:
            async with asyncio.timeout(self._config.fetch_timeout.total_seconds()):
                rows = await self._db.run_single(claim, client_id=self.ctx.client_id, queue=self.queue, limit=limit)
        except TimeoutError as error:
            raise UnavailableError(f"the claim took longer than {self._config.fetch_timeout}") from error
        self.lost_claims.answered(rows)
        self._stats.claims += 1
        self._stats.claimed += len(rows)
        return rows

    async def _work_lost_claims(self) -> None:
        """Claim rows again of claims that were committed and never answered."""
        free = self._slots.free
        if free <= 0:
            self._slots_wanted = True
            return
        self.control.claim_begins()
        try:
            rows = await self.lost_claims.claim_again(min(free, LARGEST_CLAIM))
        except Exception as error:  # noqa: BLE001  # they are looked for again
            self.ctx.log.warning(
                "%s: Could not look for lost claims (queue=%s, error=%s)", self.name, self.queue, error
            )
            rows = []
        self._stats.claimed += len(rows)
        await self._begin(rows)
        self._look_later()

    def _look_later(self) -> None:
        wait = self.lost_claims.next_look
        if wait is not None:
            self._limiter.trigger_in(wait)

    def _claim_failed(self, error: Exception) -> None:
        self.lost_claims.unanswered()
        self.control.claim_ends()
        self._look_later()
        self._stats.failed_claims += 1
        self.ctx.log.warning("%s: Could not claim jobs (queue=%s, error=%s)", self.name, self.queue, error)
        self.claimed.signal(-1)

    async def _begin(self, rows: list[ClaimedRow]) -> None:
        """Register the claimed jobs, look up those that were said to be cancelled meanwhile, and start them all."""
        contexts = [self._register(row) for row in rows]
        suspects = self.control.said_cancelled(row.id for row in rows)
        if suspects:
            try:
                await self.control.check(suspects)
            except Exception as error:  # noqa: BLE001  # they run, and are looked up again
                self.ctx.log.warning("%s: Could not look up cancelled jobs (error=%s)", self.name, error)
                self.control.look_at(suspects)
        for context in contexts:
            if self._told_to_end is not None:
                context.cancelled.set(self._told_to_end)
            task = asyncio.create_task(self._executor.run(context), name=f"riverq.job.{context.run.job_id}")
            self._slots.begin(task, context)
            task.add_done_callback(self._ended)
        self.control.claim_ends()
        self.claimed.signal(len(rows))

    def _register(self, row: ClaimedRow) -> RunContext:
        context = self._executor.context(row, self.queue)
        context.wake = self._wake_in
        self._slots.register(context)
        return context

    def _ended(self, task: asyncio.Task[None]) -> None:
        context = self._slots.end(task)
        self._stuck.ended(context)
        self._stats.ended += 1
        if not task.cancelled() and task.exception() is not None:
            self.ctx.log.error("job %s: Ended outside its executor", context.run.job_id, exc_info=task.exception())
        if self._stop.is_set():
            if not self._slots.tasks:
                self._idle.set()
        else:
            self._fetch_again()

    def _add_slot(self, context: RunContext) -> None:
        self._slots.add_for(context)
        self._limiter.trigger()

    def _fetch_again(self) -> None:
        """After a claim, and whenever a slot became free."""
        free = self._slots.free
        if free <= 0:
            return
        if self._backlog and self._config.fetch_eager and free >= max(1, self._config.max_workers // 10):
            self._limiter.trigger_now()
        elif self._backlog or self._slots_wanted:
            self._limiter.trigger()
