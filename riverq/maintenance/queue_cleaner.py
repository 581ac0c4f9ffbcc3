"""Deletes the rows of queues that no client has worked for a day, every hour.

Clients touch the rows of their queues every ten minutes, so a row that is a day old belongs to nobody. Paused queues
and queues with metadata are kept: their row is the only place that knows of it, and a queue that came back running
after a quiet weekend would be a pause forgotten. A row that is touched at the same moment stays.
"""

from __future__ import annotations

from datetime import timedelta

from riverq.database import Database
from riverq.maintenance.base import MaintenanceService, MaintenanceTiming
from riverq.query.job_clean import queue_delete_unused
from riverq.service import ServiceContext, TestSignal

QUEUE_CLEANER_INTERVAL = timedelta(hours=1)
QUEUE_RETENTION = timedelta(hours=24)


class QueueCleaner(MaintenanceService):
    """Deletes what nobody has touched for 24 hours."""

    def __init__(self, ctx: ServiceContext, db: Database, timing: MaintenanceTiming | None = None) -> None:
        super().__init__(ctx, db, timing or MaintenanceTiming(interval=QUEUE_CLEANER_INTERVAL))
        self.deleted: TestSignal[list[str]] = TestSignal()

    async def run_once(self) -> None:
        """Until none is left."""
        await self.batches(self._delete)

    async def _delete(self, limit: int) -> int:
        names = await self.query(queue_delete_unused, retention=QUEUE_RETENTION, limit=limit)
        if names:
            self.ctx.log.info("%s: Deleted %d queues that nobody has worked for a day", self.name, len(names))
            self.deleted.signal(names)
        return len(names)
