from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import JobConflictError, UsageError
from riverq.job import JobRow, JobState
from riverq.notification import insert_payload
from riverq.query import job_retry as job_retry_module
from riverq.query.job_edit import job_cancel
from riverq.query.job_fetch import job_get_available
from riverq.query.job_insert import job_insert_many
from riverq.query.job_retry import job_retry
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT, DEFAULT_MASK, ME, Caller, Table, job, payloads, unique
from tests.query.racing import waiting

NOW = CLAIMED_AT + timedelta(hours=1)
MARKED = {"a": 1, "cancel_attempted_at": "2026-11-21T04:00:00Z"}
FULL: dict[str, Any] = {
    "attempt": 3,
    "attempted_at": CLAIMED_AT,
    "attempted_by": ["somebody", ME],
    "errors": [{"at": "2026-01-01T00:00:00Z", "attempt": 1, "error": "x", "trace": ""}],
    "max_attempts": 25,
    "metadata": MARKED,
    "queue": "mail",
    "scheduled_at": CLAIMED_AT,
    "tags": ["one"],
    "unique_key": b"key",
    "unique_states": DEFAULT_MASK,
}
"""A row with every column filled; its key is not in the index while the job is cancelled or discarded."""


def retry(call: Caller, job_id: int) -> JobRow:
    row = call(job_retry, job_id, now=NOW)
    assert row is not None
    return row


# -- from every state


LEFT = {JobState.AVAILABLE, JobState.RUNNING}
UNCHANGED = [
    pytest.param({"state": "running"}, id="running"),
    pytest.param({"state": "available", "scheduled_at": NOW}, id="available and due just now"),
    pytest.param({"state": "available", "attempt": 25}, id="available and due for long"),
]
CHANGED = [
    *(pytest.param({"state": state.value}, id=state.value) for state in sorted(set(JobState) - LEFT)),
    pytest.param({"state": "available", "scheduled_at": NOW + timedelta(microseconds=1)}, id="available and not due"),
    pytest.param({"state": "discarded", "attempt": 25}, id="out of attempts"),
    pytest.param({"state": "retryable", "attempt": 26}, id="beyond its attempts"),
    pytest.param({"state": "discarded", "attempt": 32_766, "max_attempts": 32_766}, id="at the last but one"),
]


@pytest.mark.parametrize("columns", UNCHANGED)
def test_what_runs_or_is_due_is_returned_unchanged_in_silence(
    call: Caller, heard: Table, columns: dict[str, Any]
) -> None:
    job_id = heard.add(**FULL | columns)
    before = heard.sql("SELECT *, xmin, ctid FROM {job}")
    row = retry(call, job_id)
    assert (row.id, row.state, row.metadata) == (job_id, JobState(columns["state"]), MARKED)
    assert (heard.sql("SELECT *, xmin, ctid FROM {job}"), payloads(heard)) == (before, [])


@pytest.mark.parametrize("columns", CHANGED)
def test_everything_else_is_available_at_once_and_told_of(call: Caller, heard: Table, columns: dict[str, Any]) -> None:
    """Nothing but these columns changes: a Go client reads the row as if its own had retried the job."""
    job_id = heard.add(**FULL | columns)
    before = heard.get(job_id)
    row = retry(call, job_id)
    one_more = before["attempt"] == before["max_attempts"]
    changes = {"state": "available", "finalized_at": None, "scheduled_at": NOW, "metadata": {"a": 1}}
    assert heard.get(job_id) == before | changes | {"max_attempts": before["max_attempts"] + one_more}
    assert (row.state, row.finalized_at, row.scheduled_at, row.metadata) == (JobState.AVAILABLE, None, NOW, {"a": 1})
    assert (row.attempt, len(row.errors), row.queue) == (before["attempt"], 1, "mail")
    assert payloads(heard) == audible(['{"queue": "mail"}'])


def test_no_such_job(call: Caller) -> None:
    assert call(job_retry, 2**63 - 1) is None


@pytest.mark.parametrize("state", ["discarded", "retryable"])
def test_a_job_whose_attempts_are_beyond_counting_is_refused(call: Caller, heard: Table, state: str) -> None:
    """Available, it would fail each claim of Go clients for its whole queue."""
    job_id = heard.add(**FULL | {"state": state, "attempt": 32_767, "max_attempts": 32_767})
    before = heard.get(job_id)

    def refused(conn: sa.Connection, schema: str) -> Any:
        with pytest.raises(UsageError, match="expected an attempt below 32767, got: 32767"):
            job_retry(conn, schema, job_id)
        return conn.exec_driver_sql("SELECT 1").scalar_one()

    assert call(refused) == 1
    assert (heard.get(job_id), payloads(heard)) == (before, [])


