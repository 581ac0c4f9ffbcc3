"""Rescues jobs that have been running for longer than anybody can believe, and judges every stuck job.

`StuckJobRules` says what is to become of a stuck job; `JobRescuer` finds stuck ones by the horizon, every 30 s. The
horizon is what there is for runs whose client gives no proof of life: Go River's, those of clients without riverq's own
tables, and runs of a living client that nobody works because the answer to a claim was lost. The jobs of riverq clients
that died are `orphan_rescuer`'s, and much sooner.

The rules are River's, in River's order:

1. somebody asked to cancel it: cancelled;
2. no worker for the kind: as `on_unknown_stuck_kind` says. Left by default, since another client may know it;
3. args that cannot be decoded: as a failed attempt, by the client's policy;
4. a timeout (the worker's, else the client's) that has not elapsed, `UNWINDING` included: left; none: left for ever;
5. attempts left: retryable by the worker's policy, then the client's; else discarded.

A living client and the horizon. Whether a living client still works a run, or never heard of it, cannot be told from
here. A timeout that elapsed long ago answers it: a client that keeps its timeouts does not work that job. So rule 5
asks nobody whether the client lives, and a run whose claim got lost comes back. Where there is no timeout no span of
time means anything, a job of days would be run twice, and so rule 4 leaves it for as long as its client lives; when
that ends, its run is orphaned. In two cases this leader does not know the timeout that holds: with kinds and args that
it cannot read, because they are newer than it is. Then a client that lives is believed, and the job left to it.

When the connection dies: before COMMIT nothing has happened, after it the rows are no longer running; the next tick
looks again. Two leaders at once do no harm, each write carries the fence of what was judged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from riverq.database import Database
from riverq.errors import RiverqError, UsageError
from riverq.job import Job, JobRow, JobState
from riverq.maintenance.base import MaintenanceService, MaintenanceTiming
from riverq.query.job_rescue import (
    RESCUED,
    Rescue,
    Rescued,
    RescueOutcome,
    RunFence,
    StuckRow,
    job_get_stuck,
    job_rescue_many,
)
from riverq.query.orphans import runs_of_living
from riverq.registry import RegisteredWorker, Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy, retry_wait
from riverq.service import ServiceContext, TestSignal

if TYPE_CHECKING:
    from sqlalchemy import Connection

Retry = timedelta | datetime

RESCUE_BATCH = 1_000
"""Whole rows are read, args and errors included, so fewer at a time than other services take."""


UNWINDING = timedelta(minutes=1)
"""What a job gets to end in when its time is over, be its timeout as long as the horizon or longer.

The worker's time begins later than the claim, and what a job does when it is told to end is still its client's to
write.
"""


class StuckJobError(RiverqError):
    """What a worker's `next_retry` is given as the error of a job that was rescued. The text is River's."""

    def __init__(self) -> None:
        super().__init__(RESCUED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of a stuck job; no `rescue`: it is left.

    `is_unknown`: this client has no worker for its kind. `unless_living`: not while its client proves that it lives.
    """

    rescue: Rescue | None = None
    is_unknown: bool = False
    unless_living: bool = False


