"""The queues' rows: seen, listed, paused, resumed, described. `*` means every queue.

A pause with an end is an intention beside the row: `riverq_queue(name, paused_at, until)`. It holds only while
`river_queue.paused_at` still equals its own: whoever resumes and pauses again, in whatever language, makes a pause of
another time, and the intention is void. The table is riverq's own and may be missing; `own_tables` says whether it is
there, and without it no statement names it.

Locks are taken in one order, the queue's row before the intention and queues by name, so that those who pause, resume
and end pauses at the same time do not deadlock. What is done to a row is decided by the row as it was locked, never by
the statement's older view of it: a pause that waited for a resume's commit pauses all the same.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.errors import ConfigError
from riverq.notification import Topic, channel
from riverq.query.array import text_array
from riverq.query.rows import queue_columns, queue_row
from riverq.query.statement import (
    TIMESTAMP,
    Statement,
    catalog,
    from_us,
    input_rows,
    integer_param,
    jsonb_param,
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
from riverq.queue import Queue

ALL = "*"

PAYLOAD_LIMIT = 8000
"""Bytes; Postgres refuses a NOTIFY of as many, and with it the whole transaction."""


class EndedPauses(NamedTuple):
    """What `queue_end_pauses` did: the queues resumed, and the intentions dropped because they were void."""

    resumed: list[str]
    void: list[str]


def queue_create_or_touch(
    conn: sa.Connection, schema: str, name: str, metadata: str = "{}", *, now: datetime | None = None
) -> Queue:
    """Say that the queue is worked: make its row, or set only `updated_at`. Returns the row, `paused_at` included."""
    return queue_row(_touch.execute(conn, schema, name=name, metadata=metadata, now=stamp(now)).one())


def queue_get(conn: sa.Connection, schema: str, name: str) -> Queue | None:
    """One queue, or None where it does not exist."""
    row = _get.execute(conn, schema, name=name).one_or_none()
    return None if row is None else queue_row(row)


def queue_list(conn: sa.Connection, schema: str, *, limit: int = 100) -> list[Queue]:
    """The first `limit` queues by name, in the order of the bytes, whatever the database's collation."""
    return [queue_row(row) for row in _list.rows(conn, schema, limit=limit)]


def queue_update(
    conn: sa.Connection, schema: str, name: str, metadata: str | None, *, now: datetime | None = None
) -> Queue | None:
    """Replace the metadata, compact JSON, and tell the clients; None leaves it and only touches the row.

    Returns the row as it is then, or None where the queue does not exist. Raises ConfigError, before any statement, for
    metadata that no notification can carry.
    """
    payload = None if metadata is None else metadata_payload(name, metadata)
    statement, given = (_touch_only, {}) if payload is None else (_set_metadata, {"metadata": metadata})
    if payload is not None:
        given |= {"channel": channel(schema, Topic.CONTROL), "payload": payload}
    row = statement.execute(conn, schema, name=name, now=stamp(now), **given).one_or_none()
    return None if row is None else queue_row(row)


def metadata_payload(name: str, metadata: str) -> str:
    """What tells of new metadata. Raises ConfigError where it is too long for NOTIFY."""
    payload = f'{{"action":"metadata_changed","metadata":{metadata},"queue":{_quoted(name)}}}'
    size = len(payload.encode())
    if size >= PAYLOAD_LIMIT:
        raise ConfigError(
            f"expected the metadata of queue {name!r} to fit a notification of less than {PAYLOAD_LIMIT} bytes, "
            f"got: {size} (store large values elsewhere, and their key here)"
        )
    return payload


def queue_pause(
    conn: sa.Connection,
    schema: str,
    name: str,
    *,
    until: datetime | timedelta | None = None,
    own_tables: bool = False,
    now: datetime | None = None,
) -> bool:
    """Pause a queue, or all with `*`, and tell the clients, in one statement. False where the queue does not exist.

    A queue that is paused already keeps its `paused_at`. With `until`, which needs `own_tables`, the pause ends then (a
    timedelta counts from the statement's time); without it, it lasts, and an end that was set before is taken back.
    """
    if until is None:
        found = _switch(_pause, conn, schema, (name, "pause"), now=stamp(now))
        if found and own_tables:
            _forget.rows(conn, schema, name=name)
        return found
    at = stamp(until) if isinstance(until, datetime) else None
    lasting = microseconds(until) if isinstance(until, timedelta) else None
    return _switch(_pause_until, conn, schema, (name, "pause"), now=stamp(now), until=at, lasting=lasting)


