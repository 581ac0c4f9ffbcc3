from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import JobRunLostError
from riverq.job import JobState
from riverq.query.job_read import job_get_by_id
from riverq.query.job_set_state import job_complete_in_transaction, job_complete_many, job_set_state_if_running_many
from riverq.query.job_update import job_update, job_update_by_run
from riverq.state import completed
from tests.query.arrange import CLAIMED_AT, ME, Caller, Table
from tests.query.racing import waiting

OUTPUT = '{"output":{"a":[1,null]}}'


@pytest.mark.parametrize("state", sorted(JobState))
def test_the_output_is_merged_in_every_state_and_nothing_else_changes(
    call: Caller, table: Table, state: JobState
) -> None:
    for topic in ("insert", "control"):
        table.conn.execute(f'LISTEN "{call.schema}.river_{topic}"')
    job_id, spared = table.add(state=state.value, metadata={"a": 1, "output": "old"}), table.add()
    before, untouched = table.get(job_id), table.get(spared)
    row = call(job_update, job_id, metadata=OUTPUT)
    assert row == call(job_get_by_id, job_id)
    assert row is not None
    assert (row.state, row.metadata, row.output) == (state, {"a": 1, "output": {"a": [1, None]}}, {"a": [1, None]})
    assert table.get(job_id) == before | {"metadata": row.metadata}
    assert table.get(spared) == untouched
    assert list(table.conn.notifies(timeout=0.1)) == []


def test_no_such_job(call: Caller) -> None:
    assert call(job_update, 2**63 - 1, metadata=OUTPUT) is None
    assert call(job_update, 2**63 - 1) is None


@pytest.mark.parametrize("metadata", ["[1]", "5"])
def test_metadata_that_is_no_object_becomes_what_river_makes_of_it(call: Caller, table: Table, metadata: str) -> None:
    job_id = table.add(metadata=metadata)
    call(job_update, job_id, metadata='{"output":1}')
    assert table.get(job_id)["metadata"] == [json.loads(metadata.strip("[]")), {"output": 1}]


@pytest.mark.parametrize("state", sorted(JobState))
def test_without_an_output_the_row_is_read_and_locked(call: Caller, table: Table, state: JobState) -> None:
    job_id = table.add(state=state.value)
    before = table.sql("SELECT *, xmin FROM {job}")

    def locking(conn: sa.Connection, schema: str) -> bool:
        row = job_update(conn, schema, job_id)
        assert row == job_get_by_id(conn, schema, job_id)
        return not table.sql("SELECT id FROM {job} FOR UPDATE SKIP LOCKED")

    assert call(locking)
    assert table.sql("SELECT *, xmin FROM {job}") == before


