from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq import state as outcome
from riverq.job import FINAL_STATES, JobState
from riverq.query.job_read import job_run_status
from riverq.query.job_set_state import (
    job_complete_in_transaction,
    job_complete_many,
    job_set_state_if_running,
    job_set_state_if_running_many,
)
from riverq.query.statement import sqlstate, to_us
from riverq.state import TRANSITIONS, Reason, Run, SetState
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, ME, Caller, Table

ERROR = '{"at":"2026-01-01T00:00:00Z","attempt":1,"error":"x","trace":""}'
SECOND = timedelta(seconds=1)


def write(call: Caller, *states: SetState, **options: Any) -> list[Any]:
    return call(job_set_state_if_running_many, client_id=ME, states=states, **options)


@pytest.fixture
def other(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Another client's connection; what it locked is released after the test."""
    with engine.connect() as connection:
        yield connection


def lock(other: sa.Connection, call: Caller, job_id: int) -> None:
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {job_id} FOR UPDATE')


# -- the state machine


@pytest.mark.parametrize("target", sorted(TRANSITIONS[JobState.RUNNING]))
def test_only_running_rows_move(call: Caller, table: Table, target: JobState) -> None:
    runs = {
        source: Run(table.add(state=source.value, attempt=1, attempted_at=CLAIMED_AT, attempted_by=[ME]), CLAIMED_US)
        for source in JobState
    }
    before = {source: table.get(run.job_id) for source, run in runs.items()}
    rows = write(
        call, *(SetState(run=run, state=target, reason=Reason.ERRORED, metadata='{"late": 1}') for run in runs.values())
    )
    assert [row.id for row in rows] == [runs[JobState.RUNNING].job_id]
    for source, run in runs.items():
        if source is JobState.RUNNING:
            assert table.state(run.job_id) is target
            assert (table.get(run.job_id)["finalized_at"] is not None) is (target in FINAL_STATES)
        else:
            assert table.get(run.job_id) == before[source]


@pytest.mark.parametrize("target", sorted(set(JobState) - TRANSITIONS[JobState.RUNNING] - {JobState.RUNNING}))
def test_there_is_no_way_to_other_states(target: JobState) -> None:
    """Nothing constructs them: pending is the one state that a run does not end in."""
    assert target is JobState.PENDING


# -- what is written


def test_completion_returns_ids_only_of_what_it_wrote(call: Caller, table: Table) -> None:
    runs = [table.add_running() for _ in range(3)]
    gone = Run(10**6, CLAIMED_US)
    before = table.now()
    assert sorted(call(job_complete_many, client_id=ME, runs=[*runs, gone])) == [run.job_id for run in runs]
    row = table.get(runs[0].job_id)
    assert row["state"] == "completed"
    assert before - SECOND < row["finalized_at"] <= table.now()
    assert (row["attempt"], row["metadata"], row["errors"]) == (1, {}, None)


def test_an_empty_batch_writes_nothing(call: Caller) -> None:
    assert call(job_complete_many, client_id=ME, runs=[]) == []
    assert write(call) == []


def test_completion_uses_a_given_now(call: Caller, table: Table) -> None:
    run = table.add_running()
    call(job_complete_many, client_id=ME, runs=[run], now=CLAIMED_AT)
    assert table.get(run.job_id)["finalized_at"] == CLAIMED_AT


def test_mixed_outcomes_in_one_batch(call: Caller, table: Table) -> None:
    done, failed, short, dead, snoozed, back = [table.add_running(metadata={"kept": 1}) for _ in range(6)]
    at = CLAIMED_AT + timedelta(days=9)
    rows = write(
        call,
        outcome.completed(done, metadata='{"output": "\\u00e9 \\"q\\" \\\\"}'),
        outcome.errored(failed, error=ERROR, retry=at, short=False),
        outcome.errored(short, error=ERROR, retry=timedelta(seconds=2), short=True),
        outcome.discarded(dead, error=ERROR),
        outcome.snoozed(snoozed, attempt=0, wait=timedelta(minutes=1), metadata='{"snoozes": 1}'),
        outcome.interrupted(back, attempt=0),
        now=CLAIMED_AT + SECOND,
    )
    by_id = {row.id: row for row in rows}
    assert by_id[done.job_id].state is JobState.COMPLETED
    assert by_id[done.job_id].metadata == {"kept": 1, "output": 'é "q" \\'}
    assert by_id[failed.job_id].scheduled_at == at
    assert by_id[failed.job_id].errors[0].error == "x"
    assert by_id[short.job_id].state is JobState.AVAILABLE
    assert by_id[short.job_id].scheduled_at == CLAIMED_AT + timedelta(seconds=3)
    assert by_id[dead.job_id].finalized_at == CLAIMED_AT + SECOND
    assert (by_id[snoozed.job_id].attempt, by_id[snoozed.job_id].state) == (0, JobState.SCHEDULED)
    assert by_id[snoozed.job_id].scheduled_at == CLAIMED_AT + timedelta(seconds=61)
    assert by_id[snoozed.job_id].metadata == {"kept": 1, "snoozes": 1}
    assert by_id[back.job_id].scheduled_at == CLAIMED_AT + SECOND
    assert by_id[back.job_id].finalized_at is None
    assert by_id[back.job_id].errors == ()


def test_a_wait_is_counted_from_the_databases_now(call: Caller, table: Table) -> None:
    run = table.add_running()
    before = table.now()
    [row] = write(call, outcome.errored(run, error=ERROR, retry=timedelta(hours=1), short=False))
    assert before - SECOND < row.scheduled_at - timedelta(hours=1) <= table.now()


def test_the_longest_wait_can_be_written_and_read(call: Caller, table: Table) -> None:
    run = table.add_running()
    [row] = write(call, outcome.errored(run, error=ERROR, retry=timedelta.max, short=False))
    assert row.scheduled_at.year > 2900


@pytest.mark.parametrize(("before", "kept"), [(0, 0), (1, 1), (99, 99), (100, 99), (130, 99)])
def test_errors_keep_their_newest_hundred(call: Caller, table: Table, before: int, kept: int) -> None:
    old = [{"attempt": number} for number in range(before)]
    run = table.add_running(errors=old) if old else table.add_running()
    write(call, outcome.discarded(run, error=ERROR))
    assert table.get(run.job_id)["errors"] == [*old[before - kept :], json.loads(ERROR)]


def test_no_error_appends_nothing(call: Caller, table: Table) -> None:
    run, untouched = table.add_running(), table.add_running(errors=[{"attempt": 1}])
    write(call, outcome.completed(run, metadata="{}"), outcome.completed(untouched, metadata="{}"))
    assert table.get(run.job_id)["errors"] is None
    assert table.get(untouched.job_id)["errors"] == [{"attempt": 1}]


# -- the cancel mark


MARK = "2026-11-21T00:00:00Z"


@pytest.mark.parametrize("make", ["retryable", "available", "scheduled"])
def test_a_job_cancelled_since_the_claim_does_not_go_on(call: Caller, table: Table, make: str) -> None:
    run = table.add_running(metadata={"cancel_attempted_at": MARK}, scheduled_at=CLAIMED_AT)
    given = SetState(
        run=run, state=JobState(make), reason=Reason.ERRORED, attempt=0, error=ERROR, scheduled_in=timedelta(days=1)
    )
    before = table.now()
    [row] = write(call, given)
    assert row.state is JobState.CANCELLED
    assert row.finalized_at is not None
    assert row.finalized_at > before - SECOND
    assert (row.attempt, row.scheduled_at) == (1, CLAIMED_AT)
    assert len(row.errors) == 1


def test_the_mark_seen_at_the_claim_does_not_count(call: Caller, table: Table) -> None:
    run = table.add_running(metadata={"cancel_attempted_at": MARK})
    seen = Run(run.job_id, run.attempted_at_us, MARK)
    [row] = write(call, outcome.errored(seen, error=ERROR, retry=timedelta(hours=1), short=False))
    assert row.state is JobState.RETRYABLE


def test_a_newer_mark_counts(call: Caller, table: Table) -> None:
    run = table.add_running(metadata={"cancel_attempted_at": MARK})
    seen = Run(run.job_id, run.attempted_at_us, "2025-01-01T00:00:00Z")
    [row] = write(call, outcome.interrupted(seen, attempt=0))
    assert row.state is JobState.CANCELLED


@pytest.mark.parametrize("target", sorted(FINAL_STATES))
def test_ends_are_not_overridden_by_a_mark(call: Caller, table: Table, target: JobState) -> None:
    run = table.add_running(metadata={"cancel_attempted_at": MARK})
    [row] = write(call, SetState(run=run, state=target, reason=Reason.COMPLETED))
    assert row.state is target


# -- the fence


LOSERS = [
    {"attempted_at": CLAIMED_AT + timedelta(microseconds=1)},
    {"attempted_at": CLAIMED_AT - timedelta(microseconds=1)},
    {"attempted_at": None},
    {"attempted_by": [ME, "them"]},
    {"attempted_by": []},
    {"attempted_by": None},
]


@pytest.mark.parametrize("columns", LOSERS, ids=repr)
def test_a_late_loser_changes_nothing(call: Caller, table: Table, columns: dict[str, Any]) -> None:
    run = table.add_running(**columns)
    before = table.get(run.job_id)
    late = outcome.discarded(run, error=ERROR, metadata='{"late": true}')
    assert write(call, late) == []
    assert call(job_complete_many, client_id=ME, runs=[run]) == []
    assert call(job_set_state_if_running, client_id=ME, state=late, lock_timeout=SECOND) is None
    assert call(job_complete_in_transaction, client_id=ME, run=run, metadata='{"late": true}') is False
    assert table.get(run.job_id) == before
    assert call(job_run_status, client_id=ME, runs=[run])[run.job_id].is_mine is False


def test_the_fence_is_what_the_claim_returned_whatever_the_sessions_time_zone(call: Caller, table: Table) -> None:
    job_id = table.add()
    table.sql("UPDATE {job} SET scheduled_at = 'epoch'")
    odd = CLAIMED_AT.replace(microsecond=999_999)

    def claim_and_complete(conn: sa.Connection, schema: str) -> list[int]:
        for setting in ("timezone = 'Asia/Kathmandu'", "datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'"):
            conn.exec_driver_sql(f"SET LOCAL {setting}")
        from riverq.query.job_fetch import job_get_available

        [row] = job_get_available(conn, schema, client_id=ME, queue="default", limit=1, now=odd)
        assert row.attempted_at_us == to_us(odd)
        conn.exec_driver_sql("SET LOCAL timezone = 'America/St_Johns'")
        return job_complete_many(conn, schema, client_id=ME, runs=[Run(row.id, row.attempted_at_us)])

    assert call(claim_and_complete) == [job_id]


# -- locks


def test_a_locked_row_does_not_stop_its_batch(call: Caller, table: Table, other: sa.Connection) -> None:
    """Somebody inserts a duplicate of a running unique job and leaves the transaction open."""
    from riverq.query.job_insert import job_insert_many
    from tests.query.arrange import unique

    held = table.add_running(unique_key=b"key", unique_states=245)
    free = [table.add_running() for _ in range(5)]
    [duplicate] = job_insert_many(other, call.schema, [unique()])
    assert duplicate.job.id == held.job_id

    assert sorted(call(job_complete_many, client_id=ME, runs=[held, *free])) == [run.job_id for run in free]
    failed = outcome.errored(held, error=ERROR, retry=SECOND, short=True)
    assert write(call, failed) == []
    assert call(job_run_status, client_id=ME, runs=[held])[held.job_id].is_mine is True
    with pytest.raises(sa.exc.DBAPIError) as caught:
        call(job_set_state_if_running, client_id=ME, state=failed, lock_timeout=timedelta(milliseconds=1))
    assert sqlstate(caught.value) == "55P03"

    other.rollback()
    row = call(job_set_state_if_running, client_id=ME, state=failed, lock_timeout=SECOND)
    assert row is not None
    assert row.state is JobState.AVAILABLE


def test_who_waited_sees_what_was_changed_meanwhile(
    call: Caller, table: Table, other: sa.Connection, engine: sa.Engine
) -> None:
    """A cancel commits while the slow lane waits for its lock: the outcome must follow the mark."""
    import threading

    run = table.add_running()
    lock(other, call, run.job_id)
    mark = '{"cancel_attempted_at": "now"}'
    other.exec_driver_sql(f"UPDATE \"{call.schema}\".river_job SET metadata = '{mark}' WHERE id = {run.job_id}")
    failed = outcome.errored(run, error=ERROR, retry=SECOND, short=True)
    found: list[Any] = []

    def wait() -> None:
        with engine.begin() as conn:
            found.append(
                job_set_state_if_running(
                    conn, call.schema, client_id=ME, state=failed, lock_timeout=timedelta(seconds=30)
                )
            )

    thread = threading.Thread(target=wait)
    thread.start()
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not table.conn.execute(waiting).fetchall():
        assert thread.is_alive()
    other.commit()
    thread.join()
    assert found[0].state is JobState.CANCELLED


def test_the_lock_timeout_ends_with_the_transaction(call: Caller, table: Table) -> None:
    run = table.add_running()

    def both(conn: sa.Connection, schema: str) -> Any:
        with conn.begin_nested():
            job_set_state_if_running(
                conn, schema, client_id=ME, state=outcome.completed(run), lock_timeout=timedelta(seconds=7)
            )
        return conn.exec_driver_sql("SHOW lock_timeout").scalar_one()

    assert call(both) == "7s"
    assert call(lambda conn, schema: conn.exec_driver_sql("SHOW lock_timeout").scalar_one()) == "5s"


def test_completing_in_the_callers_transaction(call: Caller, table: Table) -> None:
    run = table.add_running(metadata={"a": 1})
    assert call(job_complete_in_transaction, client_id=ME, run=run, metadata='{"b": 2}') is True
    row = table.get(run.job_id)
    assert (row["state"], row["metadata"]) == ("completed", {"a": 1, "b": 2})
    assert call(job_complete_in_transaction, client_id=ME, run=run) is False


# -- poison


@pytest.mark.parametrize(
    ("columns", "codes"),
    [
        ({"error": '{"error": "\\u0000"}'}, {"22P05"}),
        ({"metadata": '{"x": "\\ud800"}'}, {"22P02", "22P05"}),
        ({"metadata": "not json"}, {"22P02"}),
    ],
)
def test_poison_is_told_by_its_sqlstate_and_writes_nothing(
    call: Caller, table: Table, columns: dict[str, Any], codes: set[str]
) -> None:
    good, bad = table.add_running(), table.add_running()
    poison = SetState(run=bad, state=JobState.DISCARDED, reason=Reason.DISCARDED, **columns)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        write(call, outcome.completed(good), poison)
    assert sqlstate(caught.value) in codes
    assert table.state(good.job_id) is JobState.RUNNING
