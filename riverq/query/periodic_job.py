"""When durable periodic jobs run next, and what shows that a run was inserted already.

The row of a job holds its next run. Whoever inserts that run moves the row on in the same transaction, and only if it
still holds what he planned by: of two leaders one wins, and the other inserts nothing. Rows are locked in the order of
their ids, so that two leaders never wait for each other in a ring.

A client in another language that led meanwhile has inserted jobs without knowing of the row. What it has done is read
from the jobs themselves, by `river:periodic_job_id`. A retry or a snooze moves a job's `scheduled_at`, so a job counts
only up to the time when it was made: yesterday's run that is retried tonight is no sign of today's.

Rows of jobs that no leader knows any more go after a day in which somebody led. Otherwise a job that is registered
again after a year would be behind by a year.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.query.array import integer_array, text_array
from riverq.query.statement import (
    array_param,
    at_us,
    catalog,
    from_us,
    input_rows,
    integer_param,
    later,
    microseconds,
    now_param,
    stamp,
    text_param,
    to_us,
    us_of,
)
from riverq.query.tables import Tables, statement

SKEW = timedelta(seconds=10)
"""By how much the clock that dates a new job may be behind the leader's. A job made longer before a run is not its."""


class PeriodicRow(NamedTuple):
    """A durable job as the table has it. `updated_at`: when a leader last moved it, or had it among its jobs."""

    id: str
    next_run_at: datetime
    updated_at: datetime


class StoredRun(NamedTuple):
    """The next run that a row holds. `done_until`: the latest run from it on whose job exists, None for none."""

    next_run_at: datetime
    done_until: datetime | None


class Advance(NamedTuple):
    """A row's step from the run it holds to the one after; None where there is none, and the row goes."""

    id: str
    stored: datetime
    following: datetime | None


def periodic_job_list(conn: sa.Connection, schema: str) -> list[PeriodicRow]:
    """Every row, by id."""
    rows: Sequence[Any] = _list.rows(conn, schema)
    return [PeriodicRow(row[0], from_us(row[1]), from_us(row[2])) for row in rows]


def periodic_job_read(conn: sa.Connection, schema: str, ids: Iterable[str]) -> dict[str, StoredRun]:
    """The rows of these ids, as far as there are any, and what others have inserted since."""
    rows: Sequence[Any] = _read.rows(conn, schema, id=text_array(ids), skew=microseconds(SKEW))
    return {row[0]: StoredRun(from_us(row[1]), None if row[2] is None else from_us(row[2])) for row in rows}


def periodic_job_done(conn: sa.Connection, schema: str, runs: Mapping[str, datetime]) -> dict[str, datetime]:
    """For each id, the latest run from the given one on whose job exists; left out where there is none."""
    times = integer_array([to_us(at) for at in runs.values()])
    rows: Sequence[Any] = _done.rows(conn, schema, id=text_array(runs), at=times, skew=microseconds(SKEW))
    return {row[0]: from_us(row[1]) for row in rows if row[1] is not None}


def periodic_job_create(
    conn: sa.Connection, schema: str, runs: Mapping[str, datetime], *, now: datetime | None = None
) -> None:
    """Rows for ids that have none; a row that is there keeps its time."""
    if runs:
        names = sorted(runs)
        times = integer_array([to_us(runs[name]) for name in names])
        _create.execute(conn, schema, id=text_array(names), at=times, now=stamp(now))


def periodic_job_ensure(conn: sa.Connection, schema: str, runs: Mapping[str, datetime]) -> dict[str, StoredRun]:
    """Make rows for ids that have none, and read them, since another leader's may have come first."""
    periodic_job_create(conn, schema, runs)
    return periodic_job_read(conn, schema, runs)


def periodic_job_advance(
    conn: sa.Connection, schema: str, steps: Sequence[Advance], *, now: datetime | None = None
) -> set[str]:
    """Move these rows on; returns the ids of those that no longer hold the stored time, and were left alone.

    Waits for another leader's transaction that moves one of them.
    """
    ids, times = text_array([each.id for each in steps]), integer_array([to_us(each.stored) for each in steps])
    held: set[str] = {row[0] for row in _lock.execute(conn, schema, id=ids, at=times)}
    moved = [(each.id, each.following) for each in steps if each.id in held and each.following is not None]
    ended = [each.id for each in steps if each.id in held and each.following is None]
    if moved:
        following = integer_array([to_us(at) for _, at in moved])
        _move.execute(conn, schema, id=text_array([name for name, _ in moved]), at=following, now=stamp(now))
    if ended:
        _end.execute(conn, schema, id=text_array(ended))
    return {each.id for each in steps} - held


