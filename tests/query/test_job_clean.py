from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query import job_clean
from riverq.query.job_clean import job_delete_finished, queue_delete_unused
from riverq.query.queue import queue_create_or_touch
from riverq.query.statement import microseconds
from tests.fix_schema import SchemaPool
from tests.query.arrange import CLAIMED_AT, Caller, Table
from tests.query.test_plans import MODES, plan, rows_read

NOW = CLAIMED_AT
DAY = timedelta(hours=24)
MOMENT = timedelta(microseconds=1)
FINISHED = ("cancelled", "completed", "discarded")


def clean(call: Caller, state: str = "completed", retention: timedelta = DAY, limit: int = 100) -> int:
    return call(job_delete_finished, state=JobState(state), retention=retention, limit=limit, now=NOW)


def clean_queues(call: Caller, limit: int = 100) -> list[str]:
    return call(queue_delete_unused, retention=DAY, limit=limit, now=NOW)


def old(table: Table, state: str = "completed", **columns: Any) -> int:
    return table.add(**{"state": state, "finalized_at": NOW - DAY - MOMENT, **columns})


def ids(table: Table) -> list[int]:
    return [row["id"] for row in table.sql("SELECT id FROM {job} ORDER BY id")]


def add_queue(table: Table, name: str, updated_at: datetime = NOW - DAY - MOMENT, **columns: Any) -> None:
    given = {"metadata": "{}", "paused_at": None, **columns}
    table.sql(
        "INSERT INTO {queue} (name, metadata, paused_at, updated_at) VALUES (%s, %s, %s, %s)",
        name,
        given["metadata"],
        given["paused_at"],
        updated_at,
    )


def queues(table: Table) -> list[str]:
    return [row["name"] for row in table.sql("SELECT name FROM {queue} ORDER BY name")]


# -- jobs


@pytest.mark.parametrize("state", FINISHED)
def test_only_this_state_and_only_what_is_older_than_the_retention(call: Caller, table: Table, state: str) -> None:
    gone = [old(table, state), old(table, state, queue="another", unique_key=b"key", unique_states=0xFF)]
    kept = [table.add(state=state, finalized_at=NOW - DAY)]
    kept += [old(table, each) for each in FINISHED if each != state]
    unfinished = set(JobState) - {JobState(each) for each in FINISHED}
    kept += [table.add(state=each.value, scheduled_at=NOW - 9 * DAY, created_at=NOW - 9 * DAY) for each in unfinished]
    assert clean(call, state) == len(gone)
    assert ids(table) == sorted(kept)


def test_no_retention_at_all_takes_what_is_finished_and_the_longest_takes_nothing(call: Caller, table: Table) -> None:
    old(table, finalized_at=NOW - MOMENT)
    at_this_moment = old(table, finalized_at=NOW)
    assert clean(call, retention=timedelta.max) == 0
    assert clean(call, retention=timedelta(0)) == 1
    assert ids(table) == [at_this_moment]


def test_the_oldest_go_first(call: Caller, table: Table) -> None:
    found = [old(table, finalized_at=NOW - hours * timedelta(hours=1)) for hours in (30, 50, 40)]
    assert [clean(call, limit=1) for _ in range(2)] == [1, 1]
    assert ids(table) == [found[0]]
    assert [clean(call, limit=1), clean(call, limit=1)] == [1, 0]


def test_locked_rows_stall_nobody(call: Caller, table: Table, other: sa.Connection) -> None:
    held, free = old(table, finalized_at=NOW - 9 * DAY), old(table)
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {held} FOR UPDATE')
    assert clean(call, limit=1) == 1
    assert ids(table) == [held]
    assert clean(call) == 0
    other.rollback()
    assert clean(call) == 1
    assert free not in ids(table)


