from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from riverq.job import JobState
from riverq.query import job_count
from riverq.query.job_count import JobCounts, job_count_by_kind, job_count_by_queue, job_count_by_state
from riverq.query.queue import queue_create_or_touch
from riverq.query.statement import Statement
from tests.fix_schema import SchemaPool
from tests.query.arrange import Caller, Table
from tests.query.test_plans import ASYNCPG, MODES, _nodes, plan, rows_read

NONE = dict.fromkeys(JobState, 0)


def one_of_each(table: Table) -> None:
    for state in JobState:
        table.add(state=state.value)


# -- by state


def test_every_state_is_counted_zeros_included(call: Caller, table: Table) -> None:
    assert call(job_count_by_state) == NONE
    one_of_each(table)
    table.add(state="retryable")
    counts = call(job_count_by_state)
    assert counts == dict.fromkeys(JobState, 1) | {JobState.RETRYABLE: 2}
    assert list(counts) == list(JobState)
    assert all(isinstance(state, JobState) for state in counts)


# -- by queue


def test_nothing_is_counted_as_nothing(call: Caller, table: Table) -> None:
    assert call(job_count_by_queue) == {}
    assert call(job_count_by_queue, []) == {}
    assert call(job_count_by_kind) == {}
    assert call(job_count_by_kind, []) == {}


def test_only_what_waits_and_what_runs_is_counted_by_queue(call: Caller, table: Table) -> None:
    one_of_each(table)
    for _ in range(2):
        table.add(state="available", queue="mail")
    table.add(state="completed", queue="finished")
    assert call(job_count_by_queue) == {"default": JobCounts(1, 1), "mail": JobCounts(2, 0)}


def test_queues_with_a_row_are_there_without_jobs(call: Caller, table: Table) -> None:
    call(queue_create_or_touch, "idle")
    table.add(queue="zoo", state="running")
    table.add(queue="Äpfel")
    counts = call(job_count_by_queue)
    assert counts == {"idle": JobCounts(), "zoo": JobCounts(0, 1), "Äpfel": JobCounts(1, 0)}
    assert list(counts) == ["idle", "zoo", "Äpfel"]


def test_queues_that_are_named_are_there_once_whether_or_not_they_exist(call: Caller, table: Table) -> None:
    one_of_each(table)
    call(queue_create_or_touch, "idle")
    counts = call(job_count_by_queue, ["none", "default", 'q,"{}', "default"])
    assert counts == {"default": JobCounts(1, 1), "none": JobCounts(), 'q,"{}': JobCounts()}
    assert list(counts) == ["default", "none", 'q,"{}']


# -- by kind


def test_every_kind_has_every_state(call: Caller, table: Table) -> None:
    one_of_each(table)
    table.add(kind="a", state="pending", queue="mail")
    counts = call(job_count_by_kind)
    assert counts == {"a": NONE | {JobState.PENDING: 1}, "k": dict.fromkeys(JobState, 1)}
    assert (list(counts), list(counts["a"])) == (["a", "k"], list(JobState))


def test_kinds_that_are_named_are_there_whether_or_not_they_have_jobs(call: Caller, table: Table) -> None:
    one_of_each(table)
    table.add(kind="b")
    counts = call(job_count_by_kind, ["b", "none", "b"])
    assert counts == {"b": NONE | {JobState.AVAILABLE: 1}, "none": NONE}
    assert list(counts) == ["b", "none"]


# -- the plans


@pytest.fixture(scope="module")
def mostly_done(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """A schema, in the search_path, with many finished jobs of one queue and kind, and few others."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        for state, count in (("completed", 20_000), ("available", 10), ("running", 10)):
            conn.execute(
                f"""INSERT INTO river_job (state, max_attempts, finalized_at, args, kind)
                SELECT '{state}', 25, CASE WHEN '{state}' = 'completed' THEN now() END, '{{}}',
                CASE WHEN '{state}' = 'completed' THEN 'many' ELSE 'few' END FROM generate_series(1, {count})"""
            )
        conn.execute("VACUUM ANALYZE river_job")
        yield conn
    schema_pool.give_back(schema)


@pytest.mark.parametrize(
    ("statement", "mode", "params"),
    [
        *((job_count._count_of_queues, mode, {"queue": "{default,none}"}) for mode in MODES),
        (job_count._count_of_kinds, "force_custom_plan", {"kind": "{few}"}),
    ],
)
def test_the_many_finished_jobs_are_not_read(
    mostly_done: psycopg.Connection[Any], statement: Statement, mode: str, params: dict[str, str]
) -> None:
    assert max(map(rows_read, plan(mostly_done, statement, mode, **params))) <= 20


def test_the_many_finished_jobs_are_not_read_for_all_queues(mostly_done: psycopg.Connection[Any]) -> None:
    schema = mostly_done.execute("SELECT current_schema()").fetchall()[0][0]
    text, _ = job_count._count_by_queue.prepare(ASYNCPG, schema)
    [found] = mostly_done.execute("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + text).fetchall()
    assert max(map(rows_read, _nodes(found[0][0]["Plan"]))) <= 20
