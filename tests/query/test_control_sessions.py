"""Cancelling and steering queues in sessions of every kind: the same tables, the same values."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import Identifier
from sqlalchemy.dialects import postgresql as pg

from riverq import migrate
from riverq.job import JobState
from riverq.query.job_edit import job_cancel
from riverq.query.job_insert import job_insert_many
from riverq.query.queue import (
    queue_create_or_touch,
    queue_end_pauses,
    queue_get,
    queue_list,
    queue_next_pause_end,
    queue_pause,
    queue_resume,
    queue_update,
)
from riverq.query.statement import integer_param
from riverq.query.tables import Tables, statement
from tests.fix_database import Transact
from tests.fix_schema import SchemaPool
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT, Caller, job, notified, unique
from tests.query.test_sessions import DECOYS, SETTINGS

LATER = CLAIMED_AT + timedelta(hours=1)
CANCELLED_ONLY = 0b11010111
"""A mask without `retryable`; `cancelled` is in it."""


@statement
def _trap(t: Tables) -> sa.Executable:
    """Make a job one whose cancellation meets the unique index: retryable, with a key that another has."""
    taken = sa.cast(sa.literal_column("'k'"), pg.BYTEA())
    return (
        sa.update(t.job)
        .values(unique_key=taken, state=t.state(JobState.RETRYABLE))
        .where(t.job.c.id == integer_param("id"))
    )


def walk(conn: sa.Connection, schema: str) -> None:
    """Every statement of the two modules, with every value checked."""
    [made, _, trapped] = job_insert_many(
        conn, schema, [job(metadata='{"m":1}'), unique(b"k"), unique(b"other", CANCELLED_ONLY)], now=CLAIMED_AT
    )
    row = job_cancel(conn, schema, made.job.id, now=LATER)
    assert row is not None
    assert (row.state, row.finalized_at) == (JobState.CANCELLED, LATER)
    assert row.metadata == {"m": 1, "cancel_attempted_at": "2026-11-21T06:04:03.123457Z"}
    assert job_cancel(conn, schema, made.job.id) == row
    _trap.execute(conn, schema, id=trapped.job.id)
    freed = job_cancel(conn, schema, trapped.job.id)
    assert freed is not None
    assert (freed.state, freed.unique_states) == (JobState.CANCELLED, None)

    made_queue = queue_create_or_touch(conn, schema, "q", now=CLAIMED_AT)
    assert queue_pause(conn, schema, "q", until=LATER, own_tables=True, now=CLAIMED_AT)
    assert queue_next_pause_end(conn, schema, now=CLAIMED_AT) == timedelta(hours=1)
    assert queue_end_pauses(conn, schema, now=LATER).resumed == ["q"]
    assert queue_pause(conn, schema, "*", own_tables=True, now=LATER)
    paused = queue_get(conn, schema, "q")
    assert paused is not None
    assert (paused.created_at, paused.paused_at) == (made_queue.created_at, LATER)
    assert queue_list(conn, schema) == [paused]
    assert queue_resume(conn, schema, "q", own_tables=True)
    updated = queue_update(conn, schema, "q", '{"a":"%s :x"}')
    assert updated is not None
    assert updated.metadata == {"a": "%s :x"}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each[0])
def test_settings_of_the_session_change_nothing(call: Caller, settings: list[str]) -> None:
    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        for setting in settings:
            conn.exec_driver_sql(f"SET LOCAL {setting}")
        walk(conn, schema)

    call(set_and_walk)


def test_a_search_path_full_of_decoys_changes_nothing(call: Caller, empty_schema: str, engine: sa.Engine) -> None:
    more = """;
    CREATE FUNCTION to_char(timestamp, text) RETURNS text LANGUAGE sql AS $$ SELECT 'decoy' $$;
    CREATE FUNCTION concat(VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_concat';
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
            listener.execute(b"LISTEN " + Identifier(f"{name}.river_control").as_bytes(listener))
            transact(adapter, walk, name)
            heard = [json.loads(note.payload)["action"] for note in notified(listener)]
        # Postgres sends equal ones once.
        assert heard == audible(["cancel", "cancel", "pause", "resume", "pause", "metadata_changed"])
    finally:
        schema_pool.drop(name)
