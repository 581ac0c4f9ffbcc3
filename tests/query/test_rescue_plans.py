"""What rescuing costs where nearly all jobs have ended: it reads the running ones, and no others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from riverq.query import job_fetch, job_rescue, orphans
from riverq.query.array import integer_array, text_array
from riverq.query.job_rescue import RunFence
from riverq.query.statement import microseconds
from tests.fix_schema import SchemaPool
from tests.query.test_plans import MODES, plan, rows_read

DONE, RUNNING, CLIENTS = 20_000, 40, 10
GRACE = timedelta(seconds=30)
LEADER = str(uuid.UUID(int=1))
RUNS = [RunFence(DONE + number, number, f"client {number % CLIENTS}") for number in range(1, RUNNING + 1)]


@pytest.fixture(scope="module")
def mostly_done(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """A schema, in the search_path, with so many completed jobs and so few running ones, all of dead clients."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        conn.execute(
            f"""INSERT INTO river_job (state, max_attempts, attempted_at, finalized_at, attempted_by, args, kind)
            SELECT 'completed', 25, now(), now(), '{{a}}', '{{}}', 'k' FROM generate_series(1, {DONE})"""
        )
        conn.execute(
            f"""INSERT INTO river_job (id, state, max_attempts, attempt, attempted_at, attempted_by, args, kind)
            SELECT {DONE} + n, 'running', 25, 1, to_timestamp(0) + n * interval '1us',
            ARRAY['client ' || n % {CLIENTS}], '{{}}', 'k' FROM generate_series(1, {RUNNING}) n"""
        )
        conn.execute(
            f"""INSERT INTO riverq_client (client_id, incarnation, started_at, seen_at)
            SELECT 'client ' || n, gen_random_uuid(), to_timestamp(0), now() - interval '1 day'
            FROM generate_series(0, {CLIENTS - 1}) n"""
        )
        conn.execute("INSERT INTO riverq_client (client_id, incarnation) VALUES ('leader', %s)", (LEADER,))
        conn.execute("VACUUM ANALYZE river_job, riverq_client")
        yield conn
    schema_pool.give_back(schema)


JUDGE = orphans._judge_params(orphans.Judge(GRACE, LEADER))
PAGE = {"after_id": 0, "limit": 1_000, "now": None}
SCANS = {
    "stuck": (job_rescue._get_stuck, {**PAGE, "horizon": microseconds(timedelta(hours=1))}),
    "orphans": (orphans._get[True], {**PAGE, **JUDGE}),
    "orphans by silence": (orphans._get[False], {**PAGE, **JUDGE}),
}
NOTHING = integer_array([None] * RUNNING)
RESCUE = {"state": text_array(["retryable"] * RUNNING), "scheduled_in": NOTHING, "scheduled_at": NOTHING}
SILENCE = {"long_silence": JUDGE["long_silence"], "now": None}
BY_ID = {
    "get_runs": (job_rescue._get_runs, {**job_rescue._fences(RUNS), "now": None}),
    "rescue": (job_rescue._rescue_many, {**job_rescue._fences(RUNS), **RESCUE, "now": None}),
    "confirm": (orphans._lock[True], {**orphans._fences(RUNS), **JUDGE, "now": None}),
    "living": (orphans._of_living, {**orphans._fences(RUNS), **SILENCE}),
}


def on_jobs(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for node in nodes if node.get("Relation Name") == "river_job" and "Scan" in node["Node Type"]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCANS)
def test_looking_reads_the_running_jobs_only(mostly_done: psycopg.Connection[Any], name: str, mode: str) -> None:
    statement, params = SCANS[name]
    nodes = plan(mostly_done, statement, mode, **params)
    assert nodes[0]["Actual Rows"] == RUNNING
    assert {node["Node Type"] for node in on_jobs(nodes)} <= {"Index Scan", "Bitmap Heap Scan"}, nodes
    assert max(rows_read(node) for node in on_jobs(nodes)) <= RUNNING


@pytest.mark.parametrize("mode", MODES)
def test_forgetting_reads_the_running_jobs_only(mostly_done: psycopg.Connection[Any], mode: str) -> None:
    nodes = plan(mostly_done, orphans._forget, mode, kept=1, now=None)
    assert nodes[0]["Actual Rows"] == 1
    assert {node["Node Type"] for node in on_jobs(nodes)} <= {"Index Scan", "Bitmap Heap Scan"}, nodes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BY_ID)
def test_known_runs_are_found_by_their_primary_key(mostly_done: psycopg.Connection[Any], name: str, mode: str) -> None:
    statement, params = BY_ID[name]
    nodes = plan(mostly_done, statement, mode, **params)
    assert {node["Index Name"] for node in on_jobs(nodes)} == {"river_job_pkey"}, nodes
    assert nodes[0]["Actual Rows"] == (0 if name == "living" else RUNNING)
    assert max(map(rows_read, on_jobs(nodes))) <= RUNNING


@pytest.mark.parametrize("mode", MODES)
def test_looking_for_lost_claims_reads_the_running_jobs_only(mostly_done: psycopg.Connection[Any], mode: str) -> None:
    claimant = {"client_id": "client 1", "incarnation": LEADER, "grace": 0, "queue": "default"}
    ago = {"from_ago": 10**16, "to_ago": 0, "now": None}
    with mostly_done.transaction(force_rollback=True):
        mostly_done.execute("DELETE FROM riverq_client WHERE client_id = 'client 1'")
        nodes = plan(mostly_done, job_fetch._lost, mode, **claimant, after=0, before=10**15, **ago, limit=10)
    assert nodes[0]["Actual Rows"] == RUNNING // CLIENTS
    assert {node["Node Type"] for node in on_jobs(nodes)} <= {"Index Scan", "Bitmap Heap Scan"}, nodes
    assert max(rows_read(node) for node in on_jobs(nodes)) <= RUNNING


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["orphans", "confirm"])
def test_locks_are_read_once(mostly_done: psycopg.Connection[Any], name: str, mode: str) -> None:
    statement, params = {**SCANS, **BY_ID}[name]
    with mostly_done.transaction(force_rollback=True):
        mostly_done.execute("UPDATE riverq_client SET lock_taken = true, seen_at = now() - interval '1 minute'")
        mostly_done.execute("UPDATE riverq_client SET seen_at = now() WHERE client_id = 'leader'")
        nodes = plan(mostly_done, statement, mode, **params)
    reads = [node for node in nodes if node.get("Function Name") == "pg_lock_status"]
    assert [node["Actual Loops"] for node in reads] == [1], nodes
    assert nodes[0]["Actual Rows"] == RUNNING


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCANS)
def test_a_small_page_does_not_walk_past_all_that_is_finished(
    mostly_done: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """Where many jobs run, walking the primary key looks cheap; the finished jobs all lie before the running ones."""
    many = 4_000
    statement, params = SCANS[name]
    with mostly_done.transaction(force_rollback=True):
        mostly_done.execute(
            f"""INSERT INTO river_job (id, state, max_attempts, attempt, attempted_at, attempted_by, args, kind)
            SELECT {DONE + RUNNING} + n, 'running', 25, 1, to_timestamp(0), '{{client 1}}', '{{}}', 'k'
            FROM generate_series(1, {many}) n"""
        )
        mostly_done.execute("ANALYZE river_job")
        nodes = plan(mostly_done, statement, mode, **{**params, "limit": 10})
    assert nodes[0]["Actual Rows"] == 10
    assert max(rows_read(node) for node in on_jobs(nodes)) <= RUNNING + many, nodes
