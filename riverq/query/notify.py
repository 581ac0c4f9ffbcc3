"""NOTIFY, in the caller's transaction: nothing is heard before it commits, or ever if it does not.

Where the server has no NOTIFY nothing is sent, and clients poll for what they would have heard.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from riverq.notification import Topic, channel
from riverq.query.array import text_array
from riverq.query.statement import Statement, array_param, notified, server_of, text_param


def notify_many(conn: sa.Connection, schema: str, topic: Topic, payloads: Sequence[str]) -> bool:
    """Send every payload on the topic's channel. False where nothing was sent, see `can_notify`."""
    if not payloads or not can_notify(conn):
        return False
    _notify_statement.execute(conn, schema, channel=channel(schema, topic), payload=text_array(payloads)).all()
    return True


def notify_raw(conn: sa.Connection, schema: str, channel: str, payload: str) -> None:
    """Send one payload on any channel: for probing whether LISTEN is delivered."""
    _notify_statement.execute(conn, schema, channel=channel, payload=text_array([payload])).all()


def can_notify(conn: sa.Connection) -> bool:
    """Whether the transaction can NOTIFY: a two-phase one could not be prepared then; polling finds its jobs."""
    return has_notify(conn) and not in_two_phases(conn)


def has_notify(conn: sa.Connection) -> bool:
    """Whether the server has NOTIFY at all."""
    return server_of(conn.dialect).listen_notify


def in_two_phases(conn: sa.Connection) -> bool:
    """Whether the transaction may be prepared for a two-phase commit."""
    return isinstance(conn.get_transaction(), sa.TwoPhaseTransaction)


def _notify(_: str) -> sa.Executable:
    payload = sa.func.unnest(array_param("payload", sa.Text())).column_valued("payload")
    return sa.select(notified(text_param("channel"), payload))


_notify_statement = Statement(_notify)
