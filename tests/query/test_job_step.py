from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.job_step import Fate, TransactionWatch, job_save_step
from riverq.state import Run
from tests.fix_database import EngineMaker
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, ME, Caller, Table

SAVED = {"river:resumable_step": "a", "river:resumable_cursor": {"a": {"at": 5}}}


def save(call: Caller, run: Run, **given: Any) -> bool:
    written: bool = call(job_save_step, **{"client_id": ME, "run": run, "metadata": json.dumps(SAVED), **given})
    return written


def test_a_running_job_keeps_the_rest_of_its_row(call: Caller, table: Table) -> None:
    run = table.add_running(metadata={"x": 1, "river:resumable_step": "before"})
    before = table.get(run.job_id)
    assert save(call, run)
    assert table.get(run.job_id) == {**before, "metadata": {"x": 1, **SAVED}}
    assert save(call, run), "twice is once"


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.RUNNING}))
def test_a_job_that_does_not_run_saves_nothing(call: Caller, table: Table, state: JobState) -> None:
    run = Run(table.add(state=state.value, attempt=1, attempted_at=CLAIMED_AT, attempted_by=[ME]), CLAIMED_US)
    before = table.get(run.job_id)
    assert not save(call, run)
    assert table.get(run.job_id) == before


@pytest.mark.parametrize("other", ["a later claim", "another client", "a job that is gone"])
def test_a_run_that_was_lost_saves_nothing(call: Caller, table: Table, other: str) -> None:
    run = table.add_running()
    before = table.get(run.job_id)
    if other == "a later claim":
        assert not save(call, Run(run.job_id, run.attempted_at_us - 1))
    elif other == "another client":
        assert not save(call, run, client_id="somebody")
    else:
        assert not save(call, Run(run.job_id + 1, run.attempted_at_us))
    assert table.get(run.job_id) == before


@pytest.fixture
def conn(make_engine: EngineMaker) -> Any:
    with make_engine("psycopg").connect() as conn:  # type: ignore[union-attr]
        yield conn


@pytest.mark.parametrize(
    ("end", "fate"),
    [
        (lambda conn: conn.commit(), Fate.COMMITTED),
        (lambda conn: conn.rollback(), Fate.ROLLED_BACK),
        (lambda conn: conn.close(), Fate.ROLLED_BACK),
        (lambda conn: conn.begin_nested().rollback(), Fate.OPEN),
        (lambda conn: conn.begin_nested().commit(), Fate.OPEN),
        (lambda conn: (conn.commit(), conn.rollback()), Fate.COMMITTED),
    ],
)
def test_a_transactions_end_is_heard(conn: sa.Connection, end: Any, fate: Fate) -> None:
    conn.exec_driver_sql("SELECT 1")
    watch = TransactionWatch(conn)
    end(conn)
    assert watch.fate is fate


def test_a_commit_that_failed_is_never_taken_for_a_rollback(conn: sa.Connection) -> None:
    conn.exec_driver_sql("CREATE TEMP TABLE t (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    conn.exec_driver_sql("INSERT INTO t VALUES (1), (1)")
    watch = TransactionWatch(conn)
    with pytest.raises(sa.exc.IntegrityError):
        conn.commit()
    conn.rollback()
    assert watch.fate is Fate.COMMITTED


def test_in_autocommit_nothing_can_be_rolled_back(conn: sa.Connection) -> None:
    conn.execution_options(isolation_level="AUTOCOMMIT")
    conn.exec_driver_sql("SELECT 1")
    watch = TransactionWatch(conn)
    conn.rollback()
    assert watch.fate is Fate.COMMITTED


def test_a_watch_that_is_closed_hears_no_more(conn: sa.Connection) -> None:
    conn.exec_driver_sql("SELECT 1")
    watch = TransactionWatch(conn)
    watch.close()
    conn.commit()
    assert watch.fate is Fate.OPEN
    other = TransactionWatch(conn)
    other.reopen()
    conn.exec_driver_sql("SELECT 1")
    conn.rollback()
    assert other.fate is Fate.ROLLED_BACK
