"""What others decide about a queue and its running jobs: pause and resume, cancellations, and runs that were lost.

Notifications are hints. Each makes this module read the row it is about; what the row says is done, whatever the
payload said. So nothing depends on their order, on their number, or on their arriving at all:

- the queue's row is read after the subscription was made, whenever the notifier says that something may have been
  missed, and every `interval` while notifications are not delivered;
- running jobs are looked at when one of them is said to be cancelled, after every such gap, every `interval` while
  nothing is delivered, and every `LOOK_INTERVAL` all the same: nobody notifies when a run is taken away by a rescue. A
  process that stood still asks for a look at once (`look_at_everything`), since its runs may have been taken meanwhile.
  A run is cancelled where its cancel mark differs from the one seen at the claim, and lost where its fence does not
  match any more;
- a cancellation can be heard between a claim's commit and the moment its rows are known here. What is heard while a
  claim is under way is kept until it returns, and looked up before those jobs start. That includes ids that run here
  already: the claim may bring a newer run of the same job. What was heard before the claim began was committed before
  it, and is in what the claim returned;
- a claim under way may bring jobs that were inserted after the queue was paused: its statement may be on its way when
  the pause is read. From then on nothing more is claimed (`paused`), but others are told of it only when that claim is
  over (`told_paused`): of what we call paused, no more jobs are taken. A claim that fails is over, too; should it turn
  out that it was committed, its jobs are worked all the same (`lost_claims`).

What is heard is kept as sets of ids, of jobs that run here or, during a claim, may come to, and one flag for the queue:
a flood of notifications becomes a few reads, and nothing is ever dropped.

All reads happen one after the other in one task, so an old answer never overwrites a newer one. A read that fails is
made again after `interval`, and so is one that takes longer than `READ_LIMIT`: a queue's row may be locked by whoever
pauses it in a long transaction, and cancellations must not wait for that, nor one for the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from riverq.database import Database
from riverq.notification import Topic, parse_control
from riverq.notifier import Notifier
from riverq.query.job_read import job_run_status
from riverq.query.queue import queue_create_or_touch, queue_get
from riverq.queue import Queue
from riverq.service.context import ServiceContext
from riverq.service.testsignal import TestSignal
from riverq.service.timeout import OperationTimeoutError, within
from riverq.worker.cancellation import CancelReason
from riverq.worker.context import RunContext
from riverq.worker.waiting import wait_first

TOUCH_INTERVAL = timedelta(minutes=10)
"""How often the queue's row is touched: the queue cleaner deletes rows that nobody touched for a day."""

TOUCH_AGAIN = timedelta(minutes=1)
"""When to try again after the touch failed; meanwhile the row is only read."""

LOOK_INTERVAL = timedelta(minutes=1)
"""How often all running jobs are looked at although everything that is sent is heard."""

LOOK_BATCH = 1000
"""How many running jobs one read looks at: reading ten thousand at once would hold up the loop noticeably."""

READ_LIMIT = timedelta(seconds=10)
"""How long one read may take."""

ALL_QUEUES = "*"


