"""Retrying, deleting, updating and counting jobs in sessions of every kind: the same tables, the same values."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import Identifier

from riverq import migrate
from riverq.errors import JobConflictError
from riverq.job import JobState
from riverq.query.job_count import JobCounts, job_count_by_kind, job_count_by_queue, job_count_by_state
from riverq.query.job_delete import DeleteFilter, job_delete, job_delete_many
from riverq.query.job_edit import job_cancel
from riverq.query.job_fetch import job_get_available
from riverq.query.job_insert import job_insert_many
from riverq.query.job_retry import job_retry
from riverq.query.job_set_state import job_complete_many
from riverq.query.job_update import job_update, job_update_by_run
from riverq.state import Run
from tests.fix_database import Transact
from tests.fix_schema import SchemaPool
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT, ME, Caller, job, notified, unique
from tests.query.test_sessions import DECOYS, SETTINGS

LATER = CLAIMED_AT + timedelta(hours=1)


def walk(conn: sa.Connection, schema: str) -> None:
    """Every statement of the four modules, with every value checked."""
    walk_at_work(conn, schema)
    [plain, keyed] = job_insert_many(conn, schema, [job(metadata='{"m":1}'), unique(b"k")], now=CLAIMED_AT)
    job_cancel(conn, schema, plain.job.id)
    row = job_retry(conn, schema, plain.job.id, now=LATER)
    assert row is not None
    assert (row.state, row.scheduled_at, row.metadata) == (JobState.AVAILABLE, LATER, {"m": 1})
    assert job_retry(conn, schema, plain.job.id, now=LATER) == row
    updated = job_update(conn, schema, plain.job.id, metadata='{"output":"%s :x"}')
    assert updated is not None
    assert updated.metadata == {"m": 1, "output": "%s :x"}
    assert job_update(conn, schema, plain.job.id) == updated

    job_cancel(conn, schema, keyed.job.id)
    [twin] = job_insert_many(conn, schema, [unique(b"k")], now=CLAIMED_AT)
    with pytest.raises(JobConflictError):
        job_retry(conn, schema, keyed.job.id)
    assert job_delete(conn, schema, twin.job.id) is not None
    freed = job_retry(conn, schema, keyed.job.id, now=LATER)
    assert freed is not None
    assert (freed.state, freed.scheduled_at) == (JobState.AVAILABLE, LATER)

    assert job_count_by_state(conn, schema)[JobState.AVAILABLE] == 2
    assert job_count_by_queue(conn, schema) == {"default": JobCounts(2, 0)}
    assert job_count_by_queue(conn, schema, ["%s", "default"]) == {"%s": JobCounts(), "default": JobCounts(2, 0)}
    assert job_count_by_kind(conn, schema)["k"] == job_count_by_kind(conn, schema, ["k"])["k"]
    every = DeleteFilter(
        ids=[plain.job.id, keyed.job.id],
        kinds=["k", "%s"],
        priorities=[1],
        queues=["default", ":x"],
        states=[JobState.AVAILABLE],
    )
    assert [each.id for each in job_delete_many(conn, schema, every, limit=1)] == [plain.job.id]
    assert [each.id for each in job_delete_many(conn, schema, DeleteFilter(), limit=9)] == [keyed.job.id]


def walk_at_work(conn: sa.Connection, schema: str) -> None:
    """What a run writes; its job is gone at the end."""
    job_insert_many(conn, schema, [job(metadata='{"m":1}', queue="at work")], now=CLAIMED_AT)
    [claimed] = job_get_available(conn, schema, client_id=ME, queue="at work", limit=1)
    run = Run(claimed.id, claimed.attempted_at_us)
    updated = job_update_by_run(conn, schema, client_id=ME, run=run, metadata='{"output":"%s :x"}')
    assert updated is not None
    assert updated.metadata == {"m": 1, "output": "%s :x"}
    assert job_complete_many(conn, schema, client_id=ME, runs=[run]) == [run.job_id]
    assert job_delete(conn, schema, run.job_id) is not None


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each[0])
def test_settings_of_the_session_change_nothing(call: Caller, settings: list[str]) -> None:
    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        for setting in settings:
            conn.exec_driver_sql(f"SET LOCAL {setting}")
        walk(conn, schema)

    call(set_and_walk)


def test_a_search_path_full_of_decoys_changes_nothing(call: Caller, empty_schema: str, engine: sa.Engine) -> None:
    more = """;
    CREATE FUNCTION concat(VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_concat';
    CREATE FUNCTION jsonb_typeof(jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'decoy' $$;
    CREATE FUNCTION to_json(anyelement) RETURNS json LANGUAGE sql AS $$ SELECT '"decoy"'::json $$"""
    with engine.begin() as conn:
        conn.exec_driver_sql(f"SET LOCAL search_path = {empty_schema}")
        for statement in (DECOYS.strip() + more).split(";\n"):
            conn.exec_driver_sql(statement)

    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        conn.exec_driver_sql(f"SET LOCAL search_path = {empty_schema}, pg_catalog")
        walk(conn, schema)

    call(set_and_walk)


def test_execution_options_change_nothing(call: Caller) -> None:
    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        translate = {schema: "elsewhere", None: "elsewhere"}
        walk(conn.execution_options(schema_translate_map=translate, stream_results=True, yield_per=7), schema)

    call(set_and_walk)


def test_inside_savepoints(call: Caller) -> None:
    def nested(conn: sa.Connection, schema: str) -> None:
        outer = conn.begin_nested()
        walk(conn, schema)
        outer.rollback()
        walk(conn, schema)

    call(nested)


@pytest.mark.parametrize("name", ["Wei\"rd %s: $1 'Ä'", "100% (x)"])
def test_weird_schemas_are_told_on_their_own_channel(
    transact: Transact, adapter: str, schema_pool: SchemaPool, engine: sa.Engine, database_url: str, name: str
) -> None:
    schema_pool.create(name)
    try:
        migrate.up(engine, schema=name)
        with psycopg.connect(database_url, autocommit=True) as listener:
            listener.execute(b"LISTEN " + Identifier(f"{name}.river_insert").as_bytes(listener))
            transact(adapter, walk, name)
            heard = [json.loads(note.payload) for note in notified(listener)]
        assert heard == audible([{"queue": "default"}])  # Postgres sends equal ones once
    finally:
        schema_pool.drop(name)