@pytest.mark.parametrize("metadata", ["[1]", "5", '"cancel_attempted_at"', '["cancel_attempted_at"]', "null"])
def test_metadata_that_is_no_object_is_left_alone(call: Caller, table: Table, metadata: str) -> None:
    job_id = table.add(state="cancelled", metadata=metadata)
    before = table.get(job_id)["metadata"]
    assert retry(call, job_id).state is JobState.AVAILABLE
    assert table.get(job_id)["metadata"] == before


@pytest.mark.parametrize("queue", ["a|b-c_9", 'quote" back\\slash', "tab\tnew\nline \x01", "Zoë 🦀 \x7f"])
def test_the_payload_is_that_of_an_insert_byte_for_byte(call: Caller, heard: Table, queue: str) -> None:
    retry(call, heard.add(state="completed", queue=queue))
    assert payloads(heard) == audible([insert_payload(queue)])


def test_a_retried_job_is_claimed_and_its_cancellation_forgotten(call: Caller, table: Table) -> None:
    job_id = table.add(scheduled_at=CLAIMED_AT)
    call(job_cancel, job_id)
    call(job_retry, job_id)
    [claimed] = call.claim()
    assert (claimed.id, claimed.cancel_mark) == (job_id, None)


def test_the_time_is_the_statements(call: Caller, table: Table) -> None:
    """In a transaction that is open for long, now() is the time that it began at."""
    job_id = table.add(state="cancelled")

    def late(conn: sa.Connection, schema: str) -> JobRow | None:
        began[0] = table.now()
        return job_retry(conn, schema, job_id)

    began = [CLAIMED_AT]
    row = call(late)
    assert row is not None
    assert began[0] < row.scheduled_at <= table.now()


def test_nothing_is_heard_of_what_is_rolled_back(call: Caller, heard: Table) -> None:
    job_id = heard.add(state="completed")

    def undone(conn: sa.Connection, schema: str) -> None:
        savepoint = conn.begin_nested()
        job_retry(conn, schema, job_id)
        savepoint.rollback()

    call(undone)
    assert (heard.state(job_id), payloads(heard)) == (JobState.COMPLETED, [])


# -- the unique index


def test_a_key_that_is_free_is_taken_again(call: Caller, heard: Table) -> None:
    job_id = heard.add(**FULL | {"state": "cancelled"})
    retry(call, job_id)
    [again] = call(job_insert_many, [unique()])
    assert (again.unique_skipped_as_duplicate, again.job.id) == (True, job_id)
    assert payloads(heard) == audible(['{"queue": "mail"}'])


def go_on_after_conflict(conn: sa.Connection, schema: str, job_id: int) -> list[JobRow]:
    """A retry that must fail, between two other changes of the same transaction."""
    [first] = job_insert_many(conn, schema, [job("before")])
    with pytest.raises(
        JobConflictError, match=f"job {job_id} cannot be retried: another job holds its unique key"
    ) as e:
        job_retry(conn, schema, job_id)
    assert e.value.job_id == job_id
    [second] = job_insert_many(conn, schema, [job("after")])
    return [first.job, second.job]


@pytest.mark.parametrize("twin", sorted(set(JobState) - {JobState.CANCELLED, JobState.DISCARDED}))
def test_a_key_that_is_taken_is_a_conflict_and_the_transaction_goes_on(
    call: Caller, heard: Table, twin: JobState
) -> None:
    job_id = heard.add(**FULL | {"state": "discarded", "attempt": 25})
    heard.add(state=twin.value, unique_key=b"key", unique_states=DEFAULT_MASK)
    before = heard.get(job_id)
    made = call(go_on_after_conflict, job_id)
    assert [heard.state(each.id) for each in made] == [JobState.AVAILABLE] * 2
    assert (heard.get(job_id), payloads(heard)) == (before, [])


def test_a_conflict_in_autocommit_changes_nothing(heard: Table, schema: str, engine: sa.Engine) -> None:
    job_id = heard.add(**FULL | {"state": "discarded"})
    heard.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    before = heard.get(job_id)
    with engine.connect() as conn:
        go_on_after_conflict(conn.execution_options(isolation_level="AUTOCOMMIT"), schema, job_id)
    assert (heard.get(job_id), payloads(heard)) == (before, [])


