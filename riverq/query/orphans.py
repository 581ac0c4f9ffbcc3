"""Which clients are dead, and which running jobs are orphaned by that. Judged in one statement, by the database's time.

A client proves that it lives by a row of `riverq_client`, one per incarnation, whose `seen_at` a thread of its own
keeps fresh; a shared advisory lock on its listener's connection is further evidence. From that:

    dead      seen_at older than ten times the grace, or
              lock_taken, and the lock not held, and seen_at older than the grace
    orphaned  the run's last attempted_by is the id of an incarnation that can have claimed it, and no living
              incarnation of that id had started when the run was claimed

Neither half of the evidence would do alone. The lock goes within milliseconds when a process dies, but with a failover
all locks go at once, while every `seen_at` is fresh: nobody is dead then. A cut cable keeps a lock for hours: the ten
graces end that. A paused process keeps its lock, since the server keeps its connection. An id that was never registered
(Go River's, or a client without riverq's tables) is never judged here; the horizon is all there is for it.

An incarnation can have claimed a run between its start and ten graces after it was last seen. Other runs under its id
are somebody else's: of a Go client that had the id before it or has it now, of a process from before riverq's tables,
or of this same client after the database's clock went back. They are not judged, whatever became of their client.

The lock's key is (`riverq_client`'s oid, the row's id), in the two-part form, so `pg_locks` shows it with
`objsubid = 2`. It is read, never tried: trying it would take it. Reading `pg_locks` needs no right, unless somebody
revoked it; with `read_locks=False` silence alone decides, which errs on the side of the living.

The judge must be awake itself. Every statement that finds or confirms orphans asks that the judging client's own row
be fresh in the same snapshot: a leader that was suspended between its own check and this statement finds nobody dead.

States and races: nothing is written here but the removal of old registry rows. `lock_orphans` is for the transaction
that rescues: it judges again, with a snapshot of its own, and locks the jobs. A client that comes back before that
snapshot is alive in it; one that comes back later than it finds its run taken, as if it had come back after COMMIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobState
from riverq.query.array import integer_array, text_array
from riverq.query.statement import (
    Statement,
    catalog,
    input_rows,
    integer_param,
    later,
    microseconds,
    now_param,
    stamp,
    text_param,
    us_of,
)
from riverq.query.tables import Tables, statement

WITHOUT_LOCK = 10
"""Graces of silence after which a client is dead whatever its lock says."""

OWN_FRESHNESS = 3
"""The judge's own row may be a third of the grace old: two heartbeats."""

REGISTRY_KEPT = timedelta(hours=24)
"""How long the row of a dead incarnation is kept at least."""


class OrphanedRun(NamedTuple):
    """The fence of a running job whose client is dead: that of `riverq.query.job_rescue`."""

    job_id: int
    attempted_at_us: int
    client_id: str


class Judge(NamedTuple):
    """Who judges and by what: the grace of the fleet, the judging client's own incarnation, and whether locks count.

    Without an incarnation there is no judge who is awake, and nobody is dead.
    """

    grace: timedelta
    incarnation: str | None
    read_locks: bool = True


def orphans_get(
    conn: sa.Connection, schema: str, judge: Judge, *, after_id: int = 0, limit: int, now: datetime | None = None
) -> list[OrphanedRun]:
    """At most `limit` orphaned runs of jobs above `after_id`, by job id. Locks nothing."""
    found = _get[judge.read_locks].rows(
        conn, schema, **_judge_params(judge), after_id=after_id, limit=limit, now=stamp(now)
    )
    return [OrphanedRun._make(row) for row in found]


def orphans_lock(
    conn: sa.Connection, schema: str, judge: Judge, *, runs: Sequence[OrphanedRun], now: datetime | None = None
) -> set[int]:
    """Judge `runs` again, lock the jobs of those that are still orphaned, and return their ids.

    Jobs that somebody else has locked are passed over. The locks last as long as the caller's transaction.
    """
    if not runs:
        return set()
    found = _lock[judge.read_locks].rows(conn, schema, **_judge_params(judge), **_fences(runs), now=stamp(now))
    return {row.id for row in found}


def runs_of_living(
    conn: sa.Connection,
    schema: str,
    *,
    grace: timedelta,
    runs: Sequence[tuple[int, int, str | None]],
    now: datetime | None = None,
) -> set[int]:
    """The job ids of those `runs` (job id, attempted_at in µs, client id) whose registered client may live still.

    Locks do not count: who has been heard of within ten graces is given the benefit of the doubt.
    """
    if not runs:
        return set()
    found = _of_living.rows(conn, schema, **_fences(runs), long_silence=_silence(grace), now=stamp(now))
    return {row[0] for row in found}


def registry_forget(conn: sa.Connection, schema: str, *, grace: timedelta, now: datetime | None = None) -> int:
    """Delete the rows of incarnations long dead that no running job names; returns how many.

    Long is a day and ten graces at least. Not earlier, and not while a job names the id: without its row the id would
    be one that was never registered, and its runs would be nobody's to judge.
    """
    kept = max(microseconds(REGISTRY_KEPT), _silence(grace))
    return len(_forget.rows(conn, schema, kept=kept, now=stamp(now)))


def _silence(grace: timedelta) -> int:
    return WITHOUT_LOCK * microseconds(grace)


def _judge_params(judge: Judge) -> dict[str, Any]:
    return {
        "silence": microseconds(judge.grace),
        "long_silence": _silence(judge.grace),
        "own_silence": microseconds(judge.grace) // OWN_FRESHNESS,
        "incarnation": judge.incarnation,
    }