class StuckJobRules:
    """Judges stuck jobs. Asks the workers' own code for timeouts and retries, and survives what that does."""

    def __init__(
        self,
        ctx: ServiceContext,
        workers: Workers,
        *,
        job_timeout: timedelta | None,
        retry_policy: RetryPolicy,
        on_unknown_kind: Literal["leave", "retry", "discard"],
    ) -> None:
        self._ctx = ctx
        self._workers = workers
        self._job_timeout = job_timeout
        self._retry_policy = retry_policy
        self._on_unknown_kind = on_unknown_kind

    def past_horizon(self, row: StuckRow) -> Verdict:
        """For a job that has been running since before the horizon, whoever runs it."""
        if row.is_marked:
            return Verdict(rescue=Rescue(row.run, JobState.CANCELLED))
        worker = self._workers.get(row.job.kind)
        if worker is None:
            return self._unknown(row)
        job = self._decoded(row, worker)
        if job is None:
            return Verdict(rescue=self._again(row, None, None), unless_living=True)
        timeout = self._timeout(job, worker)
        if timeout is None or row.running_for <= timeout + UNWINDING:
            return Verdict()
        return Verdict(rescue=self._again(row, worker, job))

    def orphaned(self, row: StuckRow) -> Verdict:
        """For a job whose client is dead. What it does not know it leaves: to the horizon, or to another leader.

        The first time it runs again at once, whatever the policy: it did not fail, its client did. From the second time
        on the policy is asked, for the job may be what kills its clients.
        """
        if row.is_marked:
            return Verdict(rescue=Rescue(row.run, JobState.CANCELLED))
        worker = self._workers.get(row.job.kind)
        if worker is None:
            return Verdict(is_unknown=True)
        if row.was_rescued or not _has_attempts(row):
            return Verdict(rescue=self._again(row, worker, self._decoded(row, worker)))
        return Verdict(rescue=Rescue(row.run, JobState.AVAILABLE, scheduled_in=timedelta(0)))

    @property
    def leaves_unknown(self) -> bool:
        """Whether stuck jobs of unknown kinds wait for somebody else, however long."""
        return self._on_unknown_kind == "leave"

    # -- the single questions

    def _unknown(self, row: StuckRow) -> Verdict:
        if self._on_unknown_kind == "discard":
            return Verdict(rescue=Rescue(row.run, JobState.DISCARDED), is_unknown=True)
        rescue = self._again(row, None, None) if self._on_unknown_kind == "retry" else None
        return Verdict(rescue=rescue, is_unknown=True, unless_living=True)

    def _decoded(self, row: StuckRow, worker: RegisteredWorker) -> Job[Any] | None:
        try:
            return Job(worker.spec.decode(row.job.encoded_args), _StuckContext(row.job, self._ctx.log))
        except Exception as error:  # noqa: BLE001  # a validator of the user's may raise anything
            self._ctx.log.warning(
                "job %s: Judged without its args, which cannot be decoded (kind=%s, error=%s)",
                row.job.id,
                row.job.kind,
                error,
            )
            return None

    def _timeout(self, job: Job[Any], worker: RegisteredWorker) -> timedelta | None:
        """None for no limit."""
        try:
            timeout = worker.timeout_for(job, self._job_timeout)
            if timeout is not None and not isinstance(timeout, timedelta):
                raise TypeError(f"expected a timeout to be a timedelta, got: {timeout!r}")
        except Exception as error:  # noqa: BLE001  # the worker's own code
            self._ctx.log.warning(
                "job %s: Took the client's timeout, asking its worker failed (kind=%s, error=%s)",
                job.id,
                job.row.kind,
                error,
            )
            timeout = self._job_timeout
        return None if timeout is None or timeout < timedelta(0) else timeout

    def _again(self, row: StuckRow, worker: RegisteredWorker | None, job: Job[Any] | None) -> Rescue:
        """By whichever policy may be asked; the worker's own is not asked about args that it cannot be shown."""
        if not _has_attempts(row):
            return Rescue(row.run, JobState.DISCARDED)
        retry = self._retry(row, worker if job is not None else None, job)
        if isinstance(retry, datetime):
            return Rescue(row.run, JobState.RETRYABLE, scheduled_at=retry)
        return Rescue(row.run, JobState.RETRYABLE, scheduled_in=retry)

    def _retry(self, row: StuckRow, worker: RegisteredWorker | None, job: Job[Any] | None) -> Retry:
        try:
            retry: Retry | None = None
            if worker is not None and job is not None and worker.next_retry is not None:
                retry = worker.next_retry(job, StuckJobError())
            if retry is None:
                policy = (worker.retry_policy if worker is not None else None) or self._retry_policy
                retry = policy.next_retry(row.job, rng=self._ctx.rng)
            retry_wait(retry, self._ctx.clock.now)
        except Exception as error:  # noqa: BLE001  # whatever a user's policy raises must not cost the job
            self._ctx.log.warning(
                "job %s: Asked the default retry policy, its own failed (error=%s)", row.job.id, error
            )
            return DefaultRetryPolicy().next_retry(row.job, rng=self._ctx.rng)
        return retry


def _has_attempts(row: StuckRow) -> bool:
    return row.job.attempt < row.job.max_attempts


