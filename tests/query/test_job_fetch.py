from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query import job_fetch
from riverq.query.job_fetch import claimed_job, job_get_available
from riverq.query.job_read import job_get_by_id
from riverq.query.rows import texts
from riverq.query.statement import from_us
from tests.fix_schema import SchemaPool
from tests.query.arrange import CLAIMED_AT, DEFAULT_MASK, ME, Caller, Table
from tests.query.test_plans import ASYNCPG, MODES, plan

ERROR = {"at": "2026-01-01T00:00:00Z", "attempt": 1, "error": "x", "trace": ""}


def test_claims_due_jobs_of_the_queue_in_order(call: Caller, table: Table) -> None:
    now = table.now()
    late = table.add(priority=1, scheduled_at=now - timedelta(seconds=1))
    low = table.add(priority=2, scheduled_at=now - timedelta(hours=1))
    early = table.add(priority=1, scheduled_at=now - timedelta(seconds=2))
    twin = table.add(priority=1, scheduled_at=now - timedelta(seconds=1))
    table.add(scheduled_at=now + timedelta(hours=1))
    table.add(queue="other")
    for state in JobState:
        if state is not JobState.AVAILABLE:
            table.add(state=state.value)

    assert [row.id for row in call.claim(limit=3)] == [early, late, twin]
    assert [row.id for row in call.claim()] == [low]
    assert call.claim() == []


def test_the_order_does_not_hang_on_the_plan(call: Caller, table: Table) -> None:
    """A merge join gives the rows back by id."""
    now = table.now()
    ids = [table.add(scheduled_at=now - timedelta(seconds=age)) for age in range(20)]

    def claim(conn: sa.Connection, schema: str) -> list[int]:
        for join in ("nestloop", "hashjoin"):
            conn.exec_driver_sql(f"SET LOCAL enable_{join} = off")
        return [row.id for row in job_get_available(conn, schema, client_id=ME, queue="default", limit=20)]

    assert call(claim) == ids[::-1]


def test_claim_returns_what_the_row_holds(call: Caller, table: Table) -> None:
    job_id = table.add(
        args={"a": "é", "n": 1.5},
        metadata={"cancel_attempted_at": "2026-01-01T00:00:00Z"},
        tags=["tag", 'a"b,c'],
        errors=[ERROR],
        attempt=3,
        attempted_by=["other", "another"],
        unique_key=b"\x00key",
        unique_states=DEFAULT_MASK,
        scheduled_at=CLAIMED_AT,
    )
    [row] = call.claim()
    stored = table.get(job_id)
    assert row.attempt == 4
    assert row.cancel_mark == "2026-01-01T00:00:00Z"
    assert json.loads(row.args) == {"a": "é", "n": 1.5}
    assert from_us(row.attempted_at_us) == stored["attempted_at"]
    assert from_us(row.created_at_us) == stored["created_at"]
    assert from_us(row.scheduled_at_us) == CLAIMED_AT
    assert texts(row.attempted_by) == ("other", "another", ME)
    assert [json.loads(each) for each in texts(row.errors)] == [ERROR]
    # What the client fills in makes the same row as reading it again.
    claimed = claimed_job(row, queue="default", client_id=ME)
    assert claimed == call(job_get_by_id, job_id)
    assert claimed.tags == ("tag", 'a"b,c')
    assert claimed.unique_key == b"\x00key"
    assert claimed.unique_states is not None
    assert JobState.CANCELLED not in claimed.unique_states
    assert claimed.created_at.tzinfo is UTC


def test_plain_claims_leave_the_rare_columns_empty(call: Caller, table: Table) -> None:
    job_id = table.add()
    [row] = call.claim()
    assert (row.tags, row.errors, row.attempted_by, row.unique_key, row.cancel_mark) == (None,) * 5
    assert claimed_job(row, queue="default", client_id=ME) == call(job_get_by_id, job_id)


@pytest.mark.parametrize(("before", "kept"), [(0, 0), (1, 1), (99, 99), (100, 99), (150, 99)])
def test_attempted_by_keeps_its_newest(call: Caller, table: Table, before: int, kept: int) -> None:
    names = [f"c{number}" for number in range(before)]
    job_id = table.add(attempted_by=names or None)
    call.claim()
    assert table.get(job_id)["attempted_by"] == [*names[before - kept :], ME]


def test_attempted_by_max_one_keeps_the_claimer_only(call: Caller, table: Table) -> None:
    job_id = table.add(attempted_by=["a", "b"])
    call.claim(attempted_by_max=1)
    assert table.get(job_id)["attempted_by"] == [ME]


def test_locked_rows_are_passed_over(call: Caller, table: Table, engine: sa.Engine) -> None:
    first, second = table.add(), table.add()
    with engine.connect() as other:
        other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {first} FOR UPDATE')
        assert [row.id for row in call.claim()] == [second]


def test_a_given_now_decides_what_is_due(call: Caller, table: Table) -> None:
    job_id = table.add(scheduled_at=CLAIMED_AT)
    assert call.claim(now=CLAIMED_AT - timedelta(microseconds=1)) == []
    [row] = call.claim(now=CLAIMED_AT)
    assert (row.id, from_us(row.attempted_at_us)) == (job_id, CLAIMED_AT)


@pytest.mark.parametrize("scheduled_at", ["-infinity", "4713-01-01 00:00:00 BC"])
def test_times_that_python_cannot_hold_do_not_stop_the_queue(call: Caller, table: Table, scheduled_at: str) -> None:
    odd, plain = table.add(scheduled_at=scheduled_at), table.add()
    table.sql("UPDATE {job} SET created_at = 'infinity' WHERE id = %s", plain)
    rows = call.claim()
    assert [row.id for row in rows] == [odd, plain]
    assert [claimed_job(row, queue="default", client_id=ME).created_at.year for row in rows][1] == 9999


