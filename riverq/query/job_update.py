"""Writing on a job from outside its run: its output, which is one key of its metadata.

The key is merged into what the row has when it is written, in whatever state the job is, and by whoever asks. A run
that is under way merges its own metadata when it ends; of an output written by both, the later write is kept. Nobody is
told: what is written here changes nothing about who may claim the job.

A run that shows its own output before it ends is the exception: it carries the fence. Once another run of the job has
begun, the output is that one's, and one that comes late must not replace it. The state does not matter: a run that has
completed in the caller's transaction, or was rescued and not yet claimed again, is still the last.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from riverq.errors import JobRunLostError
from riverq.job import JobRow
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import at_us, catalog, integer_param, jsonb_param, text_param
from riverq.query.tables import Tables, statement
from riverq.state import Run


def job_update(conn: sa.Connection, schema: str, job_id: int, *, metadata: str | None = None) -> JobRow | None:
    """Merge `metadata`, an encoded object, and return the row as it is then; None where there is no such job.

    Without `metadata` nothing is written, but the row is locked as if: it stays as returned until the transaction ends.
    """
    if metadata is None:
        row = _lock.execute(conn, schema, id=job_id).one_or_none()
    else:
        row = _merge.execute(conn, schema, id=job_id, metadata=metadata).one_or_none()
    return None if row is None else job_row(row)


def job_update_by_run(conn: sa.Connection, schema: str, *, client_id: str, run: Run, metadata: str) -> JobRow | None:
    """The same for what a run writes on its own job; None where the job is gone.

    Raises JobRunLostError where another run has begun since; nothing is changed then.
    """
    row = _merge_by_run.execute(
        conn, schema, client_id=client_id, id=run.job_id, us=run.attempted_at_us, metadata=metadata
    ).one_or_none()
    if row is not None:
        return job_row(row)
    if _exists.execute(conn, schema, id=run.job_id).one_or_none() is None:
        return None
    raise JobRunLostError(run.job_id, "its output cannot be stored, for another run has begun since")


@statement
def _merge(t: Tables) -> sa.Executable:
    changed: sa.Executable = _merged(t)
    return changed


@statement
def _merge_by_run(t: Tables) -> sa.Executable:
    job = t.job.c
    last = job.attempted_by[catalog.cardinality(job.attempted_by)]
    changed: sa.Executable = _merged(t).where(
        job.attempted_at == at_us(integer_param("us")), last == text_param("client_id")
    )
    return changed


def _merged(t: Tables) -> Any:
    merged = t.job.c.metadata.op("||")(jsonb_param("metadata"))
    changed = sa.update(t.job).values(metadata=merged).where(t.job.c.id == integer_param("id"))
    return changed.returning(*job_columns(t))


@statement
def _lock(t: Tables) -> sa.Executable:
    return sa.select(*job_columns(t)).where(t.job.c.id == integer_param("id")).with_for_update()


@statement
def _exists(t: Tables) -> sa.Executable:
    return sa.select(t.job.c.id).where(t.job.c.id == integer_param("id"))
