"""What the leader does to jobs: due ones become available.

It takes two passes, because SKIP LOCKED protects from locked rows but not from index entries that nobody has committed
yet: one open insert of a unique key would block an update of everything that is due, and fail it in the end.

1. `job_schedule_plain`: rows that cannot conflict (without a key, in the unique index already, or not in it when
   available), any number in one statement.
2. `job_schedule_unique`: the rest, rows that come *into* the index, in small batches. The first row of a key, in the
   order of the claim, wins the key; a row whose key is taken is discarded, and leaves the index if it would be in it
   when discarded. Where nobody can say yet who has the key, the key waits for the next call.

Both are safe to run twice at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobState
from riverq.query.array import integer_array
from riverq.query.rows import as_hex
from riverq.query.statement import (
    TIMESTAMP,
    Statement,
    catalog,
    input_rows,
    integer_param,
    later,
    microseconds,
    now_param,
    sqlstate,
    stamp,
    text_param,
    time_param,
    us_of,
)
from riverq.query.tables import Tables, statement

UNIQUE_BATCH = 100
"""The most rows of one second pass: each may come to wait for somebody's transaction."""

_BATCH_LOCK_TIMEOUT = "500ms"
_ROW_LOCK_TIMEOUT = "50ms"  # times UNIQUE_BATCH is what one call may wait in the worst case
_LOCK_NOT_AVAILABLE, _DEADLOCK, _UNIQUE_VIOLATION = "55P03", "40P01", "23505"


class Scheduled(NamedTuple):
    """A job that became available, and in how many microseconds it is due by the database's clock."""

    job_id: int
    queue: str
    due_in_us: int

    @property
    def due_now(self) -> bool:
        """Whether its time has come; else it comes within the look-ahead."""
        return self.due_in_us <= 0


class UniqueScheduled(NamedTuple):
    """What a second pass did: jobs made available, ids discarded, and ids whose key waits for the next call.

    `examined` is how many rows it looked at; a call that examined its limit may have left more.
    """

    scheduled: list[Scheduled]
    discarded: list[int]
    deferred: list[int]
    examined: int


class _Candidate(NamedTuple):
    id: int
    key: str


def job_schedule_plain(
    conn: sa.Connection, schema: str, *, limit: int, look_ahead: timedelta, now: datetime | None = None
) -> list[Scheduled]:
    """The first pass over at most `limit` rows due within `look_ahead`, in the claim's order. Waits for nobody."""
    params = {"limit": limit, "look_ahead": microseconds(look_ahead), "now": stamp(now)}
    return _scheduled(_schedule_plain.execute(conn, schema, **params))


def job_schedule_unique(
    conn: sa.Connection,
    schema: str,
    *,
    limit: int = UNIQUE_BATCH,
    look_ahead: timedelta,
    passed_over: Iterable[int] = (),
    now: datetime | None = None,
) -> UniqueScheduled:
    """The second pass over at most `limit` (≤ 100) rows. Needs a transaction of its own, whose lock_timeout it sets.

    Keys of the jobs in `passed_over` are left alone: give it what earlier calls of the same tick deferred, so that
    waiting keys do not keep the others from their turn.
    """
    times = {"look_ahead": microseconds(look_ahead), "now": stamp(now)}
    found = _candidates.rows(conn, schema, limit=min(limit, UNIQUE_BATCH), id=integer_array(passed_over), **times)
    if not found:
        return UniqueScheduled([], [], [], 0)
    candidates = [_Candidate._make(row) for row in found]
    ids = integer_array([each.id for each in candidates])
    has_twin: dict[int, bool] = {row.id: row.has_twin for row in _lock.execute(conn, schema, id=ids)}

    first_by_key: list[int] = []
    for group in _groups(candidates):
        first = group[0].id
        if has_twin.get(first) is False:
            first_by_key.append(first)
    fates = _schedule_firsts(conn, schema, first_by_key, stamp(now))

    lost, deferred = _judge(candidates, has_twin, fates)
    discarded = _discard.rows(conn, schema, id=integer_array(lost), now=stamp(now)) if lost else []
    scheduled = [each for each in fates.values() if isinstance(each, Scheduled)]
    return UniqueScheduled(scheduled, [row[0] for row in discarded], deferred, len(candidates))