def test_an_exhausted_smallint_does_not_stop_the_queue(call: Caller, table: Table) -> None:
    table.add(attempt=32767, max_attempts=32767)
    assert [row.attempt for row in call.claim()] == [32767]


def test_two_claimers_share_without_overlap(call: Caller, table: Table, engine: sa.Engine) -> None:
    ids = [table.add() for _ in range(10)]
    with engine.connect() as other, other.begin():
        theirs = job_get_available(other, call.schema, client_id="them", queue="default", limit=4)
        ours: list[Any] = call.claim()
    assert sorted(row.id for row in [*theirs, *ours]) == ids


# -- known kinds only


def test_other_kinds_are_passed_over_untouched(call: Caller, table: Table) -> None:
    now = table.now()
    unknown = [table.add(kind="unknown", scheduled_at=now - timedelta(hours=1)) for _ in range(5)]
    known = [table.add(kind=kind, scheduled_at=now - timedelta(seconds=9 - n)) for n, kind in enumerate("abab")]
    before = [table.get(job_id) for job_id in unknown]
    assert [row.id for row in call.claim(kinds=["a", "b"], limit=3)] == known[:3]
    assert [row.id for row in call.claim(kinds=["b"])] == known[3:]
    assert call.claim(kinds=["a", "b"]) == []
    assert call.claim(kinds=[]) == []
    assert [table.get(job_id) for job_id in unknown] == before
    assert [row.id for row in call.claim()] == unknown


@pytest.mark.parametrize("kind", ["NULL", "", "a,b", '"', "\\", "{x}", " a ", "it's", "%s", "é", "A"])
def test_any_kind_may_be_known(call: Caller, table: Table, kind: str) -> None:
    job_id = table.add(kind=kind or "k")
    table.add(kind="other")
    assert [row.kind for row in call.claim(kinds=["first", kind or "k", kind or "k"])] == [kind or "k"]
    assert table.state(job_id) is JobState.RUNNING
    assert call.claim(kinds=["OTHER", "othe", "others"]) == []


def test_rows_that_are_passed_over_are_not_locked(call: Caller, table: Table, engine: sa.Engine) -> None:
    unknown, known = table.add(kind="unknown"), table.add(kind="known")
    with engine.connect() as other, other.begin():
        rows = job_get_available(other, call.schema, client_id="them", queue="default", limit=9, kinds=["known"])
        assert [row.id for row in rows] == [known]
        assert table.sql("SELECT id FROM {job} WHERE id = %s FOR UPDATE NOWAIT", unknown) == [{"id": unknown}]


def test_two_claimers_of_different_kinds_never_meet(call: Caller, table: Table, engine: sa.Engine) -> None:
    ids = [table.add(kind="ab"[n % 2]) for n in range(10)]
    with engine.connect() as other, other.begin():
        theirs = job_get_available(other, call.schema, client_id="them", queue="default", limit=9, kinds=["a"])
        ours: list[Any] = call.claim(kinds=["b"])
    assert ([row.id for row in theirs], [row.id for row in ours]) == (ids[::2], ids[1::2])


UNKNOWN, KNOWN, FINISHED = 6_000, 500, 12_000


@pytest.fixture(scope="module")
def crowded(database_url: str, schema_pool: SchemaPool) -> Iterator[psycopg.Connection[Any]]:
    """A queue with jobs of other kinds in front, and many more jobs of the known kind that are finished."""
    schema = schema_pool.take()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {schema}")
        for kind, state, finalized, first, count in (
            ("'unknown' || n % 3", "available", "NULL", 1, UNKNOWN),
            ("'known'", "available", "NULL", UNKNOWN, KNOWN),
            ("'known'", "completed", "now()", 1, FINISHED),
        ):
            conn.execute(
                f"""INSERT INTO river_job (state, max_attempts, args, kind, finalized_at, scheduled_at)
                SELECT '{state}', 25, '{{}}', {kind}, {finalized}, to_timestamp({first} + n)
                FROM generate_series(1, {count}) n"""
            )
        conn.execute("VACUUM ANALYZE river_job")
        yield conn
    schema_pool.give_back(schema)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", ["{known}", "{" + ",".join(f"k{n}" for n in range(300)) + ",known}"])
def test_the_filtered_claim_stays_on_the_fetching_index(
    crowded: psycopg.Connection[Any], mode: str, kinds: str
) -> None:
    """Not on the one on `kind`, where every finished job of the kind is, and without sorting what is due."""
    params = {"client_id": ME, "queue": "default", "limit": 50, "attempted_by_kept": 99, "now": None, "kinds": kinds}
    nodes = plan(crowded, job_fetch._claim_known, mode, **params)
    assert nodes[0]["Actual Rows"] == 50
    indexes = [node["Index Name"] for node in nodes if "Index Name" in node]
    assert set(indexes) <= {"river_job_prioritized_fetching_index", "river_job_pkey"}
    fetching = [node for node in nodes if node.get("Index Name") == "river_job_prioritized_fetching_index"]
    assert len(fetching) == 1
    assert fetching[0]["Node Type"] == "Index Scan"
    assert (fetching[0]["Actual Rows"], fetching[0]["Rows Removed by Filter"]) == (50, UNKNOWN)
    assert "hashed SubPlan" in fetching[0]["Filter"]  # the kinds are read once, not once per row
    sorts = [node for node in nodes if node["Node Type"] == "Sort"]
    assert all(node["Actual Rows"] <= 50 for node in sorts)


def test_the_plain_claim_does_not_know_of_kinds() -> None:
    plain, order = job_fetch._claim.prepare(ASYNCPG, "s")
    assert "unnest" not in plain
    assert order is not None
    assert "kinds" not in order