def queue_resume(
    conn: sa.Connection, schema: str, name: str, *, own_tables: bool = False, now: datetime | None = None
) -> bool:
    """The opposite of `queue_pause`; a queue that is not paused is not touched."""
    found = _switch(_resume, conn, schema, (name, "resume"), now=stamp(now))
    if found and own_tables:
        _forget.rows(conn, schema, name=name)
    return found


def queue_next_pause_end(conn: sa.Connection, schema: str, *, now: datetime | None = None) -> timedelta | None:
    """How long until the first pause ends, zero or less where one is due; None where none has an end."""
    row: Any = _next_end.execute(conn, schema, now=stamp(now)).one()
    return None if row.until is None else timedelta(microseconds=row.until - row.now)


def queue_pause_ends(conn: sa.Connection, schema: str) -> dict[str, datetime]:
    """When the pauses that have an end, end, by the queue's name; void intentions are left out."""
    rows: Any = _pause_ends.rows(conn, schema)
    return {row[0]: from_us(row[1]) for row in rows}


def queue_end_pauses(conn: sa.Connection, schema: str, *, now: datetime | None = None) -> EndedPauses:
    """Resume the queues whose pause is over, and tell the clients. Needs a READ COMMITTED transaction of its own.

    A queue whose row somebody has locked is left for the next call, so two callers never wait for each other.
    """
    # In two statements: the second one's view is of after the locks, so that it sees an end set in between.
    locked = [row[0] for row in _lock_due.rows(conn, schema, now=stamp(now))]
    resumed: list[str] = []
    void = [row[0] for row in _drop_orphans.rows(conn, schema, now=stamp(now))]
    if locked:
        found = _end.rows(
            conn, schema, queue=text_array(locked), now=stamp(now), channel=channel(schema, Topic.CONTROL)
        )
        resumed = [row.name for row in found if row.resumed]
        void += [row.name for row in found if not row.resumed]
    return EndedPauses(sorted(resumed), sorted(void))


def _switch(statement: Statement, conn: sa.Connection, schema: str, what: tuple[str, str], **given: Any) -> bool:
    name, action = what
    payload = f'{{"action":"{action}","queue":{_quoted(name)}}}'
    result = statement.execute(
        conn, schema, name=name, channel=channel(schema, Topic.CONTROL), payload=payload, **given
    )
    return result.one_or_none() is not None


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


# -- the statements


@statement
def _touch(t: Tables) -> sa.Executable:
    insert = pg.insert(t.queue).values(
        name=text_param("name"), metadata=jsonb_param("metadata"), created_at=now_param(), updated_at=now_param()
    )
    return insert.on_conflict_do_update(
        index_elements=[t.queue.c.name], set_={"updated_at": insert.excluded.updated_at}
    ).returning(*queue_columns(t))


@statement
def _get(t: Tables) -> sa.Executable:
    return sa.select(*queue_columns(t)).where(t.queue.c.name == text_param("name"))


@statement
def _list(t: Tables) -> sa.Executable:
    by_bytes = t.queue.c.name.collate("C")
    return sa.select(*queue_columns(t)).order_by(by_bytes).limit(integer_param("limit"))


@statement
def _touch_only(t: Tables) -> sa.Executable:
    named = t.queue.c.name == text_param("name")
    return sa.update(t.queue).values(updated_at=now_param()).where(named).returning(*queue_columns(t))


@statement
def _set_metadata(t: Tables) -> sa.Executable:
    named = t.queue.c.name == text_param("name")
    values = {"metadata": jsonb_param("metadata"), "updated_at": now_param()}
    told = _notified(text_param("payload"))
    return sa.update(t.queue).values(values).where(named).returning(*queue_columns(t), told)


@statement
def _pause(t: Tables) -> sa.Executable:
    target = _target(t)
    return _told(target).add_cte(_changed(t, target, target.c.paused_at.is_(None), now_param()))


@statement
def _pause_until(t: Tables) -> sa.Executable:
    target = _target(t)
    end = sa.func.coalesce(time_param("until"), _statement_now() + later(integer_param("lasting")), type_=TIMESTAMP)
    since = sa.func.coalesce(target.c.paused_at, now_param(), type_=TIMESTAMP)
    insert = pg.insert(t.timed_pause).from_select(
        ["name", "paused_at", "until"], sa.select(target.c.name, since, end).select_from(target)
    )
    intended = insert.on_conflict_do_update(
        index_elements=[t.timed_pause.c.name],
        set_={"paused_at": insert.excluded.paused_at, "until": insert.excluded.until},
    ).returning(t.timed_pause.c.name)
    changed = _changed(t, target, target.c.paused_at.is_(None), now_param())
    return _told(target).add_cte(changed, intended.cte("intended"))


