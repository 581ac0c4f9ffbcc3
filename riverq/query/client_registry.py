"""The registry of living clients: one row of `riverq_client` per incarnation, and the lock that goes with it.

An incarnation is one run of one client. Its row is written before its first claim, touched by its heartbeat and, after
a clean end, deleted. A run is judged by these rows (`attempted_by` names the client, `started_at` tells which
incarnation it can be), so a row that is written again keeps the `started_at` that the first one had.

The lock is a *shared*, session-level advisory lock of the two-key form, held on the listener's connection:

    first key     '<schema>.riverq_client'::regclass::oid::int4   (`pg_locks.classid` shows the table's oid itself)
    second key    riverq_client.id                                (`pg_locks.objid`)
    pg_locks      locktype = 'advisory', mode = 'ShareLock', objsubid = 2, database = the current one's oid

It is read through `pg_locks`, never by trying to take it. The table's oid is looked up without touching the table: a
migration that has it locked must not hold up the connection that hears notifications.

All times are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobState
from riverq.query.statement import (
    catalog,
    from_us,
    integer_param,
    later,
    microseconds,
    now_param,
    stamp,
    text_param,
    time_param,
    us_of,
)
from riverq.query.tables import Tables, statement

# Named parameters, of which there are none, so that a `%` in a schema's name is not doubled.
_PLAIN = pg.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy left it untyped
_PROBES = 3


class Registered(NamedTuple):
    """An incarnation's row: its id, which is also the lock's second key, and since when it lives."""

    id: int
    started_at: datetime


class Twin(NamedTuple):
    """Another incarnation of the same client id, and how long ago it was seen."""

    started_at: datetime
    seen_ago: timedelta


def client_register(
    conn: sa.Connection,
    schema: str,
    *,
    client_id: str,
    incarnation: str,
    started_at: datetime | None = None,
    now: datetime | None = None,
) -> Registered:
    """Write the row of an incarnation (a UUID as text). With `started_at` for one whose row somebody deleted."""
    result = _register.execute(
        conn, schema, client_id=client_id, incarnation=incarnation, started_at=stamp(started_at), now=stamp(now)
    )
    row: Any = result.one()
    return Registered(row[0], from_us(row[1]))


def client_heartbeat(
    conn: sa.Connection, schema: str, *, row_id: int, lock_taken: bool | None = None, now: datetime | None = None
) -> datetime | None:
    """Say that the incarnation lives, and whether its lock was taken (None: as before). None where the row is gone."""
    taken = None if lock_taken is None else str(lock_taken).lower()
    row: Any = _heartbeat.execute(conn, schema, row_id=row_id, lock_taken=taken, now=stamp(now)).one_or_none()
    return None if row is None else from_us(row[0])


def client_unregister(conn: sa.Connection, schema: str, *, client_id: str, incarnation: str) -> bool:
    """Delete the incarnation's row; for a clean end only, because rows that stay are what its runs are judged by.

    False, and the row stays, where a job still runs under this id: the answer to its claim may have been lost, and
    without the row it would be nobody's to judge.
    """
    return bool(_unregister.rows(conn, schema, client_id=client_id, incarnation=incarnation))


def client_living_twins(
    conn: sa.Connection,
    schema: str,
    *,
    client_id: str,
    incarnation: str,
    grace: timedelta,
    now: datetime | None = None,
) -> list[Twin]:
    """Other incarnations of this id that were seen within `grace`, the last seen first."""
    found: Sequence[Any] = _living_twins.rows(
        conn, schema, client_id=client_id, incarnation=incarnation, grace=microseconds(grace), now=stamp(now)
    )
    return [Twin(from_us(row[0]), timedelta(microseconds=max(0, row[1]))) for row in found]


# -- for the listener's connection: text without parameters, whose one value is text


def lock_text(schema: str, row_id: int) -> str:
    """Take the incarnation's lock for as long as the session lives: `true`, or `false` at once. Never waits."""
    table = ".".join(_PLAIN.identifier_preparer.quote_identifier(name) for name in (schema, "riverq_client"))
    regclass = sa.cast(_quoted(table), pg.REGCLASS())
    key = sa.cast(sa.cast(regclass, pg.OID()), sa.Integer())
    return _text(catalog.pg_try_advisory_lock_shared(key, sa.literal_column(str(int(row_id)))))


