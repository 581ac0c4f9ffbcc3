from __future__ import annotations

import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.job_read import RunStatus, job_get_by_id, job_get_by_id_many, job_run_status
from riverq.state import Run
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, ME, Caller, Table


def test_jobs_by_id(call: Caller, table: Table) -> None:
    first, second = table.add(kind="a"), table.add(kind="b")
    assert [row.kind for row in call(job_get_by_id_many, [second, 10**9, first, second])] == ["a", "b"]
    assert call(job_get_by_id_many, []) == []
    row = call(job_get_by_id, second)
    assert row is not None
    assert row.kind == "b"
    assert call(job_get_by_id, 2**63 - 1) is None


def test_a_row_in_every_detail(call: Caller, table: Table) -> None:
    job_id = table.add(
        state="cancelled",
        attempt=2,
        attempted_at=CLAIMED_AT,
        attempted_by=['a"b', "c,d", "NULL"],
        finalized_at=CLAIMED_AT,
        errors=[{"at": "2026-01-01T00:00:00.123456789+02:00", "attempt": 1, "error": 'é"\\', "trace": "t"}],
        metadata={"m": [1, None]},
        unique_states=64,
    )
    row = call(job_get_by_id, job_id)
    assert row is not None
    assert row.attempted_by == ('a"b', "c,d", "NULL")
    assert row.attempted_at == row.finalized_at == CLAIMED_AT
    assert (row.errors[0].error, row.errors[0].at.microsecond) == ('é"\\', 123456)
    assert row.metadata == {"m": [1, None]}
    assert (row.unique_key, row.unique_states) == (None, frozenset({JobState.RUNNING}))


def test_a_null_among_the_errors_does_not_hide_the_others(call: Caller, table: Table) -> None:
    job_id = table.add()
    entry = '{"at": "2026-01-01T00:00:00Z", "attempt": 1, "error": "x"}'
    table.sql("UPDATE {job} SET errors = ARRAY[NULL, %s::jsonb]", entry)
    row = call(job_get_by_id, job_id)
    assert row is not None
    assert row.encoded_errors[0] == "null"
    assert [error.error for error in row.errors] == ["x"]


def test_what_became_of_runs(call: Caller, table: Table, engine: sa.Engine) -> None:
    mine = table.add_running(metadata={"cancel_attempted_at": "then"})
    again = table.add_running()
    done = Run(table.add(state="completed", attempted_at=CLAIMED_AT, attempted_by=[ME]), CLAIMED_US)
    gone = Run(10**6, CLAIMED_US)
    runs = [mine, Run(again.job_id, CLAIMED_US - 1), done, gone]
    with engine.connect() as other:  # somebody has them all locked
        other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job FOR UPDATE')
        found = call(job_run_status, client_id=ME, runs=runs)
    assert found == {
        mine.job_id: RunStatus(mine.job_id, True, JobState.RUNNING, "then"),
        again.job_id: RunStatus(again.job_id, False, JobState.RUNNING, None),
        done.job_id: RunStatus(done.job_id, False, JobState.COMPLETED, None),
    }
    assert call(job_run_status, client_id="them", runs=[mine])[mine.job_id].is_mine is False
