"""What an operator does to one job from outside its run: cancel it.

Cancelling brings a row into the unique index where its mask holds `cancelled` and not the state that it is in
(typically `retryable`). Where another job has the key by then, the row cannot enter; it is cancelled all the same and
leaves the key to the other by giving up its own `unique_states`, as a job discarded by the scheduler does. The other
may also be an insert that nobody has committed yet: then the statement waits for it, as every duplicate insert does,
and a savepoint keeps the caller's transaction whole.

The notification is part of the statement that changes the row, so it is heard when and only when the change is
committed. Safe to run twice at once: the second finds the row final, or sets a later mark.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from riverq.job import FINAL_STATES, JobRow, JobState
from riverq.notification import Topic, channel
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import (
    TIMESTAMP,
    catalog,
    integer_param,
    notified,
    now_param,
    sqlstate,
    stamp,
    text_param,
    time_param,
)
from riverq.query.tables import Tables, statement
from riverq.query.unique_index import UNIQUE_VIOLATION, enters_index, savepoint

_TRIES = 3


def job_cancel(conn: sa.Connection, schema: str, job_id: int, *, now: datetime | None = None) -> JobRow | None:
    """Cancel a job and return its row, or None where there is no such job.

    A running job is marked only, and its client told; it ends by itself. A job that has ended is returned unchanged.
    """
    given = {"id": job_id, "now": stamp(now), "channel": channel(schema, Topic.CONTROL)}
    for _ in range(_TRIES):
        row = _cancel.execute(conn, schema, **given).one_or_none()
        if row is not None:
            return job_row(row)
        found = _get.execute(conn, schema, id=job_id).one_or_none()
        if found is None or JobState(found.state) in FINAL_STATES:
            return None if found is None else job_row(found)
        row = _try_entering(conn, schema, given)
        if row is not None:
            return job_row(row)
    raise AssertionError(f"job {job_id} changed its state {_TRIES} times while it was to be cancelled")


def _try_entering(conn: sa.Connection, schema: str, given: dict[str, Any]) -> Any:
    """Cancel a row that would enter the unique index by it; without its key where the key is taken."""
    try:
        with savepoint(conn, schema):
            return _cancel_entering.execute(conn, schema, gives_up=0, **given).one_or_none()
    except sa.exc.DBAPIError as error:
        if sqlstate(error) != UNIQUE_VIOLATION:
            raise
    return _cancel_entering.execute(conn, schema, gives_up=1, **given).one_or_none()


# -- the statements


@statement
def _cancel(t: Tables) -> sa.Executable:
    changed: sa.Executable = _cancelled(t).where(sa.not_(_enters_index(t)))
    return changed


@statement
def _cancel_entering(t: Tables) -> sa.Executable:
    job = t.job.c
    gives_up = sa.and_(_enters_index(t), integer_param("gives_up") == sa.literal_column("1"))
    changed: sa.Executable = _cancelled(t).values(unique_states=sa.case((sa.not_(gives_up), job.unique_states)))
    return changed


def _cancelled(t: Tables) -> Any:
    job = t.job.c
    runs = job.state == t.state(JobState.RUNNING)
    mark = catalog.jsonb_build_object(sa.literal_column("'cancel_attempted_at'"), _rfc3339(_clock_now()))
    return (
        sa.update(t.job)
        .values(
            state=sa.case((runs, job.state), else_=t.state(JobState.CANCELLED)),
            finalized_at=sa.case((runs, job.finalized_at), else_=now_param()),
            metadata=job.metadata.op("||")(mark),
        )
        .where(job.id == integer_param("id"), job.state.not_in([t.state(state) for state in sorted(FINAL_STATES)]))
        .returning(*job_columns(t), _told(t).label("notified"))
    )


def _enters_index(t: Tables) -> sa.ColumnElement[bool]:
    """Whether cancelling would bring the row into the unique index."""
    return sa.and_(t.job.c.state != t.state(JobState.RUNNING), enters_index(t, JobState.CANCELLED))


def _told(t: Tables) -> sa.ColumnElement[str]:
    payload = catalog.json_build_object(
        sa.literal_column("'action'"),
        sa.literal_column("'cancel'"),
        sa.literal_column("'job_id'"),
        t.job.c.id,
        sa.literal_column("'queue'"),
        t.job.c.queue,
    )
    return notified(text_param("channel"), sa.cast(payload, sa.Text()))


def _clock_now() -> sa.ColumnElement[datetime]:
    """The time of the call and not of the transaction: a run is told by a mark that differs from the one it knows."""
    return sa.func.coalesce(time_param("now"), catalog.clock_timestamp(), type_=TIMESTAMP)


def _rfc3339(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[str]:
    in_utc = catalog.timezone(sa.literal_column("'UTC'"), moment)
    return catalog.to_char(in_utc, sa.literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""), type_=sa.Text())


@statement
def _get(t: Tables) -> sa.Executable:
    return sa.select(*job_columns(t)).where(t.job.c.id == integer_param("id"))
