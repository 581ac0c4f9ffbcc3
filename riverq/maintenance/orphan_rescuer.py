"""Gives back the jobs of riverq clients that died, within a minute instead of an hour.

`riverq.query.orphans` says who is dead and why; this service asks it every 10 s and writes what `StuckJobRules` of
`job_rescuer` decides. A false verdict runs a job twice at once, so the judge must be sure that it is not the one who
was away:

* nobody is declared dead before this client's own heartbeats have succeeded without a gap for two graces, counted from
  its process's start. A leader that was suspended, a network or a database that was gone, a failover that took all
  locks: the others were as deaf as this one, and they get two graces to be heard again;
* the same is asked again right before the write, because a page may take its time;
* the write judges once more, in the database, in the transaction that rescues, and asks there that this client's own
  row be fresh. So a leader that was put to sleep between its check and its write finds nobody dead, and a client that
  came back (SIGCONT) after it was selected keeps its jobs.

Counted from the process's start and not from the election, so that a fleet whose leader died with its jobs does not
wait two graces more.

    an orphaned run --first time, attempts left--> available, now, and its queue is notified
                    --again, attempts left--> retryable, by the policy: the job may be what kills its clients
                    --cancel mark--> cancelled        --no attempts left--> discarded
                    --no worker for its kind here--> left: to a leader that knows it, or to the horizon

Two leaders at once do no harm, every write carries the fence. When the connection dies before COMMIT nothing has
happened; when it dies after it, the jobs are available and polling finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from riverq.database import Database
from riverq.errors import DatabaseError, RiverqError
from riverq.job import JobState
from riverq.maintenance.base import MaintenanceService, MaintenanceTiming
from riverq.query.job_rescue import (
    Rescue,
    Rescued,
    RescueOutcome,
    RunFence,
    StuckRow,
    job_get_runs,
    job_rescue_many,
)
from riverq.query.orphans import Judge, OrphanedRun, orphans_get, orphans_lock, registry_forget
from riverq.service import ServiceContext, TestSignal
from riverq.validation import duration

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from riverq.maintenance.job_rescuer import StuckJobRules

P = ParamSpec("P")
T = TypeVar("T")

NotifyQueues = Callable[[Collection[str]], Awaitable[None]]

ORPHAN_INTERVAL = timedelta(seconds=10)
RESCUE_BATCH = 1_000
"""Whole rows are read, args and errors included, so fewer at a time than other services take."""
FORGET_INTERVAL = timedelta(hours=1)
HOLD_OFF = 2
"""Graces for which this client's own heartbeats must have succeeded before it judges others."""

_NOT_ALLOWED = "42501"


class OwnLife(Protocol):
    """This client's own proof of life."""

    @property
    def incarnation(self) -> str | None:
        """Its row in the registry; None while it has none."""
        ...

    def sure_for(self) -> timedelta:
        """For how long its heartbeats have succeeded without a gap, up to now; zero after a gap."""
        ...


@dataclass(frozen=True, kw_only=True)
class OrphanTiming(MaintenanceTiming):
    """The fleet's grace, and how often dead clients are looked for: every 10 s, three times per grace at least."""

    grace: timedelta
    interval: timedelta = ORPHAN_INTERVAL
    batch_size: int = RESCUE_BATCH
    reduced_batch_size: int = RESCUE_BATCH // 10

    def __post_init__(self) -> None:
        super().__post_init__()
        duration("grace", self.grace, timedelta(milliseconds=1))
        object.__setattr__(self, "interval", min(self.interval, self.grace / 3))


