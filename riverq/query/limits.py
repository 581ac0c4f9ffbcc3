"""How a statement of ours is made to end in time, on the server itself.

A thread that waits for a statement cannot be cancelled, and a statement that the client has stopped waiting for still
works, holds its locks and its connection. There are two ways, neither of which leaves anything in the session, where a
pooler in transaction mode would hand it to somebody else:

- `statement_timeout_set` and `transaction_limit_set`, for statements in a transaction.
- `statement_cancel`, for one that must not run in a transaction and therefore cannot have a limit of its own. It starts
  with a mark (`marked`) that nobody else's has, and is found by it in `pg_stat_activity`. The role sees its own
  statements there, whether a pooler is in between or not.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from riverq.query.statement import Statement, catalog, text_param

_MILLISECOND = timedelta(milliseconds=1)
_LONGEST = 2**31 - 1
"""Milliseconds, 24 days: the most that the setting takes."""


def statement_timeout_set(conn: sa.Connection, schema: str, timeout: timedelta) -> None:
    """From here to the end of the transaction the server ends each statement after `timeout`, with 57014.

    It replaces the role's or the database's own limit, be it shorter or longer. At least 1 ms, as 0 would be none.
    """
    _SET_TIMEOUT.execute(conn, schema, timeout=_setting(timeout))


def transaction_limit_set(conn: sa.Connection, schema: str, limit: timedelta) -> None:
    """The same, and the server also ends the session if the client is silent for `limit` in this transaction.

    Otherwise a client that is stopped, or whose packets go nowhere, would hold its locks for hours.
    """
    _SET_LIMIT.execute(conn, schema, timeout=_setting(limit))


def _setting(timeout: timedelta) -> str:
    return str(min(max(timeout // _MILLISECOND, 1), _LONGEST))


def marked(mark: str, text: str) -> str:
    """`text` so that `statement_cancel` finds it. A mark has letters, digits and spaces only."""
    return f"/* {mark} */ {text}"


def statement_cancel(conn: sa.Connection, schema: str, mark: str) -> int:
    """Ask the server to end the statement with this mark; returns how many were asked, 0 where none runs.

    The asking returns before the statement has ended. Behind a pooler in transaction mode there is a moment, inside
    this one statement, in which the marked one may end and somebody else's take its place.
    """
    asked: int = _CANCEL.execute(conn, schema, start=marked(mark, "")).scalar_one()
    return asked


def _constant(text: str) -> sa.ColumnElement[Any]:
    return sa.literal_column(f"'{text}'")


_ACTIVITY = sa.table("pg_stat_activity", sa.column("pid"), sa.column("query"), sa.column("state"), schema="pg_catalog")

_SET_TIMEOUT = Statement(
    lambda _: sa.select(catalog.set_config(_constant("statement_timeout"), text_param("timeout"), sa.true()))
)

_SET_LIMIT = Statement(
    lambda _: sa.select(
        *(
            catalog.set_config(_constant(name), text_param("timeout"), sa.true()).label(name)
            for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        )
    )
)

_CANCEL = Statement(
    lambda _: sa.select(catalog.count(sa.literal_column("1")).filter(catalog.pg_cancel_backend(_ACTIVITY.c.pid))).where(
        catalog.starts_with(sa.cast(_ACTIVITY.c.query, sa.Text()), text_param("start")),
        _ACTIVITY.c.state == _constant("active"),
        _ACTIVITY.c.pid != catalog.pg_backend_pid(),
    )
)
