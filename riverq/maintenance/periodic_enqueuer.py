"""Inserts periodic jobs when they are due, for as long as this client leads.

When it begins to lead, each job's next run is the first that its schedule gives after now; that of a durable job comes
from its row. From then on a run follows from the run before, not from the time when that was inserted, so nothing
drifts. A plan moves on only once its run is committed. So

- a leader that slept, or could not reach the database, inserts each run that it missed, one after the other, at most
  `CATCH_UP_LIMIT` of one job; then it goes on from now and says so;
- a run that cannot be made (the application's function raises, its args are refused) is tried again after 1 to 30 s.
  Other jobs do not wait for it: a batch that fails is tried again one by one;
- a run whose COMMIT was not answered is looked for by the job's id, and inserted again if it is not there. Without an
  id nobody can tell, and it is inserted again: rather twice than not at all.

Two leaders for a moment insert a run twice, in every River client, unless the job is unique or durable; a durable
job's row is moved on in the inserting transaction, by one of them only. The next leader does not know the runs that
fell due while nobody led, except those of durable jobs.

A durable job's row against its schedule, when leadership is gained: a stored run that has passed was missed, unless
jobs of that id show that somebody led in another language; they are caught up from the latest such job on. Of a stored
run that is to come and the schedule's own next, the earlier one holds: a schedule that was changed takes effect at
once, and one run of the old one may be left. Unless a job shows that the earlier one was inserted, by a leader whose
clock was ahead of this one's (`SKEW` at most).

Clocks: due is what this machine's wall clock says, in UTC, looked at least every `LONGEST_SLEEP`; waits between tries
are on the monotonic clock. If the wall clock is set forward, runs are made up for; if it is set back, nothing is
inserted again, and the next run keeps its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from riverq.database import Database
from riverq.errors import DatabaseError, RiverqError, UnavailableError
from riverq.maintenance.periodic_insert import LIMIT, LOCK_LIMIT, SERVER_LIMIT, InsertPath, PeriodicInserter
from riverq.maintenance.periodic_plan import CATCH_UP_LIMIT, DueRun, Made, Plan, first_target, make_run
from riverq.periodic import PeriodicHandle, PeriodicJobs, next_run
from riverq.query.periodic_job import (
    StoredRun,
    limit_transaction,
    periodic_job_done,
    periodic_job_ensure,
    periodic_job_keep,
    periodic_job_read,
)
from riverq.service import Backoff, OperationTimeoutError, Service, ServiceContext, TestSignal, Wakeup, within
from riverq.threads import DaemonThreads

if TYPE_CHECKING:
    from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")

MIGRATE = "riverq migrate-up"
LOOK_AHEAD = timedelta(milliseconds=100)
"""What is due this soon goes into one transaction with what is due now."""
LONGEST_SLEEP = timedelta(seconds=10)
MAKE_LIMIT = timedelta(seconds=10)
"""How long `make_args` may take."""
SPARE_THREADS = 8
KEEP_EVERY, STALE_AFTER = timedelta(minutes=10), timedelta(hours=24)


class PeriodicEnqueuer(Service):
    """Inserts what `jobs` holds, by their schedules. `path` is how the client inserts.

    `has_tables`: whether riverq's own tables are there; without them durable jobs are like others.
    """

    def __init__(
        self, ctx: ServiceContext, db: Database, jobs: PeriodicJobs, path: InsertPath, *, has_tables: bool = True
    ) -> None:
        super().__init__(ctx)
        self.planned: TestSignal[list[Plan]] = TestSignal()
        self.inserted: TestSignal[list[datetime]] = TestSignal()
        self.failed: TestSignal[Exception] = TestSignal()
        self.tried: TestSignal[None] = TestSignal()
        self._db = db
        self._jobs = jobs
        self._path = path
        self._inserter = PeriodicInserter(db, path)
        self._has_tables = has_tables
        self._wakeup = Wakeup(ctx)
        self._outage = Backoff(ctx, first=1, cap=30)
        self._begin()

    def _begin(self) -> None:
        """Nothing is known from an earlier term."""
        self._plans: list[Plan] = []
        self._not_before = self._keep_at = self.ctx.clock.monotonic()
        self._outage.reset()

    async def run(self) -> None:
        """Plan, insert what is due, sleep until the next, until cancelled."""
        self._begin()
        self._warn_of_missing_tables()
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
                loop.call_soon_threadsafe(self._wakeup.set)

        self._threads = DaemonThreads(SPARE_THREADS, name="riverq_periodic")
        self._jobs.subscribe(changed)
        try:
            while True:
                await self._try()
                await self._wakeup.sleep(self._wait())
        finally:
            self._jobs.unsubscribe(changed)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _try(self) -> None:
        try:
            self._follow_registry()
            if self.ctx.clock.monotonic() >= self._not_before:
                await self._plan_new()
                await self._insert_due()
                await self._keep_rows()
        except DatabaseError as error:
            self._note_outage(error)
        except Exception as error:
            self.ctx.log.exception("%s: Could not insert what is due, trying again", self.name)
            self._not_before = self.ctx.clock.monotonic() + self._outage.next()
            self.failed.signal(error)
        self.tried.signal(None)

    def _wait(self) -> float:
        now, monotonic = self.ctx.clock.now(), self.ctx.clock.monotonic()
        waits = [wait for plan in self._plans if (wait := plan.wait(now, monotonic)) is not None]
        soonest = min([LONGEST_SLEEP.total_seconds(), *waits])
        return max(0.0, soonest, self._not_before - monotonic)

    # -- what there is to insert, and when

    def _follow_registry(self) -> None:
        """Plans for jobs that are new, none for those that are gone."""
        known = {plan.handle: plan for plan in self._plans}
        self._plans = [known.get(handle) or self._new_plan(handle) for handle in self._jobs.handles()]
        self._threads.grow(len(self._plans) + SPARE_THREADS)

    def _new_plan(self, handle: PeriodicHandle) -> Plan:
        plan = Plan(handle, Backoff(self.ctx, first=1, cap=30), is_durable=handle.job.durable and self._has_tables)
        plan.start_at = self.ctx.clock.now() if handle.job.run_on_start else None
        return plan

    async def _plan_new(self) -> None:
        monotonic, now = self.ctx.clock.monotonic(), self.ctx.clock.now()
        new = [plan for plan in self._plans if not plan.is_planned and plan.not_before <= monotonic]
        if not new:
            return
        for plan in new:
            if not plan.is_durable:
                self._plan(plan, None, now)
        durable = {str(plan.job.id): plan for plan in new if plan.is_durable}
        if durable:
            await self._plan_durable(durable, now)
        self.planned.signal([plan for plan in new if plan.is_planned])

    async def _plan_durable(self, plans: dict[str, Plan], now: datetime) -> None:
        """From their rows, which are made where there are none."""
        stored = await self._query_for(plans.values(), "read the row of", periodic_job_read, list(plans))
        if stored is None:
            return
        missing: dict[str, datetime] = {}
        for name, plan in plans.items():
            if self._plan(plan, stored.get(name), now) and name not in stored and plan.target is not None:
                missing[name] = plan.target
                plan.forget()
        early = {name: plan.target for name, plan in plans.items() if plan.is_before_row and plan.target is not None}
        if early:
            await self._plan_later(plans, stored, early, now)
        if missing:
            without = [plans[name] for name in missing]
            made = await self._query_for(without, "make the row of", periodic_job_ensure, missing) or {}
            for name in made:
                self._plan(plans[name], made[name], now)

    async def _plan_later(
        self, plans: Mapping[str, Plan], stored: Mapping[str, StoredRun], early: Mapping[str, datetime], now: datetime
    ) -> None:
        """Those of `early`, runs before the stored ones, that a job shows to be inserted are not inserted again."""
        for name in early:
            plans[name].forget()
        done = await self._query_for([plans[name] for name in early], "look for a run of", periodic_job_done, early)
        if done is not None:
            for name in early:
                self._plan(plans[name], stored[name]._replace(done_until=done.get(name)), now)

    def _plan(self, plan: Plan, stored: StoredRun | None, now: datetime) -> bool:
        """Where it begins. False where its schedule failed to say."""
        try:
            target = first_target(plan.job, stored, now)
        except Exception as error:  # noqa: BLE001  # the application's own code; logged there
            self._note_failure(plan, "ask the schedule of", error)
            return False
        plan.plan(target, None if stored is None else stored.next_run_at)
        self._jobs.plan(plan.handle, target)
        return True

    # -- inserting

    async def _insert_due(self) -> None:
        """Everything that is due, one run of each job; what has more comes round again at once."""
        await self._settle_doubts()
        due = self._due()
        made = [each for plan in due if (each := await self._make(plan)) is not None]
        await self._until_due(made)
        registered = set(self._jobs.handles())
        made = [each for each in made if each.plan.handle in registered]
        together = [each for each in made if not each.plan.is_alone]
        if together:
            await self._insert(together)
        for each in made:
            if each.plan.is_alone and not self._is_out and each not in together:
                await self._insert([each])

    def _due(self) -> list[Plan]:
        until, monotonic = self.ctx.clock.now() + LOOK_AHEAD, self.ctx.clock.monotonic()
        return [
            plan
            for plan in self._plans
            if plan.is_planned and plan.not_before <= monotonic and plan.due_run(until) is not None
        ]

    async def _until_due(self, made: Sequence[Made]) -> None:
        """A job that is notified before its time is not found by those who look, and waits for a poll."""
        latest = max((each.due.target for each in made), default=None)
        if latest is not None:
            early = (latest - self.ctx.clock.now()) / timedelta(seconds=1)
            if early > 0:
                await self.ctx.clock.sleep(min(early, LOOK_AHEAD.total_seconds()))

    async def _make(self, plan: Plan) -> Made | None:
        """The run that is due, made in a thread, since the application's code may block; None where that failed."""
        due = plan.due_run(self.ctx.clock.now() + LOOK_AHEAD)
        if due is None:
            return None
        try:
            if plan.making is not None and not plan.making.done():
                raise TimeoutError("its make_args still runs since the last time")
            plan.making = self._threads.submit(make_run, plan, self._path.prepare, due, self.ctx.clock.now())
            made = await within(MAKE_LIMIT.total_seconds(), "make_args", _result(plan.making))
        except Exception as error:  # noqa: BLE001  # the application's own code; logged there
            self._note_failure(plan, "make a run of", error)
            return None
        if made.is_skipping:
            self.ctx.log.warning(
                "%s: Skipping runs of %s, which is behind by %d, and going on from now",
                self.name,
                plan.name,
                CATCH_UP_LIMIT,
            )
        return made

    async def _insert(self, made: Sequence[Made]) -> None:
        """In one transaction; where one of them fails it, each in one of its own."""
        outcome = await self._inserter.insert([each.run for each in made], self._threads)
        if outcome.taken:
            await self._insert_without(outcome.taken, made)
        elif outcome.error is not None and not outcome.is_inserted:
            if outcome.is_doubtful:
                for each in made:
                    each.plan.doubt = each.due
            await self._insert_failed(made, outcome.error)
        else:
            if outcome.error is not None:
                self.ctx.log.warning(
                    "%s: Inserted periodic jobs, after which a middleware failed: %r",
                    self.name,
                    outcome.error,
                    exc_info=outcome.error,
                )
            for each in made:
                self._note_inserted(each.plan, each.due, each.following, is_behind=each.is_behind)
            self.inserted.signal([each.due.target for each in made if each.run.params is not None])

    async def _insert_failed(self, made: Sequence[Made], error: Exception) -> None:
        took_too_long = isinstance(error, OperationTimeoutError)
        if isinstance(error, UnavailableError) and not took_too_long:
            self._note_outage(error)
        elif len(made) == 1 or took_too_long:  # after a timeout each is looked for before it is tried alone
            for each in made:
                each.plan.is_alone = True
                self._note_failure(each.plan, "insert a run of", error)
        else:
            for each in made:
                if not self._is_out:
                    await self._insert([each])

    async def _insert_without(self, taken: frozenset[str], made: Sequence[Made]) -> None:
        """Another leader has these runs; their rows say what comes next."""
        for each in made:
            if each.run.step is not None and each.run.step.id in taken:
                self.ctx.log.info("%s: Left a run of %s to another leader", self.name, each.plan.name)
                each.plan.forget()
        rest = [each for each in made if each.plan.is_planned]
        if rest:
            await self._insert(rest)

    async def _settle_doubts(self) -> None:
        """Runs that may be committed: those that a job shows to be, are done. The row of a durable job knows better."""
        monotonic = self.ctx.clock.monotonic()
        doubtful = [plan for plan in self._plans if plan.doubt is not None and plan.not_before <= monotonic]
        runs = {str(plan.job.id): plan.doubt for plan in doubtful if plan.doubt is not None and plan.is_shown_by_job}
        if runs:
            times = {name: due.target for name, due in runs.items()}
            done = await self._query_for(doubtful, "look for a run of", periodic_job_done, times)
            if done is None:
                return
            for plan in doubtful:
                due = runs.get(str(plan.job.id))
                if due is not None and str(plan.job.id) in done:
                    following = None if due.is_start else next_run(plan.job, due.target)
                    self._note_inserted(plan, due, following)
        for plan in doubtful:
            plan.doubt = None

    def _note_inserted(self, plan: Plan, due: DueRun, following: datetime | None, *, is_behind: bool = False) -> None:
        plan.inserted(due, following)
        plan.overdue = plan.overdue + 1 if is_behind else 0
        self._jobs.plan(plan.handle, plan.target)
        self._outage.reset()

    # -- what can go wrong, and what is left behind

    @property
    def _is_out(self) -> bool:
        return self.ctx.clock.monotonic() < self._not_before

    def _note_outage(self, error: Exception) -> None:
        wait = self._outage.next()
        self._not_before = self.ctx.clock.monotonic() + wait
        self.ctx.log.warning("%s: Could not insert what is due, trying again in %.1f s: %s", self.name, wait, error)
        self.failed.signal(error)

    def _note_failure(self, plan: Plan, what: str, error: Exception) -> None:
        wait = plan.failed(self.ctx.clock.monotonic())
        first = error if plan.backoff.failures == 1 and not isinstance(error, RiverqError) else None
        self.ctx.log.warning(
            "%s: Could not %s %s, trying again in %.1f s: %r", self.name, what, plan.name, wait, error, exc_info=first
        )
        self.failed.signal(error)

    async def _keep_rows(self) -> None:
        """Now and then: the rows of our durable jobs are in use, those that nobody uses for a day go."""
        monotonic = self.ctx.clock.monotonic()
        if not self._has_tables or monotonic < self._keep_at:
            return
        self._keep_at = monotonic + KEEP_EVERY.total_seconds()
        ids = [str(plan.job.id) for plan in self._plans if plan.is_durable]
        gone = await self._query_for([], "keep", periodic_job_keep, ids, STALE_AFTER)
        if gone:
            self.ctx.log.info("%s: Deleted rows of durable jobs that nobody registers: %s", self.name, ", ".join(gone))

    def _warn_of_missing_tables(self) -> None:
        ids = [handle.job.id for handle in self._jobs.handles() if handle.job.durable]
        if ids and not self._has_tables:
            self.ctx.log.warning(
                "%s: Durable jobs need riverq's own tables, without which these are like others: %s (run: %s)",
                self.name,
                ", ".join(map(str, ids)),
                MIGRATE,
            )

    async def _query_for(
        self,
        plans: Iterable[Plan],
        what: str,
        fn: Callable[Concatenate[Connection, str, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """What `fn` returns; None where it failed for another reason than an outage, which concerns these jobs only."""
        try:
            return await self._query(fn, *args, **kwargs)
        except RiverqError as error:
            if isinstance(error, UnavailableError) and not isinstance(error, OperationTimeoutError):
                raise
            for plan in plans:
                self._note_failure(plan, what, error)
            return None

    async def _query(self, fn: Callable[Concatenate[Connection, str, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def limited(conn: Connection, schema: str) -> T:
            limit_transaction(conn, schema, limit=SERVER_LIMIT, lock_limit=LOCK_LIMIT)
            return fn(conn, schema, *args, **kwargs)

        return await within(LIMIT.total_seconds(), f"{self.name}'s statement", self._db.run(limited))


async def _result(future: Future[Made]) -> Made:
    return await asyncio.wrap_future(future)