def _fences(runs: Sequence[tuple[int, int, str | None]]) -> dict[str, str]:
    return {
        "id": integer_array([job_id for job_id, _, _ in runs]),
        "us": integer_array([us for _, us, _ in runs]),
        "client_id": text_array([client_id for _, _, client_id in runs]),
    }


# -- the statements


def _clients(t: Tables, alias: str) -> Any:
    """The registry with its tableoid, which is the first half of the lock's key."""
    columns: list[sa.ColumnClause[Any]] = [sa.column(column.name, column.type) for column in t.client.c]
    table = sa.table("riverq_client", *columns, sa.column("tableoid", pg.OID()), schema=t.client.schema)
    return table.alias(alias)


def _silent(client: Any, param: str) -> sa.ColumnElement[bool]:
    silent: sa.ColumnElement[bool] = client.c.seen_at < now_param() - later(integer_param(param))
    return silent


def _held_locks() -> sa.CTE:
    """The proof-of-life locks of this database, of any schema, read once."""
    names = ("locktype", "mode", "granted", "database", "classid", "objid", "objsubid")
    locks = sa.table("pg_locks", *(sa.column(name) for name in names), schema="pg_catalog")
    database = sa.table("pg_database", sa.column("oid"), sa.column("datname"), schema="pg_catalog")
    here = sa.select(database.c.oid).where(database.c.datname == catalog.current_database()).scalar_subquery()
    return (
        sa.select(locks.c.classid, locks.c.objid)
        .where(
            locks.c.locktype == sa.literal_column("'advisory'"),
            locks.c.mode == sa.literal_column("'ShareLock'"),
            locks.c.granted,
            locks.c.database == here,
            locks.c.objsubid == sa.literal_column("2"),
        )
        .cte("held")
        .prefix_with("MATERIALIZED")
    )


def _living(t: Tables, *, read_locks: bool) -> sa.CTE:
    """The incarnations that are not dead."""
    client = _clients(t, "client")
    dead = _silent(client, "long_silence")
    if read_locks:
        held = _held_locks()
        has_lock = sa.exists(
            sa.select(held.c.objid).where(
                held.c.classid == client.c.tableoid, held.c.objid == sa.cast(client.c.id, pg.OID())
            )
        )
        dead = sa.or_(dead, sa.and_(client.c.lock_taken, sa.not_(has_lock), _silent(client, "silence")))
    return sa.select(client.c.client_id, client.c.started_at).where(sa.not_(dead)).cte("living")


def _last_client(t: Tables) -> sa.ColumnElement[str]:
    by = t.job.c.attempted_by
    return by[catalog.cardinality(by)]


def _lives(t: Tables, living: sa.CTE) -> sa.ColumnElement[bool]:
    """Whether the job's run may be at work in a living incarnation."""
    return sa.exists(
        sa.select(living.c.client_id).where(
            living.c.client_id == _last_client(t), living.c.started_at <= t.job.c.attempted_at
        )
    )


def _is_orphaned(t: Tables, *, read_locks: bool) -> sa.ColumnElement[bool]:
    registered, judge = _clients(t, "registered"), _clients(t, "judge")
    known = sa.exists(
        sa.select(registered.c.id).where(
            registered.c.client_id == _last_client(t),
            registered.c.started_at <= t.job.c.attempted_at,
            registered.c.seen_at >= t.job.c.attempted_at - later(integer_param("long_silence")),
        )
    )
    awake = sa.exists(
        sa.select(judge.c.id).where(
            judge.c.incarnation == sa.cast(text_param("incarnation"), pg.UUID()),
            sa.not_(_silent(judge, "own_silence")),
        )
    )
    return sa.and_(known, sa.not_(_lives(t, _living(t, read_locks=read_locks))), awake)


def _orphans(t: Tables, *, read_locks: bool) -> sa.Executable:
    job = t.job.c
    ordinal = job.id + sa.literal_column("0")  # keeps the planner off the primary key, see riverq.query.job_rescue
    return (
        sa.select(job.id, us_of(job.attempted_at), _last_client(t))
        .where(
            job.state == t.state(JobState.RUNNING),
            job.attempted_at.is_not(None),
            ordinal > integer_param("after_id"),
            _is_orphaned(t, read_locks=read_locks),
        )
        .order_by(ordinal)
        .limit(integer_param("limit"))
    )


def _orphans_locked(t: Tables, *, read_locks: bool) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger(), client_id=sa.Text())
    return (
        sa.select(t.job.c.id)
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(t.is_run(given.c.us, given.c.client_id), _is_orphaned(t, read_locks=read_locks))
        .with_for_update(skip_locked=True, of=t.job)
    )


def _both_ways(build: Any) -> dict[bool, Statement]:
    def with_locks(t: Tables) -> sa.Executable:
        statement: sa.Executable = build(t, read_locks=True)
        return statement

    def without_locks(t: Tables) -> sa.Executable:
        statement: sa.Executable = build(t, read_locks=False)
        return statement

    return {True: statement(with_locks), False: statement(without_locks)}


_get = _both_ways(_orphans)
_lock = _both_ways(_orphans_locked)


@statement
def _of_living(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger(), client_id=sa.Text())
    return (
        sa.select(t.job.c.id)
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(t.is_run(given.c.us, given.c.client_id), _lives(t, _living(t, read_locks=False)))
    )


@statement
def _forget(t: Tables) -> sa.Executable:
    client, job = t.client.c, t.job.c
    named = sa.exists(
        sa.select(job.id).where(job.state == t.state(JobState.RUNNING), _last_client(t) == client.client_id)
    )
    return (
        sa.delete(t.client)
        .where(client.seen_at < now_param() - later(integer_param("kept")), sa.not_(named))
        .returning(client.id)
    )
