"""Saves how far a running job has come, in the caller's transaction, and hears what becomes of that transaction.

The merge carries the fence, so a run that was lost saves nothing. It waits for whoever has the row locked as long as
the caller's own settings allow, and leaves the row locked until the caller's transaction ends; completions, claims and
rescues of others pass over a locked row. Doing it twice changes nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import sqlalchemy as sa

from riverq.query.statement import integer_param, jsonb_param, text_param
from riverq.query.tables import Tables, statement
from riverq.state import Run


def job_save_step(conn: sa.Connection, schema: str, *, client_id: str, run: Run, metadata: str) -> bool:
    """Merge `metadata` (an encoded object) into the row of a run, which goes on. False: the run is lost."""
    result = _save_step.execute(
        conn, schema, client_id=client_id, id=run.job_id, us=run.attempted_at_us, metadata=metadata
    )
    return result.one_or_none() is not None


@statement
def _save_step(t: Tables) -> sa.Executable:
    return (
        sa.update(t.job)
        .values(metadata=t.job.c.metadata.op("||")(jsonb_param("metadata")))
        .where(t.job.c.id == integer_param("id"), t.is_run(integer_param("us"), text_param("client_id")))
        .returning(t.job.c.id)
    )


class Fate(Enum):
    """What SQLAlchemy has told of a transaction. Only `ROLLED_BACK` is certain: a COMMIT may fail after it was told."""

    OPEN = "open"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"


_COMMITS = ("commit", "commit_twophase", "prepare_twophase")
_ROLLBACKS = ("rollback",)


class TransactionWatch:
    """Hears how `conn`'s present transaction ends. Savepoints, and SQL that says COMMIT itself, are not heard of."""

    def __init__(self, conn: sa.Connection) -> None:
        self.conn = conn
        self.fate = Fate.OPEN
        self.reopen()
        for name in _COMMITS:
            sa.event.listen(conn, name, self._committed)
        for name in _ROLLBACKS:
            sa.event.listen(conn, name, self._rolled_back)

    def reopen(self) -> None:
        """Watch the transaction that `conn` is in now."""
        raw: Any = self.conn.connection.dbapi_connection
        # In AUTOCOMMIT what was written is there; SQLAlchemy tells of rollbacks all the same.
        self.fate = Fate.COMMITTED if getattr(raw, "autocommit", False) else Fate.OPEN

    def close(self) -> None:
        """Hear no more."""
        for name in _COMMITS:
            sa.event.remove(self.conn, name, self._committed)
        for name in _ROLLBACKS:
            sa.event.remove(self.conn, name, self._rolled_back)

    def _committed(self, *_: object) -> None:
        self._end(Fate.COMMITTED)

    def _rolled_back(self, *_: object) -> None:
        self._end(Fate.ROLLED_BACK)

    def _end(self, fate: Fate) -> None:
        """The first word counts: a COMMIT that fails is told of twice, and nobody knows then."""
        if self.fate is Fate.OPEN:
            self.fate = fate
