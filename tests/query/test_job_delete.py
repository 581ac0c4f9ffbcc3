from __future__ import annotations

from itertools import product
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.errors import JobRunningError
from riverq.job import JobState
from riverq.query.array import integer_array
from riverq.query.job_delete import DeleteFilter, _delete_many, job_delete, job_delete_many
from riverq.query.job_fetch import job_get_available
from riverq.query.job_insert import job_insert_many
from riverq.query.job_read import job_get_by_id
from tests.query.arrange import DEFAULT_MASK, ME, Caller, Table, unique
from tests.query.racing import waiting
from tests.query.test_plans import MODES, large, plan, rows_read

__all__ = ["large"]

S = JobState


def ids(table: Table) -> list[int]:
    return [row["id"] for row in table.sql("SELECT id FROM {job} ORDER BY id")]


def delete_many(call: Caller, *, limit: int = 100, **parts: Any) -> list[int]:
    return [row.id for row in call(job_delete_many, DeleteFilter(**parts), limit=limit)]


# -- one job


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.RUNNING}))
def test_a_job_is_deleted_and_returned_as_it_was(call: Caller, heard: Table, state: JobState) -> None:
    job_id, spared = heard.add(state=state.value, metadata={"a": 1}, queue="mail"), heard.add()
    before = call(job_get_by_id, job_id)
    assert before is not None
    assert call(job_delete, job_id) == before
    assert (before.state, before.metadata) == (state, {"a": 1})
    assert (ids(heard), list(heard.conn.notifies(timeout=0.1))) == ([spared], [])


def test_a_running_job_is_not_deleted_and_the_transaction_goes_on(call: Caller, table: Table) -> None:
    run = table.add_running()
    before = table.sql("SELECT *, xmin FROM {job}")

    def refused(conn: sa.Connection, schema: str) -> int:
        with pytest.raises(JobRunningError, match=f"job {run.job_id} is running and cannot be deleted") as error:
            job_delete(conn, schema, run.job_id)
        return error.value.job_id

    assert call(refused) == run.job_id
    assert table.sql("SELECT *, xmin FROM {job}") == before


def test_no_such_job(call: Caller) -> None:
    assert call(job_delete, 2**63 - 1) is None


def test_a_job_deleted_by_two_is_returned_to_one(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add()
    assert job_delete(other, call.schema, job_id) is not None
    with waiting(table, lambda: call(job_delete, job_id)) as result:
        other.commit()
    assert result.result() is None


def test_a_job_claimed_while_one_waits_is_running(call: Caller, table: Table, other: sa.Connection) -> None:
    job_id = table.add()
    [claimed] = job_get_available(other, call.schema, client_id=ME, queue="default", limit=1)
    assert claimed.id == job_id
    with waiting(table, lambda: call(job_delete, job_id)) as result:
        other.commit()
    assert isinstance(result.exception(), JobRunningError)
    assert table.state(job_id) is JobState.RUNNING


def test_a_job_that_is_being_deleted_is_not_claimed(call: Caller, table: Table, other: sa.Connection) -> None:
    job_delete(other, call.schema, table.add())
    assert call.claim() == []
    other.commit()
    assert ids(table) == []


def test_a_deleted_job_gives_its_key_free(call: Caller, table: Table) -> None:
    job_id = table.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    call(job_delete, job_id)
    assert not call(job_insert_many, [unique()])[0].unique_skipped_as_duplicate


# -- many


def one_of_each(table: Table) -> dict[int, tuple[Any, ...]]:
    """A job for every combination; by id its kind, priority, queue and state."""
    combinations = product(["a", "b,{}"], [1, 4], ["default", 'q"|x'], sorted(JobState))
    made = {}
    for kind, priority, queue, state in combinations:
        job_id = table.add(kind=kind, priority=priority, queue=queue, state=state.value)
        made[job_id] = (kind, priority, queue, state)
    return made


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"kinds": ["b,{}"]},
        {"priorities": [4, 3]},
        {"queues": ['q"|x', "none"]},
        {"states": list(JobState)},
        {"states": [S.COMPLETED, S.RUNNING]},
        {"kinds": ["a"], "priorities": {1}, "queues": ("default",), "states": frozenset({S.PENDING, S.DISCARDED})},
        {"kinds": ["a", "b,{}"], "states": [S.AVAILABLE]},
        {"states": [S.RUNNING]},
    ],
    ids=lambda parts: " and ".join(parts) or "none",
)
def test_what_matches_every_part_is_deleted_and_never_what_runs(
    call: Caller, table: Table, parts: dict[str, Any]
) -> None:
    made = one_of_each(table)
    names = ("kinds", "priorities", "queues", "states")
    expected = [
        job_id
        for job_id, values in made.items()
        if values[3] is not S.RUNNING
        if all(value in parts.get(name, [value]) for name, value in zip(names, values, strict=True))
    ]
    assert delete_many(call, **parts) == expected
    assert ids(table) == sorted(made.keys() - expected)


