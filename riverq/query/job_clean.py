"""What the leader deletes: finished jobs and queues that nobody works any more.

Both take a batch of rows that nobody holds locked, oldest first, and delete it in the same statement. So a row in
somebody's open transaction (a retry, a `complete(session=)`, a queue that is just being touched) never stalls the rest,
a row that is changed before the lock is had is looked at again, and two leaders at once take different rows.

The ids go to the DELETE as an array whose length the planner does not know, so that it looks them up by the primary key
however large the table is (docs/internals/statements.md).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobState
from riverq.query.statement import Statement, catalog, integer_param, later, microseconds, now_param, stamp
from riverq.query.tables import Tables, statement


def job_delete_finished(
    conn: sa.Connection,
    schema: str,
    *,
    state: JobState,
    retention: timedelta,
    limit: int,
    now: datetime | None = None,
) -> int:
    """Delete at most `limit` jobs that reached `state` longer than `retention` ago; returns how many.

    `state` is completed, cancelled or discarded. Fewer than `limit` means: no more for now, but for locked ones.
    """
    params = {"retention": microseconds(retention), "limit": limit, "now": stamp(now)}
    deleted: int = _DELETE_FINISHED[state].execute(conn, schema, **params).scalar_one()
    return deleted


def queue_delete_unused(
    conn: sa.Connection, schema: str, *, retention: timedelta, limit: int, now: datetime | None = None
) -> list[str]:
    """Delete at most `limit` queues that no client has touched for `retention`; returns their names.

    A queue that is paused, or whose metadata somebody wrote, is spared for ever: its row is all that knows of it.
    """
    params = {"retention": microseconds(retention), "limit": limit, "now": stamp(now)}
    return [row[0] for row in _delete_queues.rows(conn, schema, **params)]


def _delete_finished(state: JobState) -> Statement:
    @statement
    def build(t: Tables) -> sa.Executable:
        job = t.job.c
        # `finalized_at IS NOT NULL` is the condition of the partial index that serves this, order included.
        locked = (
            sa.select(job.id)
            .where(
                job.state == t.state(state),
                job.finalized_at.is_not(None),
                job.finalized_at < now_param() - later(integer_param("retention")),
            )
            .order_by(job.finalized_at)
            .limit(integer_param("limit"))
            .with_for_update(skip_locked=True)
        )
        deleted = sa.delete(t.job).where(_is_one_of(job.id, locked)).returning(job.id).cte("deleted")
        return sa.select(catalog.count(deleted.c.id))

    return build


def _is_one_of(column: sa.ColumnElement[Any], found: sa.Select[Any]) -> sa.ColumnElement[bool]:
    return column == sa.any_(sa.func.array(found.scalar_subquery()))


_DELETE_FINISHED = {
    state: _delete_finished(state) for state in (JobState.CANCELLED, JobState.COMPLETED, JobState.DISCARDED)
}


@statement
def _delete_queues(t: Tables) -> sa.Executable:
    queue = t.queue.c
    locked = (
        sa.select(queue.name)
        .where(
            queue.updated_at < now_param() - later(integer_param("retention")),
            queue.paused_at.is_(None),
            queue.metadata == sa.cast(sa.literal_column("'{}'"), pg.JSONB()),
        )
        .order_by(queue.updated_at)
        .limit(integer_param("limit"))
        .with_for_update(skip_locked=True)
    )
    return sa.delete(t.queue).where(_is_one_of(queue.name, locked)).returning(queue.name)
