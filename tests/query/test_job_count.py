from __future__ import annotations

import psycopg

from riverq.job import JobState
from riverq.query import job_count
from riverq.query.job_count import JobCounts, job_count_by_queue
from tests.query.arrange import CLAIMED_AT, Caller, Table
from tests.query.test_plans import ASYNCPG, _nodes, rows_read

FINISHED = (JobState.CANCELLED, JobState.COMPLETED, JobState.DISCARDED)


def test_nothing_is_counted_as_nothing(call: Caller, table: Table) -> None:
    assert call(job_count_by_queue) == {}


def test_only_what_waits_and_what_runs_is_counted_by_queue(call: Caller, table: Table) -> None:
    for state in JobState:
        table.add(state=state.value, finalized_at=CLAIMED_AT if state in FINISHED else None)
    for _ in range(2):
        table.add(state="available", queue="mail")
    table.add(state="completed", queue="finished", finalized_at=CLAIMED_AT)
    assert call(job_count_by_queue) == {"default": JobCounts(1, 1), "mail": JobCounts(2, 0)}


def test_the_many_finished_jobs_are_not_read(database_url: str, schema: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        for state, count in (("completed", 20_000), ("available", 10), ("running", 10)):
            conn.execute(
                f"""INSERT INTO river_job (state, max_attempts, finalized_at, args, kind)
                SELECT '{state}', 25, CASE WHEN '{state}' = 'completed' THEN now() END, '{{}}', 'k'
                FROM generate_series(1, {count})"""
            )
        conn.execute("VACUUM ANALYZE river_job")
        text, _ = job_count._count_by_queue.prepare(ASYNCPG, schema)
        found = conn.execute("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + text).fetchone()
    assert found is not None
    nodes = list(_nodes(found[0][0]["Plan"]))
    assert nodes[0]["Actual Rows"] == 1
    assert max(map(rows_read, nodes)) <= 20
