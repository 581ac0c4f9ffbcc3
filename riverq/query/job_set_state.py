"""The only writers of a finished attempt: running → completed, retryable, cancelled and so on.

Before: `worker.outcome` says what happened and `worker.completer` gathers it. Every statement carries the fence (see
`riverq.state`), so whoever comes late changes nothing, its metadata included. The batches never wait: a row that
somebody has locked (an insert of the same unique key in an open transaction is enough) is passed over, is missing from
what is returned, and is tried again alone with `job_set_state_if_running`, which waits for a bounded time.

The plans are pinned to the primary key, see `input_rows` and `Tables.is_run`. Ids must be distinct within a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import FINAL_STATES, JobRow, JobState
from riverq.query.array import integer_array, text_array
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import (
    TIMESTAMP,
    Statement,
    catalog,
    input_rows,
    integer_param,
    jsonb_param,
    later,
    microseconds,
    now_param,
    stamp,
    text_param,
)
from riverq.query.tables import Tables, statement
from riverq.state import Run, SetState

ERRORS_KEPT = 100
"""How many entries of `errors` a row keeps: a job that is retried for ever must not grow for ever."""

_CANCELLABLE = (JobState.AVAILABLE, JobState.RETRYABLE, JobState.SCHEDULED)


def job_complete_many(
    conn: sa.Connection, schema: str, *, client_id: str, runs: Sequence[Run], now: datetime | None = None
) -> list[int]:
    """Complete plain successes and return the ids written: a returned id is a persisted success.

    Ids that are missing are locked, gone or not this client's any more; `job_run_status` tells which.
    """
    rows = _complete_many.rows(
        conn,
        schema,
        client_id=client_id,
        now=stamp(now),
        id=integer_array([run.job_id for run in runs]),
        us=integer_array([run.attempted_at_us for run in runs]),
    )
    return [row[0] for row in rows]


def job_set_state_if_running_many(
    conn: sa.Connection, schema: str, *, client_id: str, states: Sequence[SetState], now: datetime | None = None
) -> list[JobRow]:
    """Write any outcomes and return the rows as they are now; missing ones as with `job_complete_many`.

    A run that would go on (available, retryable, scheduled) becomes cancelled, now, where the job was asked to cancel
    since the claim.

    Raises 22P05 and its kin where an encoded error or metadata cannot be stored; then nothing is written.
    """
    return [job_row(row) for row in _set_state_many.rows(conn, schema, **_state_params(client_id, states, now))]


def job_set_state_if_running(
    conn: sa.Connection,
    schema: str,
    *,
    client_id: str,
    state: SetState,
    lock_timeout: timedelta,
    now: datetime | None = None,
) -> JobRow | None:
    """The same for one run, waiting up to `lock_timeout` for whoever has the row locked. None: the run is lost.

    Needs a transaction, whose `lock_timeout` it sets. Raises 55P03 when the wait was in vain.
    """
    # A lock_timeout of 0 would mean to wait for ever.
    timeout = max(lock_timeout // timedelta(milliseconds=1), 1)
    _SET_LOCK_TIMEOUT.execute(conn, schema, timeout=f"{timeout}ms")
    row = _set_state_one.execute(conn, schema, **_state_params(client_id, [state], now)).one_or_none()
    return None if row is None else job_row(row)


def job_complete_in_transaction(
    conn: sa.Connection, schema: str, *, client_id: str, run: Run, metadata: str | None = None
) -> bool:
    """Complete one run in the caller's transaction, merging `metadata` (an encoded object). False: the run is lost.

    Waits for whoever has the row locked as long as the caller's own settings allow; sets none.
    """
    result = _complete_one.execute(
        conn, schema, client_id=client_id, id=run.job_id, us=run.attempted_at_us, metadata=metadata
    )
    return result.one_or_none() is not None


def _state_params(client_id: str, states: Sequence[SetState], now: datetime | None) -> dict[str, Any]:
    waits = (None if each.scheduled_in is None else microseconds(each.scheduled_in) for each in states)
    return {
        "client_id": client_id,
        "now": stamp(now),
        "id": integer_array([each.run.job_id for each in states]),
        "us": integer_array([each.run.attempted_at_us for each in states]),
        "mark": text_array([each.run.cancel_mark for each in states]),
        "state": text_array([each.state.value for each in states]),
        "attempt": integer_array([each.attempt for each in states]),
        "error": text_array([each.error for each in states]),
        "metadata": text_array([each.metadata for each in states]),
        "scheduled_at": text_array([stamp(each.scheduled_at) for each in states]),
        "scheduled_in": integer_array(waits),
    }


# -- the statements


@statement
def _complete_many(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger())
    locked = (
        sa.select(t.job.c.id)
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(t.is_run(given.c.us, text_param("client_id")))
        .with_for_update(skip_locked=True, of=t.job)
        .cte("locked")
    )
    return (
        sa.update(t.job)
        .values(state=t.state(JobState.COMPLETED), finalized_at=now_param())
        .where(t.job.c.id == locked.c.id)
        .returning(t.job.c.id)
    )


@statement
def _complete_one(t: Tables) -> sa.Executable:
    given = jsonb_param("metadata")
    # Not merged with an empty object: metadata that is none, which others may have written, would become an array.
    merged = sa.case((given.is_not(None), t.job.c.metadata.op("||")(given)), else_=t.job.c.metadata)
    return (
        sa.update(t.job)
        .values(state=t.state(JobState.COMPLETED), finalized_at=catalog.now(), metadata=merged)
        .where(t.job.c.id == integer_param("id"), t.is_run(integer_param("us"), text_param("client_id")))
        .returning(t.job.c.id)
    )


def _set_state(t: Tables, *, skip_locked: bool) -> sa.Executable:
    given = input_rows(
        "given",
        id=sa.BigInteger(),
        us=sa.BigInteger(),
        mark=sa.Text(),
        state=sa.Text(),
        attempt=sa.SmallInteger(),
        error=sa.Text(),
        metadata=sa.Text(),
        scheduled_at=sa.Text(),
        scheduled_in=sa.BigInteger(),
    )
    # What the UPDATE needs of the input goes through the CTE: joining the input again would be a loop in a loop.
    goes_on = given.c.state.in_([sa.literal_column(f"'{state.value}'") for state in _CANCELLABLE])
    cancelled = sa.and_(goes_on, t.cancel_mark().is_distinct_from(given.c.mark))
    locked = (
        sa.select(*given.c, cancelled.label("cancelled"))
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(t.is_run(given.c.us, text_param("client_id")))
        .with_for_update(skip_locked=skip_locked, of=t.job)
        .cte("locked")
    )
    return (
        sa.update(t.job).values(**_new_values(t, locked.c)).where(t.job.c.id == locked.c.id).returning(*job_columns(t))
    )


def _new_values(t: Tables, given: Any) -> dict[str, sa.ColumnElement[Any]]:
    job, now = t.job.c, now_param()
    state = sa.cast(given.state, t.state_type)
    cancelled = given.cancelled
    ended = given.state.in_([sa.literal_column(f"'{each.value}'") for each in sorted(FINAL_STATES)])
    scheduled_at = sa.func.coalesce(
        sa.cast(given.scheduled_at, TIMESTAMP), now + later(given.scheduled_in), job.scheduled_at
    )
    return {
        "state": sa.case((cancelled, t.state(JobState.CANCELLED)), else_=state),
        "finalized_at": sa.case((sa.or_(cancelled, ended), now)),
        "attempt": sa.case((cancelled, job.attempt), else_=sa.func.coalesce(given.attempt, job.attempt)),
        "scheduled_at": sa.case((cancelled, job.scheduled_at), else_=scheduled_at),
        "metadata": sa.case(
            (given.metadata.is_not(None), job.metadata.op("||")(sa.cast(given.metadata, pg.JSONB))), else_=job.metadata
        ),
        "errors": sa.case((given.error.is_not(None), appended(t, given.error)), else_=job.errors),
    }


def appended(t: Tables, error: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """The row's errors with one more encoded error, cut to the newest `ERRORS_KEPT`."""
    length = sa.func.coalesce(catalog.cardinality(t.job.c.errors), sa.literal_column("0"), type_=sa.Integer())
    first = sa.func.greatest(sa.literal_column("1"), length - sa.literal_column(str(ERRORS_KEPT - 2)))
    errors = catalog.array_append(t.job.c.errors, sa.cast(error, pg.JSONB), type_=pg.ARRAY(pg.JSONB))
    return errors[first : length + sa.literal_column("1")]


@statement
def _set_state_many(t: Tables) -> sa.Executable:
    return _set_state(t, skip_locked=True)


@statement
def _set_state_one(t: Tables) -> sa.Executable:
    return _set_state(t, skip_locked=False)


_SET_LOCK_TIMEOUT = Statement(
    lambda _: sa.select(catalog.set_config(sa.literal_column("'lock_timeout'"), text_param("timeout"), sa.true()))
)