@statement
def _resume(t: Tables) -> sa.Executable:
    target = _target(t)
    running = sa.cast(sa.null(), TIMESTAMP)
    return _told(target).add_cte(_changed(t, target, target.c.paused_at.is_not(None), running))


@statement
def _forget(t: Tables) -> sa.Executable:
    """A statement of its own, after the row was locked: an end that was set while one waited for the lock is seen."""
    named = sa.or_(_is_all(), t.timed_pause.c.name == text_param("name"))
    return sa.delete(t.timed_pause).where(named).returning(t.timed_pause.c.name)


def _target(t: Tables) -> sa.CTE:
    """The queues that the name stands for, locked by name, as they are once locked."""
    named = sa.or_(_is_all(), t.queue.c.name == text_param("name"))
    rows = sa.select(t.queue.c.name, t.queue.c.paused_at).where(named).order_by(t.queue.c.name)
    return rows.with_for_update().cte("target")


def _changed(t: Tables, target: sa.CTE, needs: sa.ColumnElement[bool], paused_at: sa.ColumnElement[Any]) -> sa.CTE:
    return (
        sa.update(t.queue)
        .values(paused_at=paused_at, updated_at=now_param())
        .where(t.queue.c.name == target.c.name, needs)
        .returning(t.queue.c.name)
        .cte("changed")
    )


def _told(target: sa.CTE) -> sa.Select[Any]:
    """Notify wherever the name stands for something; no row otherwise."""
    found = sa.exists(sa.select(target.c.name).select_from(target))
    return sa.select(_notified(text_param("payload"))).where(sa.or_(_is_all(), found))


def _is_all() -> sa.ColumnElement[bool]:
    return text_param("name") == sa.literal_column(f"'{ALL}'")


def _notified(payload: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return notified(text_param("channel"), payload).label("notified")


def _statement_now() -> sa.ColumnElement[datetime]:
    """Not the transaction's: a pause of a minute is not over when a transaction of ten minutes commits it."""
    return sa.func.coalesce(time_param("now"), catalog.statement_timestamp(), type_=TIMESTAMP)


@statement
def _next_end(t: Tables) -> sa.Executable:
    first = us_of(sa.func.min(t.timed_pause.c.until), nullable=True)
    return sa.select(first.label("until"), us_of(now_param()).label("now"))


@statement
def _pause_ends(t: Tables) -> sa.Executable:
    queue, pause = t.queue.c, t.timed_pause.c
    is_valid = sa.and_(pause.name == queue.name, pause.paused_at == queue.paused_at)
    return sa.select(pause.name, us_of(pause.until)).join_from(t.queue, t.timed_pause, is_valid)


@statement
def _lock_due(t: Tables) -> sa.Executable:
    joined = t.queue.join(t.timed_pause, t.timed_pause.c.name == t.queue.c.name)
    return (
        sa.select(t.queue.c.name)
        .select_from(joined)
        .where(t.timed_pause.c.until <= now_param())
        .order_by(t.queue.c.name)
        .with_for_update(of=t.queue, skip_locked=True)
    )


@statement
def _end(t: Tables) -> sa.Executable:
    given = input_rows("given", queue=sa.Text())
    over = (
        sa.delete(t.timed_pause)
        .where(t.timed_pause.c.name == given.c.queue, t.timed_pause.c.until <= now_param())
        .returning(t.timed_pause.c.name, t.timed_pause.c.paused_at)
        .cte("over")
    )
    resumed = (
        sa.update(t.queue)
        .values(paused_at=sa.cast(sa.null(), TIMESTAMP), updated_at=now_param())
        .where(t.queue.c.name == over.c.name, t.queue.c.paused_at == over.c.paused_at)
        .returning(t.queue.c.name, _notified(_resume_payload(t.queue.c.name)))
        .cte("resumed")
    )
    joined = over.outerjoin(resumed, resumed.c.name == over.c.name)
    return sa.select(over.c.name, resumed.c.name.is_not(None).label("resumed")).select_from(joined)


@statement
def _drop_orphans(t: Tables) -> sa.Executable:
    """Intentions for queues that were deleted."""
    alive = sa.exists(sa.select(t.queue.c.name).where(t.queue.c.name == t.timed_pause.c.name))
    gone = sa.delete(t.timed_pause).where(t.timed_pause.c.until <= now_param(), sa.not_(alive))
    return gone.returning(t.timed_pause.c.name)


def _resume_payload(name: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    before: sa.ColumnElement[str] = sa.literal_column("""'{"action":"resume","queue":'""")
    return catalog.concat(before, sa.cast(catalog.to_json(name), sa.Text()), sa.literal_column("'}'"), type_=sa.Text())