def _groups(candidates: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """By key; within a key the claim's order is kept, because sorting is stable."""
    return [list(group) for _, group in groupby(sorted(candidates, key=lambda each: each.key), lambda each: each.key)]


def _judge(
    candidates: Sequence[_Candidate], has_twin: dict[int, bool], fates: dict[int, Scheduled | str]
) -> tuple[list[int], list[int]]:
    """Who is discarded and who waits. A row that somebody else has locked is never touched."""
    lost: list[int] = []
    deferred: list[int] = []
    for group in _groups(candidates):
        first, *rest = [each.id for each in group]
        fate = fates.get(first)
        if first not in has_twin or fate in (_LOCK_NOT_AVAILABLE, _DEADLOCK):
            deferred += [first, *rest]
            continue
        if not isinstance(fate, Scheduled):  # its key was taken before, or in the same moment
            lost.append(first)
        lost += [each for each in rest if each in has_twin]
        deferred += [each for each in rest if each not in has_twin]
    return lost, deferred


def _schedule_firsts(
    conn: sa.Connection, schema: str, ids: Sequence[int], now: str | None
) -> dict[int, Scheduled | str]:
    """Make these rows available, together if possible, else one by one. For each id what it became, or the SQLSTATE."""
    if not ids:
        return {}
    together = _try_schedule(conn, schema, ids, _BATCH_LOCK_TIMEOUT, now)
    if not isinstance(together, str):
        return {each.job_id: each for each in together}
    fates: dict[int, Scheduled | str] = {}
    for job_id in ids:
        alone = _try_schedule(conn, schema, [job_id], _ROW_LOCK_TIMEOUT, now)
        if isinstance(alone, str):
            fates[job_id] = alone
        else:
            fates.update({each.job_id: each for each in alone})
    return fates


def _try_schedule(
    conn: sa.Connection, schema: str, ids: Sequence[int], lock_timeout: str, now: str | None
) -> list[Scheduled] | str:
    """The rows made available, or the SQLSTATE that says why not; the transaction goes on either way."""
    _SET_LOCK_TIMEOUT.execute(conn, schema, timeout=lock_timeout)
    try:
        with conn.begin_nested():
            return _scheduled(_schedule.execute(conn, schema, id=integer_array(ids), now=now))
    except sa.exc.DBAPIError as error:
        code = sqlstate(error)
        if code not in (_LOCK_NOT_AVAILABLE, _DEADLOCK, _UNIQUE_VIOLATION):
            raise
        return code


def _scheduled(rows: Iterable[Any]) -> list[Scheduled]:
    return [Scheduled._make(row) for row in rows]


# -- the statements


def _waiting_and_due(t: Tables) -> list[sa.ColumnElement[bool]]:
    job = t.job.c
    return [
        job.state.in_([t.state(JobState.RETRYABLE), t.state(JobState.SCHEDULED)]),
        job.scheduled_at <= now_param() + later(integer_param("look_ahead")),
    ]


def _enters_index(t: Tables) -> sa.ColumnElement[bool]:
    """Whether becoming available would bring the row into the unique index."""
    job = t.job.c
    unique = sa.and_(job.unique_key.is_not(None), job.unique_states.is_not(None))
    outside = sa.not_(t.in_mask(job.unique_states, job.state))
    inside = t.in_mask(job.unique_states, t.state(JobState.AVAILABLE))
    return sa.case((sa.and_(unique, outside, inside), sa.true()), else_=sa.false())


def _moment() -> sa.ColumnElement[Any]:
    """The very moment, where none is given: a large batch takes a while."""
    return sa.func.coalesce(time_param("now"), catalog.clock_timestamp(), type_=TIMESTAMP)


def _made_available(t: Tables, locked: sa.CTE) -> sa.Executable:
    job = t.job.c
    return (
        sa.update(t.job)
        .values(state=t.state(JobState.AVAILABLE))
        .where(job.id == locked.c.id)
        .returning(job.id, job.queue, us_of(job.scheduled_at) - us_of(_moment()))
    )


@statement
def _schedule_plain(t: Tables) -> sa.Executable:
    job = t.job.c
    locked = (
        sa.select(job.id)
        .where(*_waiting_and_due(t), sa.not_(_enters_index(t)))
        .order_by(job.priority, job.scheduled_at, job.id)
        .limit(integer_param("limit"))
        .with_for_update(skip_locked=True)
        .cte("locked")
    )
    return _made_available(t, locked)


@statement
def _candidates(t: Tables) -> sa.Executable:
    job = t.job.c
    passed = t.job.alias("passed")
    ids = input_rows("given", id=sa.BigInteger())
    keys = (
        sa.select(passed.c.unique_key)
        .select_from(ids.join(passed, passed.c.id == ids.c.id))
        .where(passed.c.unique_key.is_not(None))
    )
    return (
        sa.select(job.id, as_hex(job.unique_key))
        .where(*_waiting_and_due(t), _enters_index(t), job.unique_key.not_in(keys))
        .order_by(job.priority, job.scheduled_at, job.id)
        .limit(integer_param("limit"))
    )


@statement
def _lock(t: Tables) -> sa.Executable:
    """Lock what can be had, and say whether a committed row holds the key."""
    job = t.job.c
    twin = t.job.alias("twin")
    has_twin = sa.exists(
        sa.select(twin.c.id).where(
            twin.c.unique_key == job.unique_key,
            twin.c.unique_key.is_not(None),
            twin.c.unique_states.is_not(None),
            t.in_mask(twin.c.unique_states, twin.c.state),
        )
    )
    given = input_rows("given", id=sa.BigInteger())
    waiting = job.state.in_([t.state(JobState.RETRYABLE), t.state(JobState.SCHEDULED)])
    return (
        sa.select(job.id, has_twin.label("has_twin"))
        .select_from(given.join(t.job, job.id == given.c.id))
        .where(sa.case((sa.and_(waiting, _enters_index(t)), sa.true()), else_=sa.false()))
        .with_for_update(skip_locked=True, of=t.job)
    )


@statement
def _schedule(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger())
    return _made_available(t, sa.select(given.c.id).cte("locked"))


@statement
def _discard(t: Tables) -> sa.Executable:
    job = t.job.c
    given = input_rows("given", id=sa.BigInteger())
    stays_out = sa.not_(t.in_mask(job.unique_states, t.state(JobState.DISCARDED)))
    conflict = sa.cast(sa.literal_column("""'{"unique_key_conflict": "scheduler_discarded"}'"""), pg.JSONB())
    return (
        sa.update(t.job)
        .values(
            state=t.state(JobState.DISCARDED),
            finalized_at=now_param(),
            metadata=job.metadata.op("||")(conflict),
            unique_states=sa.case((stays_out, job.unique_states)),
        )
        .where(job.id == given.c.id)
        .returning(job.id)
    )


_SET_LOCK_TIMEOUT = Statement(
    lambda _: sa.select(catalog.set_config(sa.literal_column("'lock_timeout'"), text_param("timeout"), sa.true()))
)
