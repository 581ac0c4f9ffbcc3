"""Deletes finished jobs when their retention is over, every 30 s, state by state.

Retention counts from `finalized_at` by the database's clock. Rows that somebody holds locked are passed over and found
by a later tick. What fails for one state (a statement that takes too long among a hundred million rows) does not keep
the others from their turn, and each state has its own size of batches. A statement that does not end in time, or a
connection that dies in it, deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from riverq.database import Database
from riverq.errors import DatabaseError
from riverq.job import JobState
from riverq.maintenance.base import BatchSize, MaintenanceService, MaintenanceTiming
from riverq.query.job_clean import job_delete_finished
from riverq.service import ServiceContext, TestSignal

CLEANER_INTERVAL = timedelta(seconds=30)
_NOTHING = timedelta(0)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long finished jobs are kept, by state; None or less than nothing (River's -1): for ever."""

    cancelled: timedelta | None = timedelta(hours=24)
    completed: timedelta | None = timedelta(hours=24)
    discarded: timedelta | None = timedelta(days=7)

    def __iter__(self) -> Iterator[tuple[JobState, timedelta]]:
        """The states whose jobs are deleted at all, and after how long."""
        for state in (JobState.CANCELLED, JobState.COMPLETED, JobState.DISCARDED):
            kept: timedelta | None = getattr(self, state.value)
            if kept is not None and kept >= _NOTHING:
                yield state, kept


class JobCleaner(MaintenanceService):
    """Deletes what `retention` says."""

    def __init__(
        self, ctx: ServiceContext, db: Database, retention: Retention, timing: MaintenanceTiming | None = None
    ) -> None:
        super().__init__(ctx, db, timing or MaintenanceTiming(interval=CLEANER_INTERVAL))
        self.deleted: TestSignal[tuple[JobState, int]] = TestSignal()
        self.batch_sizes = {state: BatchSize(ctx, self.timing) for state, _ in retention}
        self._retention = retention

    async def run_once(self) -> None:
        """Every state, until nothing is left that is past its retention."""
        failure: DatabaseError | None = None
        for state, kept in self._retention:
            try:
                await self._clean(state, kept)
            except DatabaseError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _clean(self, state: JobState, kept: timedelta) -> None:
        total = 0

        async def delete(limit: int) -> int:
            nonlocal total
            number = await self.query(job_delete_finished, state=state, retention=kept, limit=limit)
            total += number
            return number

        try:
            await self.batches(delete, self.batch_sizes[state])
        finally:  # what earlier batches deleted is gone, whatever became of the last
            if total:
                self.ctx.log.info("%s: Deleted %s jobs past their retention (num_jobs=%d)", self.name, state, total)
                self.deleted.signal((state, total))
