"""What a rescue reads of running jobs, and the only write that ends a run which nobody will end any more.

`running → available, retryable, cancelled, discarded`. Before: `maintenance.job_rescuer` (the horizon) or
`maintenance.orphan_rescuer` (dead clients) judged the row. Which clients are dead is `riverq.query.orphans`' to say.

Between selecting and writing anything may happen, so the write carries the fence seen at selection: still running, as
claimed at that microsecond by that client. A job that was completed, or rescued and claimed again, is left alone, and
so is one that somebody has locked at the moment: whoever ends it holds that lock. A cancel mark is looked for again in
the write, since cancelling a running job changes nothing but its metadata. The database's clock decides, and two
leaders may do all this at once: the second finds the fence broken.

A connection that dies before COMMIT has changed nothing; one that dies after it has, and the next tick finds the rows
gone from `running`. Either way nothing is rescued twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobRow, JobState
from riverq.query.array import integer_array, text_array
from riverq.query.rows import as_text, job_columns, job_row
from riverq.query.statement import (
    TIMESTAMP,
    Statement,
    at_us,
    catalog,
    input_rows,
    integer_param,
    later,
    microseconds,
    now_param,
    sqlstate,
    stamp,
    text_param,
    us_of,
)
from riverq.query.tables import Tables, statement

RESCUED = "Stuck job rescued by JobRescuer"
"""River's text, which River UI and other clients know."""

ERRORS_KEPT = 100
"""How many entries of `errors` a row keeps, as after every other failed attempt."""

RESCUE_COUNT = "river:rescue_count"

_LOCK_TIMEOUT, _LATER_LOCK_TIMEOUT = "1s", "100ms"
_FINAL = ("cancelled", "discarded")
_OF_ONE_ROW = ("22", "23")
"""Classes of errors that lie in what a row holds, and spare its neighbours."""
_OF_ONE_LOCK = ("55P03", "40P01")


class RunFence(NamedTuple):
    """Which run of a job is meant. `client_id` is None where nobody is named in `attempted_by`."""

    job_id: int
    attempted_at_us: int
    client_id: str | None


class StuckRow(NamedTuple):
    """A running job to be judged.

    `running_for` is by the database's clock. `is_marked`: somebody asked to cancel it. `was_rescued`: not for the first
    time. `job` decodes its JSON on first use and reads what cannot be decoded as empty, args excepted, so that one bad
    row never keeps the others from their rescue.
    """

    run: RunFence
    job: JobRow
    running_for: timedelta
    is_marked: bool
    was_rescued: bool


class Rescue(NamedTuple):
    """What a run is to become.

    `scheduled_in` counts from the database's now, `scheduled_at` is absolute; with neither the column stays as it is.
    """

    run: RunFence
    state: JobState
    scheduled_in: timedelta | None = None
    scheduled_at: datetime | None = None


class Rescued(NamedTuple):
    """A job that was rescued, and what it is now. `client_id` is whose run it was."""

    job_id: int
    queue: str
    state: JobState
    client_id: str | None


class Refused(NamedTuple):
    """A job that could not be written, and the server's reason."""

    job_id: int
    sqlstate: str


class RescueOutcome(NamedTuple):
    """What became of a batch of rescues."""

    rescued: list[Rescued]
    refused: list[Refused]


def job_get_stuck(
    conn: sa.Connection,
    schema: str,
    *,
    horizon: timedelta,
    after_id: int = 0,
    limit: int,
    now: datetime | None = None,
) -> list[StuckRow]:
    """At most `limit` jobs above `after_id` that have been running for longer than `horizon`, by id. Locks nothing.

    Page by the last id, so that rows which are left alone keep nobody from their turn.
    """
    found = _get_stuck.rows(conn, schema, horizon=microseconds(horizon), after_id=after_id, limit=limit, now=stamp(now))
    return [_stuck_row(row) for row in found]


def job_get_runs(
    conn: sa.Connection, schema: str, runs: Sequence[RunFence], *, now: datetime | None = None
) -> list[StuckRow]:
    """Those of `runs` that are still running as fenced, by id. Locks nothing."""
    found = _get_runs.rows(conn, schema, **_fences(runs), now=stamp(now))
    return [_stuck_row(row) for row in found]