class OrphanRescuer(MaintenanceService):
    """Rescues the jobs of dead clients.

    `notify_queues` sends the insert notification for the given queues, through the client's limiter. `left_unknown`
    holds the ids of orphaned jobs that the last whole pass left because nobody here knows their kind; with
    `on_unknown_stuck_kind` "retry" or "discard" they are the horizon's, and not counted.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        db: Database,
        rules: StuckJobRules,
        notify_queues: NotifyQueues,
        life: OwnLife,
        timing: OrphanTiming,
    ) -> None:
        super().__init__(ctx, db, timing)
        self.held_off: TestSignal[timedelta] = TestSignal()
        self.rescued: TestSignal[list[Rescued]] = TestSignal()
        self.judged: TestSignal[list[OrphanedRun]] = TestSignal()
        self.num_rescued = 0
        self.left_unknown: frozenset[int] = frozenset()
        self._rules = rules
        self._notify_queues = notify_queues
        self._grace = timing.grace
        self._life = life
        self._read_locks = True
        self._after_id = 0
        self._left: set[int] = set()
        self._by_client: Counter[str | None] = Counter()
        self._forgot_at: float | None = None

    async def run(self) -> None:
        """Tick until cancelled; then nothing is known to be left."""
        try:
            await super().run()
        finally:
            self.left_unknown = frozenset()

    async def run_once(self) -> None:
        """Every orphaned run once, by job id; old rows of the registry once an hour."""
        if not self._is_sure():
            return
        self._after_id = 0
        self._left = set()
        self._by_client.clear()
        try:
            await self.batches(self._rescue_page)
        finally:
            self._log_by_client()
        if len(self._left) > len(self.left_unknown):
            self.ctx.log.warning(
                "%s: Left jobs of dead clients whose kinds have no worker here (num_jobs=%d)",
                self.name,
                len(self._left),
            )
        self.left_unknown = frozenset(self._left)
        await self._forget()

    def _is_sure(self) -> bool:
        """Whether this client may tell the dead from the deaf."""
        sure_for = self._life.sure_for()
        if self._life.incarnation is not None and sure_for >= HOLD_OFF * self._grace:
            return True
        self.held_off.signal(sure_for)
        return False

    # -- one page

    async def _rescue_page(self, limit: int) -> int:
        runs, rows = await self._judge(_find, after_id=self._after_id, limit=limit)
        if not runs:
            return 0
        self._after_id = runs[-1].job_id
        rescues: list[Rescue] = []
        for row in rows:
            verdict = self._rules.orphaned(row)
            if verdict.rescue is not None:
                rescues.append(verdict.rescue)
            elif self._rules.leaves_unknown:
                self._left.add(row.job.id)
        self.judged.signal(runs)
        if rescues:
            if not self._is_sure():
                return 0
            outcome = await self._judge(_rescue_orphans, rescues=rescues)
            await self._tell(outcome)
        return len(runs)

    async def _judge(
        self, fn: Callable[Concatenate[Connection, str, Judge, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `fn` with what it judges by. Without the right to read `pg_locks`, silence alone counts."""
        try:
            return await self.query(fn, self._evidence(), *args, **kwargs)
        except DatabaseError as error:
            if error.sqlstate != _NOT_ALLOWED or not self._read_locks:
                raise
            reason = error
        self._read_locks = False
        try:
            found = await self.query(fn, self._evidence(), *args, **kwargs)
        except DatabaseError:
            self._read_locks = True  # it was something else that is not allowed
            raise
        self.ctx.log.warning(
            "%s: Judging dead clients by their silence alone, the locks cannot be read (error=%s)", self.name, reason
        )
        return found

    def _evidence(self) -> Judge:
        return Judge(self._grace, self._life.incarnation, self._read_locks)

    async def _forget(self) -> None:
        now = self.ctx.clock.monotonic()
        if self._forgot_at is not None and now - self._forgot_at < FORGET_INTERVAL.total_seconds():
            return
        num_forgotten = await self.query(registry_forget, grace=self._grace)
        self._forgot_at = now
        if num_forgotten:
            self.ctx.log.debug("%s: Forgot %d clients that died long ago", self.name, num_forgotten)

    # -- what is told

    async def _tell(self, outcome: RescueOutcome) -> None:
        for refused in outcome.refused:
            self.ctx.log.warning(
                "%s: Could not rescue a job (job_id=%d, error=%s)", self.name, refused.job_id, refused.sqlstate
            )
        if not outcome.rescued:
            return
        self.num_rescued += len(outcome.rescued)
        self._by_client.update(each.client_id for each in outcome.rescued)
        queues = sorted({each.queue for each in outcome.rescued if each.state is JobState.AVAILABLE})
        if queues:
            try:
                await self._notify_queues(queues)
            except RiverqError as error:
                self.ctx.log.warning("%s: Could not notify, producers will poll (error=%s)", self.name, error)
        self.rescued.signal(outcome.rescued)

    def _log_by_client(self) -> None:
        for client_id, num_jobs in sorted(self._by_client.items(), key=lambda item: str(item[0])):
            self.ctx.log.warning(
                "%s: Rescued the jobs of a dead client (client_id=%s, num_jobs=%d)", self.name, client_id, num_jobs
            )


def _find(
    conn: Connection, schema: str, judge: Judge, *, after_id: int, limit: int
) -> tuple[list[OrphanedRun], list[StuckRow]]:
    """A page of orphaned runs, and those of their rows that are still running."""
    runs = orphans_get(conn, schema, judge, after_id=after_id, limit=limit)
    return runs, job_get_runs(conn, schema, [RunFence(*run) for run in runs]) if runs else []


def _rescue_orphans(conn: Connection, schema: str, judge: Judge, *, rescues: Sequence[Rescue]) -> RescueOutcome:
    """Judge once more, and rescue those that are still orphaned. In one transaction, which holds their rows."""
    runs = [OrphanedRun(each.run.job_id, each.run.attempted_at_us, each.run.client_id or "") for each in rescues]
    orphaned = orphans_lock(conn, schema, judge, runs=runs)
    return job_rescue_many(conn, schema, [each for each in rescues if each.run.job_id in orphaned])
