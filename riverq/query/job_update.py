"""Writing on a job from outside its run: its output, which is one key of its metadata.

The key is merged into what the row has when it is written, in whatever state the job is, and by whoever asks. A run
that is under way merges its own metadata when it ends; of an output written by both, the later write is kept. Nobody is
told: what is written here changes nothing about who may claim the job.
"""

from __future__ import annotations

import sqlalchemy as sa

from riverq.job import JobRow
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import integer_param, jsonb_param
from riverq.query.tables import Tables, statement


def job_update(conn: sa.Connection, schema: str, job_id: int, *, metadata: str | None = None) -> JobRow | None:
    """Merge `metadata`, an encoded object, and return the row as it is then; None where there is no such job.

    Without `metadata` nothing is written, but the row is locked as if: it stays as returned until the transaction ends.
    """
    if metadata is None:
        row = _lock.execute(conn, schema, id=job_id).one_or_none()
    else:
        row = _merge.execute(conn, schema, id=job_id, metadata=metadata).one_or_none()
    return None if row is None else job_row(row)


@statement
def _merge(t: Tables) -> sa.Executable:
    merged = t.job.c.metadata.op("||")(jsonb_param("metadata"))
    changed = sa.update(t.job).values(metadata=merged).where(t.job.c.id == integer_param("id"))
    return changed.returning(*job_columns(t))


@statement
def _lock(t: Tables) -> sa.Executable:
    return sa.select(*job_columns(t)).where(t.job.c.id == integer_param("id")).with_for_update()