def job_rescue_many(
    conn: sa.Connection, schema: str, rescues: Sequence[Rescue], *, now: datetime | None = None
) -> RescueOutcome:
    """Write these rescues in one statement; those that are in neither list of the outcome are not stuck any more.

    Needs a transaction of its own, whose `lock_timeout` it sets: rows that are locked are passed over, but a row with a
    unique key and a mask that lacks `running` may meet its twin, or wait for an open insert of one. Such a row, or
    another that cannot be written, is found by halving and refused alone. Ids must be distinct.
    """
    if not rescues:
        return RescueOutcome([], [])
    _SET_LOCK_TIMEOUT.execute(conn, schema, timeout=_LOCK_TIMEOUT)
    outcome = RescueOutcome([], [])
    waiting = [list(rescues)]
    while waiting:
        part = waiting.pop()
        try:
            with conn.begin_nested():
                outcome.rescued.extend(_rescue(conn, schema, part, stamp(now)))
        except sa.exc.DBAPIError as error:
            code = sqlstate(error)
            if code is None or not (code[:2] in _OF_ONE_ROW or code in _OF_ONE_LOCK):
                raise
            _SET_LOCK_TIMEOUT.execute(conn, schema, timeout=_LATER_LOCK_TIMEOUT)  # halving meets the same lock often
            if len(part) == 1:
                outcome.refused.append(Refused(part[0].run.job_id, code))
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
    return outcome


def _rescue(conn: sa.Connection, schema: str, rescues: Sequence[Rescue], now: str | None) -> list[Rescued]:
    waits = (None if each.scheduled_in is None else microseconds(each.scheduled_in) for each in rescues)
    written = _rescue_many.rows(
        conn,
        schema,
        **_fences([each.run for each in rescues]),
        state=text_array([each.state.value for each in rescues]),
        scheduled_in=integer_array(waits),
        scheduled_at=text_array([stamp(each.scheduled_at) for each in rescues]),
        now=now,
    )
    return [Rescued(row.id, row.queue, JobState(row.state), row.client_id) for row in written]


def _fences(runs: Sequence[RunFence]) -> dict[str, str]:
    return {
        "id": integer_array([run.job_id for run in runs]),
        "us": integer_array([run.attempted_at_us for run in runs]),
        "client_id": text_array([run.client_id for run in runs]),
    }


def _stuck_row(row: Any) -> StuckRow:
    return StuckRow(
        run=RunFence(row.id, row.attempted_at, row.client_id),
        job=job_row(row),
        running_for=timedelta(microseconds=row.now_us - row.attempted_at),
        is_marked=row.is_marked,
        was_rescued=row.was_rescued,
    )


# -- the statements


def _last_client(t: Tables) -> sa.ColumnElement[str]:
    by = t.job.c.attempted_by
    return by[catalog.cardinality(by)]