def unlock_text() -> str:
    """Let go of every advisory lock of the session: before it takes the lock of another row."""
    return _text(catalog.pg_advisory_unlock_all())


def keepalives_text(within: timedelta) -> str:
    """Let the server notice within about `within` that this session's client is gone: how many settings were set.

    Keepalives ask a peer that is silent while nothing is under way; a suspended client's kernel answers them. With
    something unanswered under way they do not ask, and `tcp_user_timeout` is no help: it also ends a session whose
    client is alive and does not read, as one that is suspended while a busy fleet notifies it. So that is off, whatever
    the server's own setting, and so is `idle_session_timeout`, since a suspended client does not ping. On a Unix socket
    the server accepts the settings and ignores them: there the kernel tells it at once. Behind a pooler they are about
    the pooler's connection.
    """
    probe = max(1, int(within.total_seconds()) // (2 + _PROBES))
    idle = max(1, int(within.total_seconds()) - probe * _PROBES)
    values = {
        "tcp_keepalives_idle": str(idle),
        "tcp_keepalives_interval": str(probe),
        "tcp_keepalives_count": str(_PROBES),
        "tcp_user_timeout": "0",
        "idle_session_timeout": "0",
    }
    settings = sa.table("pg_settings", sa.column("name", sa.Text), schema="pg_catalog")
    value = sa.case(*((settings.c.name == _quoted(name), _quoted(text)) for name, text in values.items()))
    count = catalog.count(catalog.set_config(settings.c.name, value, sa.false()))
    return _text(count, settings.c.name.in_([_quoted(name) for name in values]))


def _text(value: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]) -> str:
    return str(sa.select(sa.cast(value, sa.Text())).where(*where).compile(dialect=_PLAIN))


def _quoted(text: str) -> sa.ColumnElement[str]:
    """A constant that reads the same whatever `standard_conforming_strings` is."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return sa.literal_column(f"E'{escaped}'" if "\\" in text else f"'{escaped}'", sa.Text())


# -- the statements


@statement
def _register(t: Tables) -> sa.Executable:
    c = t.client.c
    return (
        pg.insert(t.client)
        .values(
            client_id=text_param("client_id"),
            incarnation=sa.cast(text_param("incarnation"), sa.Uuid()),
            started_at=sa.func.coalesce(time_param("started_at"), now_param()),
            seen_at=now_param(),
            lock_taken=sa.false(),
        )
        .returning(c.id, us_of(c.started_at))
    )


@statement
def _heartbeat(t: Tables) -> sa.Executable:
    c = t.client.c
    taken = sa.func.coalesce(sa.cast(text_param("lock_taken"), sa.Boolean()), c.lock_taken)
    return (
        sa.update(t.client)
        .values(seen_at=now_param(), lock_taken=taken)
        .where(c.id == integer_param("row_id"))
        .returning(us_of(c.seen_at))
    )


@statement
def _unregister(t: Tables) -> sa.Executable:
    c, job = t.client.c, t.job.c
    last_client = job.attempted_by[catalog.cardinality(job.attempted_by)]
    named = sa.exists(sa.select(job.id).where(job.state == t.state(JobState.RUNNING), last_client == c.client_id))
    return (
        sa.delete(t.client)
        .where(
            c.client_id == text_param("client_id"),
            c.incarnation == sa.cast(text_param("incarnation"), sa.Uuid()),
            sa.not_(named),
        )
        .returning(c.id)
    )


@statement
def _living_twins(t: Tables) -> sa.Executable:
    c = t.client.c
    return (
        sa.select(us_of(c.started_at), us_of(now_param()) - us_of(c.seen_at))
        .where(
            c.client_id == text_param("client_id"),
            c.incarnation != sa.cast(text_param("incarnation"), sa.Uuid()),
            c.seen_at >= now_param() - later(integer_param("grace")),
        )
        .order_by(c.seen_at.desc())
    )
