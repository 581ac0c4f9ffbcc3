"""How many jobs of each queue wait for a worker, and how many run."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.statement import catalog
from riverq.query.tables import Tables, statement


class JobCounts(NamedTuple):
    """The jobs of one queue that could begin now, and those that have begun."""

    available: int = 0
    running: int = 0


def job_count_by_queue(conn: sa.Connection, schema: str) -> dict[str, JobCounts]:
    """The counts of every queue that has any such job, whether or not the queue has a row of its own.

    Reads these jobs once, through the index that claims use; the others, finished or still to come, are not looked at.
    """
    return {row.queue: JobCounts(row.available, row.running) for row in _count_by_queue.rows(conn, schema)}


@statement
def _count_by_queue(t: Tables) -> sa.Executable:
    job = t.job.c
    states = {"available": t.state(JobState.AVAILABLE), "running": t.state(JobState.RUNNING)}
    all_of = catalog.count(sa.literal_column("*"))
    counts = [all_of.filter(job.state == state).label(name) for name, state in states.items()]
    return sa.select(job.queue, *counts).where(job.state.in_(states.values())).group_by(job.queue).order_by(job.queue)