def _is_fenced(t: Tables, us: sa.ColumnElement[int], client_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """`Tables.is_run`, a CASE for the same reasons, which also knows runs of nobody."""
    job = t.job.c
    same = sa.and_(
        job.state == t.state(JobState.RUNNING),
        job.attempted_at == at_us(us),
        _last_client(t).is_not_distinct_from(client_id),
    )
    return sa.case((same, sa.true()), else_=sa.false())


def _rescue_count(t: Tables) -> sa.ColumnElement[Any]:
    return t.job.c.metadata.op("->", return_type=pg.JSONB())(sa.literal_column(f"'{RESCUE_COUNT}'"))


def _judged_columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    return [
        *job_columns(t),
        _last_client(t).label("client_id"),
        us_of(now_param()).label("now_us"),
        t.cancel_mark().is_not(None).label("is_marked"),
        _rescue_count(t).is_not(None).label("was_rescued"),
    ]


@statement
def _get_stuck(t: Tables) -> sa.Executable:
    job = t.job.c
    # An expression, because no index fits it: the planner must not walk the primary key past millions of finished jobs
    # to meet the few running ones in order. It reads those through the index that begins with `state`, and sorts them.
    ordinal = job.id + sa.literal_column("0")
    return (
        sa.select(*_judged_columns(t))
        .where(
            job.state == t.state(JobState.RUNNING),
            job.attempted_at < now_param() - later(integer_param("horizon")),
            ordinal > integer_param("after_id"),
        )
        .order_by(ordinal)
        .limit(integer_param("limit"))
    )


@statement
def _get_runs(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger(), client_id=sa.Text())
    return (
        sa.select(*_judged_columns(t))
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(_is_fenced(t, given.c.us, given.c.client_id))
        .order_by(t.job.c.id)
    )


@statement
def _rescue_many(t: Tables) -> sa.Executable:
    job = t.job.c
    given = input_rows(
        "given",
        id=sa.BigInteger(),
        us=sa.BigInteger(),
        client_id=sa.Text(),
        state=sa.Text(),
        scheduled_in=sa.BigInteger(),
        scheduled_at=sa.Text(),
    )
    locked = (
        sa.select(*given.c, t.cancel_mark().is_not(None).label("cancelled"))
        .select_from(given.join(t.job, job.id == given.c.id))
        .where(_is_fenced(t, given.c.us, given.c.client_id))
        .with_for_update(skip_locked=True, of=t.job)
        .cte("locked")
    )
    return (
        sa.update(t.job)
        .values(**_new_values(t, locked.c))
        .where(job.id == locked.c.id)
        .returning(job.id, job.queue, as_text(job.state).label("state"), locked.c.client_id)
    )


def _new_values(t: Tables, given: Any) -> dict[str, sa.ColumnElement[Any]]:
    job, now = t.job.c, now_param()
    ended = sa.or_(given.cancelled, given.state.in_([sa.literal_column(f"'{state}'") for state in _FINAL]))
    scheduled_at = sa.func.coalesce(
        sa.cast(given.scheduled_at, TIMESTAMP), now + later(given.scheduled_in), job.scheduled_at
    )
    return {
        "state": sa.case((given.cancelled, t.state(JobState.CANCELLED)), else_=sa.cast(given.state, t.state_type)),
        "finalized_at": sa.case((ended, now)),
        "scheduled_at": sa.case((ended, job.scheduled_at), else_=scheduled_at),
        "errors": _errors(t, now),
        "metadata": _metadata(t),
    }


def _errors(t: Tables, now: sa.ColumnElement[datetime]) -> sa.ColumnElement[Any]:
    """The row's errors and River's entry for a rescue, cut to the newest `ERRORS_KEPT`."""
    utc = catalog.timezone(sa.literal_column("'UTC'"), now)
    at = catalog.to_char(utc, sa.literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))
    fields = {"at": at, "attempt": t.job.c.attempt, "error": _text(RESCUED), "trace": _text("")}
    pairs = [part for name, value in fields.items() for part in (_text(name), value)]
    errors = catalog.array_append(
        t.job.c.errors, catalog.jsonb_build_object(*pairs, type_=pg.JSONB()), type_=pg.ARRAY(pg.JSONB)
    )
    length = sa.func.coalesce(catalog.cardinality(t.job.c.errors), sa.literal_column("0"), type_=sa.Integer())
    first = sa.func.greatest(sa.literal_column("1"), length - sa.literal_column(str(ERRORS_KEPT - 2)))
    return errors[first : length + sa.literal_column("1")]


def _metadata(t: Tables) -> sa.ColumnElement[Any]:
    """With one more rescue counted; metadata that is no object stays as somebody left it."""
    metadata, before = t.job.c.metadata, _rescue_count(t)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    as_number = sa.cast(as_text(before), sa.Numeric()) + one
    count = sa.case((catalog.jsonb_typeof(before) == _text("number"), as_number), else_=one)
    merged = metadata.op("||")(catalog.jsonb_build_object(_text(RESCUE_COUNT), count, type_=pg.JSONB()))
    return sa.case((catalog.jsonb_typeof(metadata) == _text("object"), merged), else_=metadata)


def _text(value: str) -> sa.ColumnElement[str]:
    """A constant of ours; none holds a quote."""
    return sa.cast(sa.literal_column(f"'{value}'"), sa.Text())


_SET_LOCK_TIMEOUT = Statement(
    lambda _: sa.select(catalog.set_config(sa.literal_column("'lock_timeout'"), text_param("timeout"), sa.true()))
)