class _StuckContext:
    """What `timeout(job)` and `next_retry(job, error)` see of a job that does not run here: its args and its row."""

    def __init__(self, row: JobRow, log: logging.Logger) -> None:
        self.row = row
        self.log = logging.LoggerAdapter(log, {"job_id": row.id, "kind": row.kind})

    @property
    def cancelled(self) -> NoReturn:
        raise self._refusal()

    @property
    def client(self) -> NoReturn:
        raise self._refusal()

    @property
    def async_client(self) -> NoReturn:
        raise self._refusal()

    @property
    def steps(self) -> NoReturn:
        raise self._refusal()

    def record_output(self, value: object) -> None:
        raise self._refusal()

    def set_metadata(self, key: str, value: object) -> None:
        raise self._refusal()

    def complete(self, session: Any) -> NoReturn:
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(f"job {self.row.id} does not run here, it is about to be rescued (use its args and its row)")


class JobRescuer(MaintenanceService):
    """Rescues jobs past the horizon, every 30 s.

    `grace` is the fleet's, or None where riverq's own tables are missing: then no client can be known to live.
    `left_unknown` holds the ids of stuck jobs that the last whole pass left because nobody here knows their kind.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        db: Database,
        rules: StuckJobRules,
        *,
        horizon: timedelta,
        grace: timedelta | None,
        timing: MaintenanceTiming | None = None,
    ) -> None:
        super().__init__(
            ctx, db, timing or MaintenanceTiming(batch_size=RESCUE_BATCH, reduced_batch_size=RESCUE_BATCH // 10)
        )
        self.rescued: TestSignal[list[Rescued]] = TestSignal()
        self.judged: TestSignal[list[Verdict]] = TestSignal()
        self.num_rescued = 0
        self.left_unknown: frozenset[int] = frozenset()
        self._rules = rules
        self._horizon = horizon
        self._grace = grace
        self._after_id = 0
        self._left: set[int] = set()

    async def run(self) -> None:
        """Tick until cancelled; then nothing is known to be left."""
        try:
            await super().run()
        finally:
            self.left_unknown = frozenset()

    async def run_once(self) -> None:
        """Every stuck job once, by id."""
        self._after_id = 0
        self._left = set()
        await self.batches(self._rescue_page)
        if len(self._left) > len(self.left_unknown):
            self.ctx.log.warning(
                "%s: Left stuck jobs of kinds that have no worker here (num_jobs=%d)", self.name, len(self._left)
            )
        self.left_unknown = frozenset(self._left)

    async def _rescue_page(self, limit: int) -> int:
        rows = await self.query(job_get_stuck, horizon=self._horizon, after_id=self._after_id, limit=limit)
        if not rows:
            return 0
        verdicts = [self._rules.past_horizon(row) for row in rows]
        self.judged.signal(verdicts)
        rescues = [verdict.rescue for verdict in verdicts if verdict.rescue is not None]
        doubtful = [row.run for row, verdict in zip(rows, verdicts, strict=True) if verdict.unless_living]
        if rescues or doubtful:
            living, outcome = await self.query(_rescue, rescues, doubtful, self._grace)
            self._left.update(
                row.job.id
                for row, verdict in zip(rows, verdicts, strict=True)
                if verdict.is_unknown and verdict.rescue is None and row.job.id not in living
            )
            self._tell(outcome)
        self._after_id = rows[-1].job.id
        return len(rows)

    def _tell(self, outcome: RescueOutcome) -> None:
        for refused in outcome.refused:
            self.ctx.log.warning(
                "%s: Could not rescue a job (job_id=%d, error=%s)", self.name, refused.job_id, refused.sqlstate
            )
        if outcome.rescued:
            self.num_rescued += len(outcome.rescued)
            self.ctx.log.warning("%s: Rescued stuck jobs (num_jobs=%d)", self.name, len(outcome.rescued))
            self.rescued.signal(outcome.rescued)


def _rescue(
    conn: Connection, schema: str, rescues: Sequence[Rescue], doubtful: Sequence[RunFence], grace: timedelta | None
) -> tuple[set[int], RescueOutcome]:
    """Those of `doubtful` whose client lives, and what became of the rescues without them. In one transaction."""
    living = set() if grace is None else runs_of_living(conn, schema, grace=grace, runs=doubtful)
    return living, job_rescue_many(conn, schema, [each for each in rescues if each.run.job_id not in living])