def periodic_job_keep(
    conn: sa.Connection, schema: str, ids: Iterable[str], stale_after: timedelta, *, now: datetime | None = None
) -> list[str]:
    """Say that these ids are still known, and delete the rows of others that no leader has known for `stale_after`.

    Returns the ids that went. A row that somebody has locked is left for the next time.
    """
    known = text_array(ids)
    _touch.execute(conn, schema, id=known, now=stamp(now))
    return sorted(_reap.execute(conn, schema, id=known, stale=microseconds(stale_after), now=stamp(now)).scalars())


def limit_transaction(conn: sa.Connection, schema: str, *, limit: timedelta, lock_limit: timedelta) -> None:
    """Have the server itself end this transaction where it takes long.

    A statement may take `limit`, and the client may be silent for it, so that once the client has given up waiting,
    what it sent cannot be committed much later. It may wait `lock_limit` for somebody else's transaction, such as one
    that holds a unique key.
    """
    _limit.execute(conn, schema, limit=_milliseconds(limit), lock_limit=_milliseconds(lock_limit))


def _milliseconds(limit: timedelta) -> str:
    return f"{limit // timedelta(milliseconds=1)}ms"


@statement
def _list(t: Tables) -> sa.Executable:
    return sa.select(*_columns(t)).order_by(t.periodic_job.c.id)


def _columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    row = t.periodic_job.c
    return [row.id, us_of(row.next_run_at), us_of(row.updated_at)]


@statement
def _read(t: Tables) -> sa.Executable:
    row = t.periodic_job.c
    return sa.select(row.id, us_of(row.next_run_at), _done_until(t, row.id, row.next_run_at)).where(row.id == _any_id())


@statement
def _done(t: Tables) -> sa.Executable:
    given = _given()
    return sa.select(given.c.id, _done_until(t, given.c.id, at_us(given.c.at)))


def _done_until(t: Tables, job_id: sa.ColumnElement[str], run: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The latest run that a job shows: its `scheduled_at`, or a little after it was made where that is earlier.

    The containment is what the index on metadata serves.
    """
    job = t.job
    skew = later(integer_param("skew"))
    shown = catalog.max(sa.func.least(job.c.scheduled_at, job.c.created_at + skew))
    tag = catalog.jsonb_build_object(sa.literal_column("'river:periodic_job_id'"), job_id)
    return (
        sa.select(us_of(shown, nullable=True))
        .where(job.c.metadata.op("@>")(tag), job.c.scheduled_at >= run, job.c.created_at >= run - skew)
        .correlate_except(job)
        .scalar_subquery()
    )


@statement
def _create(t: Tables) -> sa.Executable:
    given = _given()
    rows = sa.select(given.c.id, at_us(given.c.at), now_param()).order_by(given.c.id)
    insert = pg.insert(t.periodic_job).from_select(["id", "next_run_at", "updated_at"], rows, include_defaults=False)
    return insert.on_conflict_do_nothing(index_elements=[t.periodic_job.c.id])


@statement
def _lock(t: Tables) -> sa.Executable:
    given, row = _given(), t.periodic_job.c
    return (
        sa.select(row.id)
        .join_from(t.periodic_job, given, row.id == given.c.id)
        .where(row.next_run_at == at_us(given.c.at))
        .order_by(row.id)
        .with_for_update(of=t.periodic_job)
    )


@statement
def _move(t: Tables) -> sa.Executable:
    given = _given()
    return (
        sa.update(t.periodic_job)
        .values(next_run_at=at_us(given.c.at), updated_at=now_param())
        .where(t.periodic_job.c.id == given.c.id)
    )


@statement
def _end(t: Tables) -> sa.Executable:
    return sa.delete(t.periodic_job).where(t.periodic_job.c.id == _any_id())


@statement
def _touch(t: Tables) -> sa.Executable:
    free = t.periodic_job.alias("free")
    mine = sa.select(free.c.id).where(free.c.id == _any_id()).with_for_update(skip_locked=True)
    return sa.update(t.periodic_job).values(updated_at=now_param()).where(t.periodic_job.c.id.in_(mine))


@statement
def _reap(t: Tables) -> sa.Executable:
    free = t.periodic_job.alias("free")
    is_old = free.c.updated_at < now_param() - later(integer_param("stale"))
    stale = sa.select(free.c.id).where(sa.not_(free.c.id == _any_id()), is_old).with_for_update(skip_locked=True)
    return sa.delete(t.periodic_job).where(t.periodic_job.c.id.in_(stale)).returning(t.periodic_job.c.id)


@statement
def _limit(_t: Tables) -> sa.Executable:
    settings = {
        "statement_timeout": "limit",
        "idle_in_transaction_session_timeout": "limit",
        "lock_timeout": "lock_limit",
    }
    return sa.select(
        *(
            catalog.set_config(sa.literal_column(f"'{name}'"), text_param(param), sa.true()).label(name)
            for name, param in settings.items()
        )
    )


def _given() -> sa.TableValuedAlias:
    return input_rows("given", id=sa.Text(), at=sa.BigInteger())


def _any_id() -> sa.ColumnElement[Any]:
    return sa.any_(array_param("id", sa.Text()))