def test_the_read_waits_for_who_is_writing(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add()
    job_update(other, call.schema, job_id, metadata=OUTPUT)
    with waiting(table, lambda: call(job_update, job_id)) as result:
        other.commit()
    row = result.result()
    assert row is not None
    assert row.output == {"a": [1, None]}


def test_two_writers_keep_each_others_keys(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add(metadata={"a": 1})
    job_update(other, call.schema, job_id, metadata='{"output":1}')
    with waiting(table, lambda: call(job_update, job_id, metadata='{"other":2}')) as result:
        other.commit()
    row = result.result()
    assert row is not None
    assert row.metadata == {"a": 1, "output": 1, "other": 2}


def test_a_run_that_ends_later_merges_its_own(call: Caller, table: Table) -> None:
    """What the worker recorded is the later write; keys that it did not record stay."""
    quiet, loud = table.add_running(), table.add_running()
    for run in (quiet, loud):
        call(job_update, run.job_id, metadata='{"output":"outside"}')
    states = [completed(quiet, metadata='{"seen":1}'), completed(loud, metadata='{"output":"worker"}')]
    call(job_set_state_if_running_many, client_id=ME, states=states)
    assert table.get(quiet.job_id)["metadata"] == {"output": "outside", "seen": 1}
    assert table.get(loud.job_id)["metadata"] == {"output": "worker"}


def test_a_plain_completion_keeps_the_output(call: Caller, table: Table) -> None:
    run = table.add_running()
    call(job_update, run.job_id, metadata='{"output":1}')
    assert call(job_complete_many, client_id=ME, runs=[run]) == [run.job_id]
    assert table.get(run.job_id)["metadata"] == {"output": 1}


def test_a_run_is_still_the_same_run_after_an_update(call: Caller, table: Table, other: sa.Connection) -> None:
    """The completion passes over the row while it is locked, waits for it alone, and merges into what was written."""
    run = table.add_running()
    job_update(other, call.schema, run.job_id, metadata='{"output":1}')
    assert call(job_complete_many, client_id=ME, runs=[run]) == []
    with waiting(
        table, lambda: call(job_complete_in_transaction, client_id=ME, run=run, metadata='{"seen":1}')
    ) as result:
        other.commit()
    assert result.result()
    row = table.get(run.job_id)
    assert (row["state"], row["metadata"]) == ("completed", {"output": 1, "seen": 1})


def test_an_update_that_waits_for_a_completion_merges_into_it(call: Caller, table: Table, other: sa.Connection) -> None:
    run = table.add_running()
    job_complete_in_transaction(other, call.schema, client_id=ME, run=run, metadata='{"seen":1}')
    with waiting(table, lambda: call(job_update, run.job_id, metadata='{"output":1}')) as result:
        other.commit()
    row = result.result()
    assert row is not None
    assert (row.state, row.metadata) == (JobState.COMPLETED, {"output": 1, "seen": 1})


# -- what a run writes on its own job


@pytest.mark.parametrize("state", sorted(JobState))
def test_the_last_run_stores_its_output_in_every_state(call: Caller, table: Table, state: JobState) -> None:
    """Completed in the caller's transaction, or rescued and not yet claimed again."""
    run = table.add_running(state=state.value, attempted_by=["somebody", ME], metadata={"a": 1, "output": "old"})
    before = table.get(run.job_id)
    row = call(job_update_by_run, client_id=ME, run=run, metadata=OUTPUT)
    assert row == call(job_get_by_id, run.job_id)
    assert table.get(run.job_id) == before | {"metadata": {"a": 1, "output": {"a": [1, None]}}}


@pytest.mark.parametrize(
    "since",
    [
        pytest.param({"attempted_at": CLAIMED_AT + timedelta(microseconds=1)}, id="this client, a microsecond later"),
        pytest.param({"attempted_by": [ME, "another"]}, id="another, in the same microsecond"),
        pytest.param({"attempted_by": []}, id="nobody knows by whom"),
        pytest.param({"attempted_at": None, "attempted_by": None}, id="forgotten"),
    ],
)
@pytest.mark.parametrize("state", ["running", "completed"])
def test_a_run_that_was_lost_does_not_replace_the_output_of_the_next(
    call: Caller, table: Table, since: dict[str, Any], state: str
) -> None:
    run = table.add_running(**{"state": state, "metadata": {"output": "the next one's"}, **since})
    before = table.sql("SELECT *, xmin FROM {job}")

    def refused(conn: sa.Connection, schema: str) -> int:
        with pytest.raises(JobRunLostError, match="another run has begun since") as error:
            job_update_by_run(conn, schema, client_id=ME, run=run, metadata=OUTPUT)
        assert table.sql("SELECT id FROM {job} FOR UPDATE NOWAIT")
        return error.value.job_id

    assert call(refused) == run.job_id
    assert table.sql("SELECT *, xmin FROM {job}") == before


def test_a_run_whose_job_is_gone(call: Caller, table: Table) -> None:
    run = table.add_running()
    table.sql("DELETE FROM {job}")
    assert call(job_update_by_run, client_id=ME, run=run, metadata=OUTPUT) is None


def test_a_run_lost_while_it_waits(call: Caller, table: Table, other: sa.Connection) -> None:
    """It had chosen the row; the newer one decides."""
    run = table.add_running()
    other.exec_driver_sql(f"UPDATE \"{call.schema}\".river_job SET attempted_at = now(), metadata = '{{}}'")
    with waiting(table, lambda: call(job_update_by_run, client_id=ME, run=run, metadata=OUTPUT)) as result:
        other.commit()
    assert isinstance(result.exception(), JobRunLostError)
    assert table.get(run.job_id)["metadata"] == {}