def test_job_that_is_retried_in_an_open_transaction_is_not_deleted(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    retried = old(table, "discarded")
    other.exec_driver_sql(
        f"UPDATE \"{call.schema}\".river_job SET state = 'available', finalized_at = NULL WHERE id = {retried}"
    )
    assert clean(call, "discarded") == 0
    other.commit()
    assert clean(call, "discarded") == 0
    assert table.state(retried) is JobState.AVAILABLE


def test_two_leaders_take_different_rows(call: Caller, table: Table, other: sa.Connection) -> None:
    first, second, third = (old(table, finalized_at=NOW - days * DAY) for days in (5, 4, 3))
    options: dict[str, Any] = {"state": JobState.COMPLETED, "retention": DAY, "now": NOW}
    assert job_delete_finished(other, call.schema, limit=2, **options) == 2
    assert clean(call, limit=2) == 1
    assert ids(table) == [first, second]
    other.commit()
    assert ids(table) == []
    assert third not in ids(table)


def test_without_a_time_given_the_database_says_what_time_it_is(call: Caller, table: Table) -> None:
    gone = old(table, finalized_at=table.now() - DAY - timedelta(seconds=1))
    kept = old(table, finalized_at=table.now() - DAY + timedelta(hours=1))
    assert call(job_delete_finished, state=JobState.COMPLETED, retention=DAY, limit=100) == 1
    assert (gone, ids(table)) == (gone, [kept])


# -- the plan


@pytest.fixture(scope="module")
def many(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """20 000 finished jobs among 20 000 available ones; every second finished one is past its retention."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        conn.execute(
            """INSERT INTO river_job (state, finalized_at, attempt, max_attempts, args, kind)
            SELECT state, CASE state WHEN 'completed' THEN timestamptz '2026-11-21 05:00:00+00'
                - CASE WHEN n % 2 = 0 THEN interval '2 days' ELSE interval '1 hour' END END, 1, 25, '{}', 'k'
            FROM generate_series(1, 20000) n, unnest(ARRAY['completed', 'available']::river_job_state[]) state"""
        )
        conn.execute("VACUUM ANALYZE river_job")
        yield conn
    schema_pool.give_back(schema)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [1, 1_000])
def test_finished_jobs_are_found_by_their_index_and_deleted_by_their_key(
    many: psycopg.Connection[Any], mode: str, limit: int
) -> None:
    statement = job_clean._DELETE_FINISHED[JobState.COMPLETED]
    nodes = plan(many, statement, mode, retention=microseconds(DAY), limit=limit, now=NOW.isoformat())
    scans = [node for node in nodes if node.get("Relation Name") == "river_job" and "Scan" in node["Node Type"]]
    assert {node.get("Index Name") for node in scans} == {"river_job_state_and_finalized_at_index", "river_job_pkey"}
    assert not any(node["Node Type"] == "Sort" for node in nodes), nodes
    assert max(rows_read(node) for node in scans) <= limit


# -- queues


def test_queues_that_nobody_has_touched_for_a_day_go(call: Caller, table: Table) -> None:
    add_queue(table, "gone")
    add_queue(table, "kept", NOW - DAY)
    assert clean_queues(call) == ["gone"]
    assert queues(table) == ["kept"]


def test_paused_queues_and_those_with_metadata_are_spared(call: Caller, table: Table) -> None:
    add_queue(table, "paused", paused_at=NOW - 9 * DAY)
    add_queue(table, "described", metadata='{"team": "mail"}')
    add_queue(table, "gone")
    assert clean_queues(call) == ["gone"]
    assert queues(table) == ["described", "paused"]


def test_queues_go_in_batches_the_longest_unused_first(call: Caller, table: Table) -> None:
    for name, days in (("b", 3), ("a", 2), ("c", 4)):
        add_queue(table, name, NOW - days * DAY)
    assert sorted(clean_queues(call, limit=2)) == ["b", "c"]
    assert queues(table) == ["a"]


def test_queue_that_is_just_being_touched_stays(call: Caller, table: Table, other: sa.Connection) -> None:
    add_queue(table, "back")
    add_queue(table, "gone")
    queue_create_or_touch(other, call.schema, "back", now=NOW)
    assert clean_queues(call) == ["gone"]
    other.commit()
    assert clean_queues(call) == []
    assert queues(table) == ["back"]


def test_queue_that_is_touched_while_it_is_being_deleted_is_there_again(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    """The touch waits for the cleaner's transaction, finds the row gone, and makes it anew."""
    add_queue(table, "back")
    assert queue_delete_unused(other, call.schema, retention=DAY, limit=100, now=NOW) == ["back"]
    deleting = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    touched: list[str] = []

    def touch() -> None:
        touched.append(call(queue_create_or_touch, "back", now=NOW).name)

    touching = threading.Thread(target=touch)
    touching.start()
    while not table.sql("SELECT pid FROM pg_locks WHERE %s = ANY (pg_blocking_pids(pid))", deleting):
        pass
    other.commit()
    touching.join(10)
    assert touched == queues(table) == ["back"]
