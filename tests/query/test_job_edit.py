from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.job import FINAL_STATES, JobRow, JobState
from riverq.query.job_edit import job_cancel
from riverq.query.job_insert import job_insert_many
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT, DEFAULT_MASK, Caller, Table, payloads, unique
from tests.query.racing import waiting

NOW = CLAIMED_AT + timedelta(hours=1)
MARK = "2026-11-21T06:04:03.123457Z"
RETRYABLE, CANCELLED = 32, 2
TRAP = DEFAULT_MASK & ~RETRYABLE | CANCELLED
"""A mask with which a retryable job is outside the unique index and would enter it by being cancelled."""


def cancel(call: Caller, job_id: int) -> JobRow:
    row = call(job_cancel, job_id, now=NOW)
    assert row is not None
    return row


@pytest.mark.parametrize("state", sorted(set(JobState) - FINAL_STATES - {JobState.RUNNING}))
def test_a_job_that_waits_is_cancelled_and_told_of(call: Caller, heard: Table, state: JobState) -> None:
    job_id = heard.add(state=state.value, metadata={"a": 1}, queue="mail")
    row = cancel(call, job_id)
    assert (row.id, row.state, row.finalized_at) == (job_id, JobState.CANCELLED, NOW)
    assert row.metadata == {"a": 1, "cancel_attempted_at": MARK}
    stored = heard.get(job_id)
    assert (stored["state"], stored["finalized_at"], stored["metadata"]) == ("cancelled", NOW, row.metadata)
    assert payloads(heard) == audible([f'{{"action" : "cancel", "job_id" : {job_id}, "queue" : "mail"}}'])


def test_a_running_job_is_marked_and_its_client_told(call: Caller, heard: Table) -> None:
    run = heard.add_running(metadata={"cancel_attempted_at": "2020-01-01T00:00:00Z"})
    before = heard.get(run.job_id)
    row = cancel(call, run.job_id)
    assert (row.state, row.finalized_at, row.metadata) == (JobState.RUNNING, None, {"cancel_attempted_at": MARK})
    assert heard.get(run.job_id) == before | {"metadata": {"cancel_attempted_at": MARK}}
    assert payloads(heard) == audible([f'{{"action" : "cancel", "job_id" : {run.job_id}, "queue" : "default"}}'])


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_a_job_that_has_ended_is_returned_unchanged_in_silence(call: Caller, heard: Table, state: JobState) -> None:
    job_id = heard.add(state=state.value)
    before = heard.get(job_id)
    row = cancel(call, job_id)
    assert (row.state, row.finalized_at, row.metadata) == (state, CLAIMED_AT, {})
    assert (heard.get(job_id), payloads(heard)) == (before, [])


def test_no_such_job(call: Caller) -> None:
    assert call(job_cancel, 2**63 - 1) is None


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "-13:17"])
def test_the_mark_is_the_databases_time_with_its_zone(call: Caller, table: Table, zone: str) -> None:
    run = table.add_running()

    def in_zone(conn: sa.Connection, schema: str) -> JobRow | None:
        conn.exec_driver_sql(f"SET LOCAL timezone = '{zone}'")
        return job_cancel(conn, schema, run.job_id)

    before = table.now()
    row = call(in_zone)
    assert row is not None
    marked = row.metadata["cancel_attempted_at"]
    assert marked.endswith("Z")
    assert before <= datetime.fromisoformat(marked) <= table.now()


def test_each_cancel_of_a_transaction_leaves_another_mark(call: Caller, table: Table) -> None:
    run = table.add_running()

    def twice(conn: sa.Connection, schema: str) -> list[JobRow | None]:
        return [job_cancel(conn, schema, run.job_id) for _ in range(2)]

    first, second = call(twice)
    assert first is not None
    assert second is not None
    assert first.metadata != second.metadata


def test_nothing_is_heard_of_what_is_rolled_back(call: Caller, heard: Table) -> None:
    job_id = heard.add()

    def undone(conn: sa.Connection, schema: str) -> None:
        savepoint = conn.begin_nested()
        job_cancel(conn, schema, job_id)
        savepoint.rollback()

    call(undone)
    assert (heard.state(job_id), payloads(heard)) == (JobState.AVAILABLE, [])


