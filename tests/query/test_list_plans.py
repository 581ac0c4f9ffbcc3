"""The plans that listing rests on: a page is read from an index that has its order, and no further than its end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from riverq.job_list import Cursor, list_params
from riverq.query import job_list
from tests.fix_schema import SchemaPool
from tests.query.test_plans import MODES, plan, rows_read

ROWS, PAGE = 10_000, 100


@pytest.fixture(scope="module")
def history(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """A schema, in the search_path, as a fleet leaves one: nearly all completed, some failed, some that wait."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        conn.execute(
            f"""INSERT INTO river_job
            (id, state, finalized_at, scheduled_at, attempted_at, args, kind, queue, priority, max_attempts, metadata)
            SELECT n, s.state::river_job_state,
            CASE WHEN s.state IN ('completed', 'discarded') THEN to_timestamp(n) END,
            to_timestamp(n % 977), to_timestamp(n), '{{}}', 'kind' || n % 20, 'q' || n % 2, n % 4 + 1, 25,
            jsonb_build_object('customer', n)
            FROM generate_series(1, {ROWS}) AS n, LATERAL (SELECT CASE WHEN n % 10 < 6 THEN 'completed' WHEN n % 10 < 7
            THEN 'discarded' WHEN n % 10 < 9 THEN 'available' ELSE 'running' END AS state) AS s"""
        )
        conn.execute("VACUUM ANALYZE river_job")
        yield conn
    schema_pool.give_back(schema)


def explained(conn: psycopg.Connection[Any], mode: str, **options: Any) -> list[dict[str, Any]]:
    after = options.pop("after", None)
    params = list_params(options, limit=PAGE, after=after)
    return plan(conn, job_list._list(job_list._shape(params)), mode, **job_list._values(params))


def place(order_by: str, seconds: int, *, queue: str = "q") -> str:
    return Cursor(ROWS // 2, "k", queue, order_by, datetime.fromtimestamp(seconds, UTC)).encode()


IN_ORDER: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("river_job_pkey", {}),
    "all_descending": ("river_job_pkey", {"descending": True}),
    "all_further_on": ("river_job_pkey", {"after": Cursor(ROWS // 2, "k", "q", "id").encode()}),
    "one_state_finalized": (
        "river_job_state_and_finalized_at_index",
        {"states": ["completed"], "order_by": "finalized_at"},
    ),
    "one_state_by_time": (
        "river_job_state_and_finalized_at_index",
        {"states": ["completed"], "order_by": "time", "descending": True},
    ),
    "one_state_by_time_further_on": (
        "river_job_state_and_finalized_at_index",
        {"states": ["completed"], "order_by": "time", "descending": True, "after": place("time", ROWS // 2)},
    ),
    "what_is_claimed_next": (
        "river_job_prioritized_fetching_index",
        {"states": ["available"], "queues": ["q1"], "priorities": [2], "order_by": "scheduled_at"},
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IN_ORDER)
def test_a_page_is_read_from_an_index_in_its_order(history: psycopg.Connection[Any], name: str, mode: str) -> None:
    index, options = IN_ORDER[name]
    nodes = explained(history, mode, **options)
    assert nodes[0]["Actual Rows"] == PAGE + 1
    assert [node["Index Name"] for node in nodes if "Scan" in node["Node Type"]] == [index], nodes
    assert not any(node["Node Type"] == "Sort" for node in nodes)  # at most one among equals
    assert max(map(rows_read, nodes)) <= PAGE + 5


FOUND: dict[str, tuple[str, int, dict[str, Any]]] = {
    "one_id": ("river_job_pkey", 1, {"ids": [7]}),
    "ids": ("river_job_pkey", 50, {"ids": range(1, 51)}),
    "kind_and_state": ("river_job_kind", 500, {"kinds": ["kind3"], "states": ["available"]}),
    "metadata": ("river_job_metadata_index", 1, {"metadata": {"customer": 77}}),
    "running_of_a_queue": (
        "river_job_prioritized_fetching_index",
        1000,
        {"states": ["running"], "queues": ["q1"], "order_by": "time"},
    ),
    "next_further_on": (
        "river_job_prioritized_fetching_index",
        500,
        {
            "states": ["available"],
            "queues": ["q1"],
            "priorities": [2],
            "order_by": "scheduled_at",
            "after": place("scheduled_at", 500, queue="q1"),
        },
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_few_among_many_are_found_by_an_index(history: psycopg.Connection[Any], name: str) -> None:
    """With the values known, as the server plans until a plan for any values is the cheaper one."""
    index, most, options = FOUND[name]
    nodes = explained(history, "force_custom_plan", **options)
    assert [node["Index Name"] for node in nodes if "Index Name" in node] == [index], nodes
    assert max(map(rows_read, nodes)) <= most


@pytest.mark.parametrize("mode", MODES)
def test_jobs_of_a_state_and_a_queue_are_found_without_reading_the_table(
    history: psycopg.Connection[Any], mode: str
) -> None:
    for states in (["available"], ["available", "running"]):
        nodes = explained(history, mode, states=states, queues=["q1"])
        assert not any(node["Node Type"] == "Seq Scan" for node in nodes)
        assert max(map(rows_read, nodes)) <= ROWS // 5
