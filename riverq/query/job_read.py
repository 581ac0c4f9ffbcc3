"""Reading jobs without touching them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from riverq.job import JobRow, JobState
from riverq.query.array import integer_array
from riverq.query.rows import as_text, job_columns, job_row
from riverq.query.statement import input_rows, text_param
from riverq.query.tables import Tables, statement
from riverq.state import Run


class RunStatus(NamedTuple):
    """Where the job of a run stands. `is_mine`: it is still running as this run.

    The run is cancelled where `cancel_mark` differs from the one in its `Run`.
    """

    job_id: int
    is_mine: bool
    state: JobState
    cancel_mark: str | None


def job_run_status(conn: sa.Connection, schema: str, *, client_id: str, runs: Sequence[Run]) -> dict[int, RunStatus]:
    """What became of these runs, by job id; deleted jobs are missing. Waits for nobody's lock."""
    rows = _run_status.rows(
        conn,
        schema,
        client_id=client_id,
        id=integer_array([run.job_id for run in runs]),
        us=integer_array([run.attempted_at_us for run in runs]),
    )
    return {row.id: RunStatus(row.id, row.is_mine, JobState(row.state), row.cancel_mark) for row in rows}


def job_get_by_id(conn: sa.Connection, schema: str, job_id: int) -> JobRow | None:
    """One job, or None where it does not exist."""
    found = job_get_by_id_many(conn, schema, [job_id])
    return found[0] if found else None


def job_get_by_id_many(conn: sa.Connection, schema: str, ids: Sequence[int]) -> list[JobRow]:
    """The jobs that exist, by ascending id."""
    return [job_row(row) for row in _get_by_id.rows(conn, schema, id=integer_array(set(ids)))]


@statement
def _run_status(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger())
    return sa.select(
        t.job.c.id,
        t.is_run(given.c.us, text_param("client_id")).label("is_mine"),
        as_text(t.job.c.state).label("state"),
        t.cancel_mark().label("cancel_mark"),
    ).select_from(given.join(t.job, t.job.c.id == given.c.id))


@statement
def _get_by_id(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger())
    joined = given.join(t.job, t.job.c.id == given.c.id)
    return sa.select(*job_columns(t)).select_from(joined).order_by(t.job.c.id)