# -- the unique index


def trapped(table: Table) -> int:
    return table.add(state="retryable", unique_key=b"key", unique_states=TRAP)


def test_a_cancelled_job_takes_its_key_where_it_is_free(call: Caller, heard: Table) -> None:
    job_id = trapped(heard)
    assert cancel(call, job_id).state is JobState.CANCELLED
    row = heard.get(job_id)
    assert (row["unique_key"], row["mask"]) == (b"key", f"{TRAP:08b}")
    assert call(job_insert_many, [unique(mask=TRAP)])[0].unique_skipped_as_duplicate
    assert [json.loads(each)["job_id"] for each in payloads(heard)] == audible([job_id])


def test_a_job_whose_key_is_taken_is_cancelled_without_it(call: Caller, heard: Table) -> None:
    job_id = trapped(heard)
    twin = heard.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    row = cancel(call, job_id)
    assert (row.state, row.finalized_at, row.unique_states) == (JobState.CANCELLED, NOW, None)
    stored = heard.get(job_id)
    assert (stored["state"], stored["unique_key"], stored["mask"]) == ("cancelled", b"key", None)
    assert heard.state(twin) is JobState.AVAILABLE
    assert [json.loads(each)["job_id"] for each in payloads(heard)] == audible([job_id])


@pytest.mark.parametrize("state", ["available", "running"])
def test_a_job_inside_its_mask_keeps_it(call: Caller, table: Table, state: str) -> None:
    job_id = table.add(state=state, unique_key=b"key", unique_states=TRAP)
    assert cancel(call, job_id).unique_states is not None


def waiting_while(call: Caller, table: Table, other: sa.Connection, job_id: int) -> Any:
    """Cancel in a transaction that goes on afterwards; commit `other` once the cancel waits for it."""

    def cancel_and_go_on(conn: sa.Connection, schema: str) -> Any:
        row = job_cancel(conn, schema, job_id, now=NOW)
        return row, conn.exec_driver_sql("SELECT 1").scalar_one()

    with waiting(table, lambda: call(cancel_and_go_on)) as result:
        other.commit()
    return result.result()


def test_a_key_taken_while_one_waits_spoils_no_transaction(call: Caller, heard: Table, other: sa.Connection) -> None:
    """Somebody inserts the key and has not committed: no look at the table can see it."""
    job_id = trapped(heard)
    job_insert_many(other, call.schema, [unique()])
    row, went_on = waiting_while(call, heard, other, job_id)
    assert (row.state, row.unique_states, went_on) == (JobState.CANCELLED, None, 1)
    assert heard.state(job_id) is JobState.CANCELLED
    assert [json.loads(each)["job_id"] for each in payloads(heard)] == audible([job_id])


def test_a_key_taken_while_one_waits_in_autocommit(
    table: Table, schema: str, engine: sa.Engine, other: sa.Connection
) -> None:
    job_id = trapped(table)
    job_insert_many(other, schema, [unique()])
    with engine.connect() as conn:
        alone = conn.execution_options(isolation_level="AUTOCOMMIT")
        with waiting(table, lambda: job_cancel(alone, schema, job_id)) as result:
            other.commit()
        assert result.result() is not None
    assert table.get(job_id)["mask"] is None


def test_a_job_that_ends_while_one_waits_is_returned_as_it_ended(
    call: Caller, heard: Table, other: sa.Connection
) -> None:
    run = heard.add_running()
    other.exec_driver_sql(
        f"UPDATE \"{call.schema}\".river_job SET state = 'completed', finalized_at = now() WHERE id = {run.job_id}"
    )
    row, _ = waiting_while(call, heard, other, run.job_id)
    assert (row.state, row.metadata, payloads(heard)) == (JobState.COMPLETED, {}, [])


def test_a_job_claimed_while_one_waits_is_marked(call: Caller, heard: Table, other: sa.Connection) -> None:
    job_id = heard.add()
    other.exec_driver_sql(f"UPDATE \"{call.schema}\".river_job SET state = 'running' WHERE id = {job_id}")
    row, _ = waiting_while(call, heard, other, job_id)
    assert (row.state, row.finalized_at, "cancel_attempted_at" in row.metadata) == (JobState.RUNNING, None, True)
