"""The plans that throughput rests on, at sizes where the planner could go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.query import job_fetch, job_read, job_set_state
from riverq.query.array import integer_array
from riverq.query.statement import Statement
from riverq.state import Run, completed
from tests.fix_schema import SchemaPool
from tests.query.arrange import ME

ROWS, BATCH = 12_000, 1_000
ASYNCPG = sa.make_url("postgresql+asyncpg://").get_dialect()()
"""Its numbered parameters are what PREPARE takes."""
MODES = ("force_generic_plan", "force_custom_plan")


@pytest.fixture(scope="module")
def large(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """A schema, in the search_path as `s`, with so many rows running and so many available."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        for state, first in (("running", 1), ("available", ROWS + 1)):
            conn.execute(
                f"""INSERT INTO river_job
                (id, state, attempt, max_attempts, attempted_at, attempted_by, args, kind, queue)
                SELECT n, '{state}', 1, 25, to_timestamp(0) + n * interval '1 microsecond', '{{{ME}}}', '{{}}', 'k',
                'q' || n % 2 FROM generate_series({first}, {first + ROWS - 1}) n"""
            )
        conn.execute("VACUUM ANALYZE river_job")
        yield conn
    schema_pool.give_back(schema)


def plan(conn: psycopg.Connection[Any], statement: Statement, mode: str, **params: Any) -> list[dict[str, Any]]:
    """Every node of the plan, as it ran; the effects are rolled back."""
    row = conn.execute("SELECT current_schema()").fetchone()
    assert row is not None
    text, order = statement.prepare(ASYNCPG, row[0])
    assert order is not None
    types = ", ".join("bigint" if isinstance(params[name], int) else "text" for name in order)
    values = ", ".join(
        "NULL" if params[name] is None else "'" + str(params[name]).replace("'", "''") + "'" for name in order
    )
    conn.execute(f"SET plan_cache_mode = {mode}")
    with conn.transaction(force_rollback=True):
        conn.execute(f"PREPARE tried ({types}) AS {text}")
        found = conn.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE tried ({values})").fetchone()
        conn.execute("DEALLOCATE tried")
    assert found is not None
    document = found[0] if isinstance(found[0], list) else json.loads(found[0])
    return list(_nodes(document[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def rows_read(node: dict[str, Any]) -> int:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])


def run_params(size: int) -> dict[str, Any]:
    ids = integer_array(range(1, size + 1))
    return {"client_id": ME, "id": ids, "us": ids, "now": None}


def set_state_params(size: int) -> dict[str, Any]:
    return job_set_state._state_params(ME, [completed(Run(each, each)) for each in range(1, size + 1)], None)


STATEMENTS = {
    "complete": (job_set_state._complete_many, run_params),
    "set_state": (job_set_state._set_state_many, set_state_params),
    "set_state_one": (job_set_state._set_state_one, set_state_params),
    "run_status": (job_read._run_status, run_params),
}


@pytest.mark.parametrize("size", [1, 10, BATCH])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STATEMENTS)
def test_runs_are_found_by_their_primary_key(large: psycopg.Connection[Any], name: str, mode: str, size: int) -> None:
    statement, params = STATEMENTS[name]
    nodes = plan(large, statement, mode, **params(size))
    on_jobs = [node for node in nodes if node.get("Relation Name") == "river_job" and "Scan" in node["Node Type"]]
    assert {node["Index Name"] for node in on_jobs} == {"river_job_pkey"}, nodes
    assert nodes[0]["Actual Rows"] == size
    assert max(map(rows_read, nodes)) <= size  # neither every running row nor a loop in a loop


@pytest.mark.parametrize("mode", MODES)
def test_the_claim_reads_the_fetching_index_up_to_its_limit(large: psycopg.Connection[Any], mode: str) -> None:
    params = {"client_id": ME, "queue": "q1", "limit": BATCH, "attempted_by_kept": 99, "now": None}
    nodes = plan(large, job_fetch._claim, mode, **params)
    found = [node for node in nodes if node.get("Index Name") == "river_job_prioritized_fetching_index"]
    assert len(found) == 1
    assert nodes[0]["Actual Rows"] == BATCH
    scanned = [node for node in nodes if node["Node Type"] in ("Index Scan", "Index Only Scan")]
    assert found[0] in scanned
    assert rows_read(found[0]) <= BATCH


@pytest.mark.parametrize("mode", MODES)
def test_the_estimate_does_not_depend_on_the_batch(large: psycopg.Connection[Any], mode: str) -> None:
    """So that a plan made for one small batch is the plan for every batch."""
    costs = {plan(large, job_set_state._complete_many, mode, **run_params(size))[0]["Plan Rows"] for size in (1, 100)}
    assert len(costs) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["complete", "set_state"])
def test_a_plan_made_for_a_small_table_is_not_quadratic_later(
    large: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """Its scans are hashed once; a loop over a scan would read the table once per row when the burst comes."""
    with large.transaction(force_rollback=True):
        large.execute("CREATE TEMP TABLE kept AS SELECT * FROM river_job WHERE id <= 30")
        large.execute("TRUNCATE river_job")
        large.execute("INSERT INTO river_job SELECT * FROM kept")
        large.execute("ANALYZE river_job")
        statement, params = STATEMENTS[name]
        nodes = plan(large, statement, mode, **params(20))
    scans = [node for node in nodes if node["Node Type"] == "Seq Scan"]
    assert scans
    assert all(node["Actual Loops"] == 1 for node in scans)
    assert not any(node["Node Type"] == "Nested Loop" for node in nodes)