def test_a_job_that_leaves_its_key_to_another_is_no_conflict(call: Caller, table: Table) -> None:
    """A row cancelled beside its twin has a key and no states: it is in no index."""
    job_id = table.add(state="cancelled", unique_key=b"key")
    table.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    assert retry(call, job_id).state is JobState.AVAILABLE


# -- races


def test_a_key_that_nobody_has_committed_yet_is_waited_for(call: Caller, heard: Table, other: sa.Connection) -> None:
    """No look at the table can see it; the transaction of the one that waits goes on."""
    job_id = heard.add(**FULL | {"state": "discarded"})
    job_insert_many(other, call.schema, [unique()])
    with waiting(heard, lambda: call(go_on_after_conflict, job_id)) as result:
        other.commit()
    assert len(result.result()) == 2
    assert (heard.state(job_id), payloads(heard)) == (JobState.DISCARDED, [])


def test_a_key_whose_insert_is_rolled_back_is_free(call: Caller, heard: Table, other: sa.Connection) -> None:
    job_id = heard.add(**FULL | {"state": "discarded"})
    job_insert_many(other, call.schema, [unique()])
    with waiting(heard, lambda: retry(call, job_id)) as result:
        other.rollback()
    assert result.result().state is JobState.AVAILABLE
    assert payloads(heard) == audible(['{"queue": "mail"}'])


def test_two_retries_give_one_more_attempt(call: Caller, heard: Table, other: sa.Connection) -> None:
    job_id = heard.add(state="discarded", attempt=25, max_attempts=25)
    job_retry(other, call.schema, job_id)
    with waiting(heard, lambda: call(job_retry, job_id)) as result:
        other.commit()
    row = result.result()
    assert row is not None
    assert (row.state, row.max_attempts) == (JobState.AVAILABLE, 26)
    assert payloads(heard) == audible(['{"queue": "default"}'])


def test_a_retry_of_two_jobs_with_one_key_gives_it_to_the_first(
    call: Caller, heard: Table, other: sa.Connection
) -> None:
    first, second = (heard.add(state="discarded", unique_key=b"key", unique_states=DEFAULT_MASK) for _ in range(2))
    job_retry(other, call.schema, first)
    with waiting(heard, lambda: call(go_on_after_conflict, second)) as result:
        other.commit()
    result.result()
    assert [heard.state(each) for each in (first, second)] == [JobState.AVAILABLE, JobState.DISCARDED]


def test_a_job_claimed_while_one_waits_is_returned_as_running(call: Caller, heard: Table, other: sa.Connection) -> None:
    """It became due and was claimed; the retry had already chosen the row."""
    job_id = heard.add(state="retryable", metadata=MARKED)
    other.exec_driver_sql(f"UPDATE \"{call.schema}\".river_job SET state = 'available' WHERE id = {job_id}")
    [claimed] = job_get_available(other, call.schema, client_id=ME, queue="default", limit=1)
    assert claimed.id == job_id
    with waiting(heard, lambda: call(job_retry, job_id)) as result:
        other.commit()
    row = result.result()
    assert row is not None
    assert (row.state, row.metadata, row.attempted_by) == (JobState.RUNNING, MARKED, (ME,))
    assert payloads(heard) == []


def test_a_job_that_is_being_retried_is_not_claimed(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add(state="cancelled")
    job_retry(other, call.schema, job_id)
    assert call.claim() == []
    other.commit()
    assert [each.id for each in call.claim()] == [job_id]


def test_a_job_that_ends_while_one_looks_is_retried(
    call: Caller, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change found it running, the look finds it completed: the newer decides."""
    run = table.add_running()
    look = job_retry_module._look

    class Ending:
        def execute(self, *args: Any, **params: Any) -> Any:
            table.sql("UPDATE {job} SET state = 'completed', finalized_at = now() WHERE state = 'running'")
            return look.execute(*args, **params)

    monkeypatch.setattr(job_retry_module, "_look", Ending())
    assert retry(call, run.job_id).state is JobState.AVAILABLE


def test_a_job_deleted_while_one_waits_is_gone(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add(state="cancelled")
    other.exec_driver_sql(f'DELETE FROM "{call.schema}".river_job')
    with waiting(table, lambda: call(job_retry, job_id)) as result:
        other.commit()
    assert result.result() is None
