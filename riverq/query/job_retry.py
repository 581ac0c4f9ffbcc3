"""Retrying a job by hand: it may be claimed at once, whatever had become of it.

| the job is | what happens |
|---|---|
| running | nothing |
| available and due | nothing: it keeps its place |
| anything else | available and due now, not finalized, without the mark of an old cancellation |

`errors`, `attempt` and the rest stay, as every River client has it. A job that has used up its attempts gets one more.
The mark goes because whoever has not seen it at the claim would take it for new (River before 0.51 leaves it); it goes
with a change only, since on a running job it may be an order that is not yet obeyed.

A row that comes back into its own mask comes back into the unique index. Where another job has its key by then, even
one that nobody has committed yet, it stays as it is.

The notification is what an insert sends, in the statement that changes the row: heard when and only when that is
committed, in AUTOCOMMIT too. It is not limited as those of inserts are: a job is retried by hand, and would wait for
the next poll if another of its queue had been inserted just before. Times are the statement's, as in an insert: what a
long transaction retries is due when it is committed, and overtakes nothing.

Safe to run twice at once: the second waits for the first, finds the row due, and leaves it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.errors import JobConflictError, UsageError
from riverq.insert_opts import MAX_ATTEMPTS
from riverq.job import JobRow, JobState
from riverq.notification import Topic, channel
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import (
    TIMESTAMP,
    catalog,
    integer_param,
    notified,
    sqlstate,
    stamp,
    text_param,
    time_param,
)
from riverq.query.tables import Tables, statement
from riverq.query.unique_index import UNIQUE_VIOLATION, enters_index, savepoint

_TRIES = 3


def job_retry(conn: sa.Connection, schema: str, job_id: int, *, now: datetime | None = None) -> JobRow | None:
    """Make a job available now, tell its workers, and return its row; None where there is no such job.

    Raises JobConflictError where another job has its unique key, UsageError where its attempts are beyond counting;
    nothing is changed then, and the caller's transaction goes on.
    """
    given = {"id": job_id, "now": stamp(now), "channel": channel(schema, Topic.INSERT)}
    for _ in range(_TRIES):
        row = _retry.execute(conn, schema, **given).one_or_none()
        if row is not None:
            return job_row(row)
        found = _look.execute(conn, schema, id=job_id, now=stamp(now)).one_or_none()
        if found is None or found.stays:
            return None if found is None else job_row(found)
        if found.exhausted:
            raise UsageError(
                f"job {job_id} cannot be retried: expected an attempt below {MAX_ATTEMPTS}, got: {found.attempt} "
                "(insert the job anew)"
            )
        row = _try_entering(conn, schema, job_id, given)
        if row is not None:
            return job_row(row)
    raise AssertionError(f"job {job_id} changed its state {_TRIES} times while it was to be retried")


def _try_entering(conn: sa.Connection, schema: str, job_id: int, given: dict[str, Any]) -> Any:
    """Retry a row that would enter the unique index by it."""
    try:
        with savepoint(conn, schema):
            return _retry_entering.execute(conn, schema, **given).one_or_none()
    except sa.exc.DBAPIError as error:
        if sqlstate(error) != UNIQUE_VIOLATION:
            raise
        raise JobConflictError(job_id) from error


# -- the statements


@statement
def _retry(t: Tables) -> sa.Executable:
    changed: sa.Executable = _retried(t).where(sa.not_(enters_index(t, JobState.AVAILABLE)))
    return changed


@statement
def _retry_entering(t: Tables) -> sa.Executable:
    changed: sa.Executable = _retried(t)
    return changed


def _retried(t: Tables) -> Any:
    job = t.job.c
    one_more = job.max_attempts + sa.literal_column("1", sa.SmallInteger())
    return (
        sa.update(t.job)
        .values(
            state=t.state(JobState.AVAILABLE),
            finalized_at=sa.cast(sa.null(), TIMESTAMP),
            scheduled_at=_now(),
            max_attempts=sa.case((job.attempt == job.max_attempts, one_more), else_=job.max_attempts),
            metadata=_without_mark(t),
        )
        .where(job.id == integer_param("id"), sa.not_(_stays(t)), sa.not_(_exhausted(t)))
        .returning(*job_columns(t), notified(text_param("channel"), _insert_payload(t)).label("notified"))
    )


def _stays(t: Tables) -> sa.ColumnElement[bool]:
    job = t.job.c
    due = sa.and_(job.state == t.state(JobState.AVAILABLE), job.scheduled_at <= _now())
    return sa.or_(job.state == t.state(JobState.RUNNING), due)


def _exhausted(t: Tables) -> sa.ColumnElement[bool]:
    """A Go client's claim that would count beyond fails, and with it every claim of its queue."""
    return t.job.c.attempt >= sa.literal_column(str(MAX_ATTEMPTS))


def _without_mark(t: Tables) -> sa.ColumnElement[Any]:
    """Metadata that is no object, which River stores too, has no keys to take one from."""
    metadata = t.job.c.metadata
    is_object = catalog.jsonb_typeof(metadata) == sa.literal_column("'object'")
    without = metadata.op("-", return_type=pg.JSONB())(sa.cast(sa.literal_column("'cancel_attempted_at'"), sa.Text()))
    return sa.case((is_object, without), else_=metadata)


def _insert_payload(t: Tables) -> sa.ColumnElement[str]:
    """`riverq.notification.insert_payload`, byte for byte."""
    before: sa.ColumnElement[str] = sa.literal_column("""'{"queue": '""")
    queue = sa.cast(catalog.to_json(t.job.c.queue), sa.Text())
    return catalog.concat(before, queue, sa.literal_column("'}'"), type_=sa.Text())


def _now() -> sa.ColumnElement[datetime]:
    return sa.func.coalesce(time_param("now"), catalog.statement_timestamp(), type_=TIMESTAMP)


@statement
def _look(t: Tables) -> sa.Executable:
    verdicts = (_stays(t).label("stays"), _exhausted(t).label("exhausted"))
    return sa.select(*job_columns(t), *verdicts).where(t.job.c.id == integer_param("id"))