class RemoteControl:
    """For one queue. `runs` are the running jobs by id, kept by the producer; `on_pause` hears every change.

    `paused` is whether nothing may be claimed; `told_paused` is what others know of it.

    `on_change` (settable) is called in the loop with the queue's row when it was paused or resumed while it is worked;
    not for what it was when that began.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        db: Database,
        notifier: Notifier | None,
        *,
        queue: str,
        runs: Mapping[int, RunContext],
        on_pause: Callable[[bool], None],
    ) -> None:
        self._ctx = ctx
        self._db = db
        self._notifier = notifier
        self._queue = queue
        self._runs = runs
        self._on_pause = on_pause
        self.on_change: Callable[[Queue], None] | None = None
        self.interval = timedelta(seconds=2)
        self.paused = self.told_paused = False
        self.touched_at: datetime | None = None
        """When the queue's row was last touched, by the database; None before."""
        self.read: TestSignal[bool] = TestSignal()
        self.checked: TestSignal[int] = TestSignal()
        self._wake = asyncio.Event()
        self._read_due = False
        self._check_all = False
        self._asked: set[int] = set()
        self._during_claim: set[int] | None = None
        self._untold: Queue | None = None
        self._touch_due = 0.0
        self._look_due = 0.0
        self._ended = False
        self._was_read = False
        self._unsubscribe: Callable[[], None] | None = None

    async def begin(self) -> None:
        """Listen, then make the queue's row and read it, in this order. Raises what the database raises."""
        self._ended = self._was_read = False
        self._during_claim = self._untold = self.touched_at = None
        if self._notifier is not None:
            self._unsubscribe = self._notifier.subscribe(Topic.CONTROL, self._heard, on_gap=self.look_at_everything)
        self._look_due = self._ctx.clock.monotonic() + LOOK_INTERVAL.total_seconds()
        try:
            try:
                await self._touch()
            except OperationTimeoutError:
                await self._read()  # the row is locked: it is touched later, but whether it is paused can be read
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Listen no more; `run` ends after the read under way."""
        self._ended = True
        self._wake.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    async def run(self) -> None:
        """Read what has to be read, until `end` or cancelled."""
        while not self._ended:
            await wait_first(self._ctx, self._wake, self.interval.total_seconds())
            self._wake.clear()
            if self._ended:
                return
            for read in (self._check_runs, self._read_queue):
                try:
                    await read()
                except Exception as error:  # noqa: BLE001  # the database is away, or worse; it is asked again
                    self._ctx.log.warning("Producer: Failed to read its state (queue=%s, error=%s)", self._queue, error)

    def look_at_everything(self) -> None:
        """Read the queue and all running jobs soon: something may have been missed."""
        self._read_due = self._check_all = True
        self._wake.set()

    def look_at(self, job_ids: Iterable[int]) -> None:
        """Look at these running jobs soon."""
        self._asked.update(job_ids)
        self._wake.set()

    # -- what is heard while a claim is under way

    def claim_begins(self) -> None:
        """Begin to keep the ids of all jobs that are said to be cancelled, and what becomes of the queue."""
        self._during_claim = set()

    def said_cancelled(self, job_ids: Iterable[int]) -> list[int]:
        """Which of the claimed jobs were said to be cancelled since the claim began."""
        heard = self._during_claim
        return [job_id for job_id in job_ids if job_id in heard] if heard else []

    def claim_ends(self) -> None:
        """The claimed jobs are among the running ones: tell whether the queue was paused or resumed meanwhile."""
        queue, self._during_claim, self._untold = self._untold, None, None
        if queue is not None:
            self._tell(queue)

    # -- what notifications ask for

    def _heard(self, payload: str) -> None:
        control = parse_control(payload)
        if control is None:
            return
        if control.action == "cancel" and control.queue == self._queue:
            if self._during_claim is not None:
                self._during_claim.add(control.job_id)
            if control.job_id in self._runs:
                self.look_at([control.job_id])
        elif control.action in ("pause", "resume") and control.queue in (self._queue, ALL_QUEUES):
            self._read_due = True
            self._wake.set()

    @property
    def _is_blind(self) -> bool:
        return self._notifier is None or not self._notifier.is_delivering

    # -- the queue's row

    async def _read_queue(self) -> None:
        if self._ctx.clock.monotonic() >= self._touch_due:
            await self._touch()
        elif self._read_due or self._is_blind:
            await self._read()

    async def _read(self) -> None:
        self._read_due = False
        try:
            queue = await within(
                READ_LIMIT.total_seconds(), "reading the queue's row", self._db.run_single(queue_get, self._queue)
            )
        except BaseException:
            self._read_due = True
            raise
        if queue is None:
            await self._touch()
        else:
            self._set_queue(queue)

    async def _touch(self) -> None:
        self._read_due = False
        now = self._ctx.clock.monotonic()
        try:
            queue = await within(
                READ_LIMIT.total_seconds(),
                "touching the queue's row",
                self._db.run_single(queue_create_or_touch, self._queue),
            )
        except BaseException:
            self._read_due, self._touch_due = True, now + TOUCH_AGAIN.total_seconds()
            raise
        self._touch_due = now + TOUCH_INTERVAL.total_seconds()
        self.touched_at = queue.updated_at
        self._set_queue(queue)

    def _set_queue(self, queue: Queue) -> None:
        self.paused = queue.paused_at is not None
        if self._during_claim is not None:
            self._untold = queue
        else:
            self._tell(queue)
        self.read.signal(self.paused)

    def _tell(self, queue: Queue) -> None:
        paused, is_first = queue.paused_at is not None, not self._was_read
        self._was_read = True
        if paused == self.told_paused:
            return
        self.told_paused = paused
        if paused:
            self._ctx.log.info("Producer: Paused (queue=%s)", self._queue)
        else:
            self._ctx.log.info("Producer: Resumed (queue=%s)", self._queue)
        self._on_pause(paused)
        if self.on_change is not None and not is_first:
            self.on_change(queue)

    # -- the running jobs

    async def _check_runs(self) -> None:
        now = self._ctx.clock.monotonic()
        everything = self._check_all or self._is_blind or now >= self._look_due
        if everything:
            self._look_due = now + LOOK_INTERVAL.total_seconds()
        asked, self._asked = self._asked, set()
        self._check_all = False
        try:
            await self.check(list(self._runs) if everything else asked)
        except BaseException:
            self._asked |= asked
            self._check_all = self._check_all or everything
            raise

    async def check(self, job_ids: Iterable[int]) -> None:
        """Tell those of the running jobs to end that are cancelled or lost. Raises what the database raises."""
        contexts = [self._runs[job_id] for job_id in job_ids if job_id in self._runs]
        for first in range(0, len(contexts), LOOK_BATCH):
            await self._check(contexts[first : first + LOOK_BATCH])
        if contexts:
            self.checked.signal(len(contexts))

    async def _check(self, contexts: list[RunContext]) -> None:
        runs = [context.run for context in contexts]
        statuses = await within(
            READ_LIMIT.total_seconds(),
            "looking at the running jobs",
            self._db.run_single(job_run_status, client_id=self._ctx.client_id, runs=runs),
        )
        for context in contexts:
            status = statuses.get(context.run.job_id)
            if status is not None and status.is_mine:
                if status.cancel_mark != context.run.cancel_mark:
                    context.cancelled.set(CancelReason.CANCELLED)
            elif not context.completed_in_session:  # else it is the user's own transaction that ended the run
                context.cancelled.set(CancelReason.LOST)
