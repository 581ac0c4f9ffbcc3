"""What a statement needs that may bring a job into the unique index.

A row is in the index only while its state is in its own mask, so a change of state can bring it in, and meet another
job there. It may also meet one that nobody has committed yet: no look at the table can see that, and the statement
waits until that transaction ends. So such a statement runs inside a savepoint, and its failure leaves the caller's
transaction as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.statement import Statement
from riverq.query.tables import Tables

UNIQUE_VIOLATION = "23505"


def enters_index(t: Tables, state: JobState) -> sa.ColumnElement[bool]:
    """Whether having this state would bring the row into the unique index."""
    job = t.job.c
    unique = sa.and_(job.unique_key.is_not(None), job.unique_states.is_not(None))
    outside = sa.not_(t.in_mask(job.unique_states, job.state))
    inside = t.in_mask(job.unique_states, t.state(state))
    return sa.case((sa.and_(unique, outside, inside), sa.true()), else_=sa.false())


@contextmanager
def savepoint(conn: sa.Connection, schema: str) -> Iterator[None]:
    """Undo what fails within, and nothing else of the caller's transaction.

    In AUTOCOMMIT it does nothing: there an error spoils nothing but its own statement. Where the connection broke,
    there is nothing to go back to.
    """
    raw: Any = conn.connection.dbapi_connection
    if raw.autocommit:
        yield
        return
    _SAVEPOINT.execute(conn, schema)
    try:
        yield
    except sa.exc.DBAPIError as error:
        if not error.connection_invalidated:
            _ROLLBACK.execute(conn, schema)
            _RELEASE.execute(conn, schema)
        raise
    _RELEASE.execute(conn, schema)


# Not SQLAlchemy's own: on a connection that the application set to stream results, it declares a cursor for SAVEPOINT.
_SAVEPOINT = Statement(lambda _: sa.text("SAVEPOINT riverq_attempt"))
_ROLLBACK = Statement(lambda _: sa.text("ROLLBACK TO SAVEPOINT riverq_attempt"))
_RELEASE = Statement(lambda _: sa.text("RELEASE SAVEPOINT riverq_attempt"))