@pytest.mark.parametrize("part", ["ids", "kinds", "priorities", "queues", "states"])
def test_an_empty_part_matches_nothing(call: Caller, table: Table, part: str) -> None:
    job_id = table.add()
    empty: dict[str, Any] = {part: []}
    assert delete_many(call, **empty) == []
    assert delete_many(call, **{"ids": [job_id], **empty}) == []
    assert ids(table) == [job_id]


def test_ids_are_exact_and_may_be_many_or_missing(call: Caller, table: Table) -> None:
    large_ids = [table.add(id=2**63 - 1 - n) for n in range(3)]
    assert delete_many(call, ids=[*range(1, 5000), large_ids[0], large_ids[2], large_ids[2]]) == [
        large_ids[2],
        large_ids[0],
    ]
    assert ids(table) == [large_ids[1]]


def test_the_lowest_ids_come_first_up_to_the_limit(call: Caller, table: Table) -> None:
    made = [table.add(priority=4 - n % 4) for n in range(7)]
    assert delete_many(call, limit=3) == made[:3]
    assert delete_many(call, limit=3, ids=made[::-1]) == made[3:6]
    assert delete_many(call, limit=3) == made[6:]


def test_the_rows_are_returned_as_they_were(call: Caller, table: Table) -> None:
    job_id = table.add(metadata={"a": 1}, unique_key=b"key", unique_states=DEFAULT_MASK)
    before = call(job_get_by_id, job_id)
    assert call(job_delete_many, DeleteFilter(ids=[job_id]), limit=1) == [before]


def test_locked_rows_are_left_out_without_waiting(call: Caller, table: Table, other: sa.Connection) -> None:
    made = [table.add() for _ in range(4)]
    job_get_available(other, call.schema, client_id=ME, queue="default", limit=1)
    job_delete(other, call.schema, made[1])
    assert delete_many(call, limit=1) == [made[2]]
    assert delete_many(call) == [made[3]]
    other.commit()
    assert ids(table) == made[:1]
    assert table.state(made[0]) is JobState.RUNNING


def test_two_calls_at_once_delete_each_row_once(call: Caller, table: Table, other: sa.Connection) -> None:
    made = [table.add() for _ in range(4)]
    first = [row.id for row in job_delete_many(other, call.schema, DeleteFilter(), limit=2)]
    assert (first, delete_many(call)) == (made[:2], made[2:])


@pytest.mark.parametrize("mode", MODES)
def test_named_rows_are_found_by_their_primary_key(large: psycopg.Connection[Any], mode: str) -> None:
    """However many rows there are, and without the lock on any other."""
    given = integer_array(range(12_001, 12_011))
    nodes = plan(large, _delete_many(("ids",)), mode, ids=given, limit=10)
    on_jobs = [node for node in nodes if node.get("Relation Name") == "river_job" and "Scan" in node["Node Type"]]
    assert {node["Index Name"] for node in on_jobs} == {"river_job_pkey"}, nodes
    assert nodes[0]["Actual Rows"] == 10
    assert max(map(rows_read, nodes)) <= 10
