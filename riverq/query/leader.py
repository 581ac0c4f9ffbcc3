"""The leader's row: bid, renew, resign. Each is bound to a term, (leader_id, elected_at), in the database's time.

A term, not an id, says who leads: two clients may share an id, and one client leads many times.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.notification import Topic, channel
from riverq.query.statement import (
    catalog,
    from_us,
    integer_param,
    later,
    microseconds,
    notified,
    now_param,
    stamp,
    text_param,
    time_param,
    us_of,
)
from riverq.query.tables import Tables, statement


class Leader(NamedTuple):
    """A term: who leads, since when, and until when unless it is renewed. Both times are the database's."""

    leader_id: str
    elected_at: datetime
    expires_at: datetime


def leader_attempt_elect(
    conn: sa.Connection, schema: str, *, leader_id: str, ttl: timedelta, now: datetime | None = None
) -> Leader | None:
    """Bid for a new term of `ttl`. None where somebody leads whose term has not expired, oneself included."""
    result = _elect.execute(conn, schema, leader_id=leader_id, ttl=microseconds(ttl), now=stamp(now))
    return _leader(result.one_or_none())


def leader_attempt_reelect(
    conn: sa.Connection,
    schema: str,
    *,
    leader_id: str,
    elected_at: datetime,
    ttl: timedelta,
    now: datetime | None = None,
) -> Leader | None:
    """Renew the term for another `ttl` from now. None where it is over: expired, resigned or taken."""
    result = _reelect.execute(
        conn, schema, leader_id=leader_id, elected_at=stamp(elected_at), ttl=microseconds(ttl), now=stamp(now)
    )
    return _leader(result.one_or_none())


def leader_resign(conn: sa.Connection, schema: str, *, leader_id: str, elected_at: datetime) -> bool:
    """End the term and tell the others. False, and silence, where it was over already."""
    result = _resign.execute(
        conn,
        schema,
        leader_id=leader_id,
        elected_at=stamp(elected_at),
        channel=channel(schema, Topic.LEADERSHIP),
    )
    return result.one_or_none() is not None


def leader_get(conn: sa.Connection, schema: str) -> Leader | None:
    """The row, expired or not; None where there is none."""
    return _leader(_get.execute(conn, schema).one_or_none())


def leader_current(conn: sa.Connection, schema: str, *, now: datetime | None = None) -> Leader | None:
    """Who leads now by the database's clock; None where nobody does, though a row may be left."""
    return _leader(_current.execute(conn, schema, now=stamp(now)).one_or_none())


def _leader(row: Any) -> Leader | None:
    return None if row is None else Leader(row[0], from_us(row[1]), from_us(row[2]))


def _columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    return [t.leader.c.leader_id, us_of(t.leader.c.elected_at), us_of(t.leader.c.expires_at)]


@statement
def _elect(t: Tables) -> sa.Executable:
    # One statement, so that a bid is atomic wherever it runs. Others see what a delete and an insert would have left.
    insert = pg.insert(t.leader).values(
        name=sa.literal_column("'default'"),
        leader_id=text_param("leader_id"),
        elected_at=now_param(),
        expires_at=now_param() + later(integer_param("ttl")),
    )
    new = insert.excluded
    return insert.on_conflict_do_update(
        index_elements=[t.leader.c.name],
        set_={"leader_id": new.leader_id, "elected_at": new.elected_at, "expires_at": new.expires_at},
        where=t.leader.c.expires_at < now_param(),
    ).returning(*_columns(t))


@statement
def _reelect(t: Tables) -> sa.Executable:
    return (
        sa.update(t.leader)
        .values(expires_at=now_param() + later(integer_param("ttl")))
        .where(_is_term(t), t.leader.c.expires_at >= now_param())
        .returning(*_columns(t))
    )


@statement
def _resign(t: Tables) -> sa.Executable:
    gone = sa.delete(t.leader).where(_is_term(t)).returning(t.leader.c.leader_id).cte("gone")
    payload = catalog.json_build_object(
        sa.literal_column("'leader_id'"),
        gone.c.leader_id,
        sa.literal_column("'action'"),
        sa.literal_column("'resigned'"),
    )
    return sa.select(notified(text_param("channel"), sa.cast(payload, sa.Text())))


@statement
def _get(t: Tables) -> sa.Executable:
    return sa.select(*_columns(t))


@statement
def _current(t: Tables) -> sa.Executable:
    return sa.select(*_columns(t)).where(t.leader.c.expires_at >= now_param())


def _is_term(t: Tables) -> sa.ColumnElement[bool]:
    return sa.and_(t.leader.c.leader_id == text_param("leader_id"), t.leader.c.elected_at == time_param("elected_at"))
