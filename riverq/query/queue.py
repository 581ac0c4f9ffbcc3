"""The queues' rows: seen, paused, resumed. `*` means every queue."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.notification import Topic, channel
from riverq.query.rows import queue_columns, queue_row
from riverq.query.statement import TIMESTAMP, catalog, jsonb_param, now_param, stamp, text_param
from riverq.query.tables import Tables, statement
from riverq.queue import Queue

ALL = "*"


def queue_create_or_touch(
    conn: sa.Connection, schema: str, name: str, metadata: str = "{}", *, now: datetime | None = None
) -> Queue:
    """Say that the queue is worked: make its row, or set only `updated_at`. Returns the row, `paused_at` included."""
    return queue_row(_touch.execute(conn, schema, name=name, metadata=metadata, now=stamp(now)).one())


def queue_get(conn: sa.Connection, schema: str, name: str) -> Queue | None:
    """One queue, or None where it does not exist."""
    row = _get.execute(conn, schema, name=name).one_or_none()
    return None if row is None else queue_row(row)


def queue_pause(conn: sa.Connection, schema: str, name: str, *, now: datetime | None = None) -> bool:
    """Pause a queue, or all with `*`, and tell the clients, in one statement. False where the queue does not exist.

    A queue that is paused already keeps its `paused_at`.
    """
    return _switch(conn, schema, name, "pause", now)


def queue_resume(conn: sa.Connection, schema: str, name: str, *, now: datetime | None = None) -> bool:
    """The opposite of `queue_pause`; a queue that is not paused is not touched."""
    return _switch(conn, schema, name, "resume", now)


def _switch(conn: sa.Connection, schema: str, name: str, action: str, now: datetime | None) -> bool:
    payload = json.dumps({"action": action, "queue": name}, separators=(",", ":"), ensure_ascii=False)
    result = (_pause if action == "pause" else _resume).execute(
        conn,
        schema,
        name=name,
        now=stamp(now),
        channel=channel(schema, Topic.CONTROL),
        payload=payload,
    )
    return result.one_or_none() is not None


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
def _pause(t: Tables) -> sa.Executable:
    return _switched(t, t.queue.c.paused_at.is_(None), now_param())


@statement
def _resume(t: Tables) -> sa.Executable:
    return _switched(t, t.queue.c.paused_at.is_not(None), sa.cast(sa.null(), TIMESTAMP))


def _switched(t: Tables, needs: sa.ColumnElement[bool], paused_at: sa.ColumnElement[Any]) -> sa.Executable:
    """Change those that need it and notify wherever the name stands for something; no row otherwise."""
    everything = text_param("name") == sa.literal_column(f"'{ALL}'")
    named = sa.or_(everything, t.queue.c.name == text_param("name"))
    # In one order, so that two who pause everything do not deadlock.
    target = sa.select(t.queue.c.name).where(named).order_by(t.queue.c.name).with_for_update().cte("target")
    changed = (
        sa.update(t.queue)
        .values(paused_at=paused_at, updated_at=now_param())
        .where(t.queue.c.name == target.c.name, needs)
        .returning(t.queue.c.name)
        .cte("changed")
    )
    notified = sa.cast(catalog.pg_notify(text_param("channel"), text_param("payload")), sa.Text())
    found = sa.exists(sa.select(target.c.name).select_from(target))
    return sa.select(notified).where(sa.or_(everything, found)).add_cte(changed)
