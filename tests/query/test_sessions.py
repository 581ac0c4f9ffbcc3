"""Whatever the caller's session is set to, statements reach the same tables with the same values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq import migrate
from riverq.job import JobState
from riverq.notification import Topic
from riverq.query.job_fetch import job_get_available
from riverq.query.job_insert import job_insert_many
from riverq.query.job_read import job_get_by_id
from riverq.query.job_set_state import job_complete_many, job_set_state_if_running_many
from riverq.query.job_upkeep import job_schedule_plain, job_schedule_unique
from riverq.query.leader import leader_attempt_elect, leader_resign
from riverq.query.notify import notify_many
from riverq.query.queue import queue_create_or_touch, queue_pause
from riverq.query.statement import Statement, sqlstate, text_param
from riverq.state import Run, errored
from tests.fix_database import EngineMaker, Transact
from tests.fix_schema import SchemaPool
from tests.fix_server import audible, plain
from tests.isolation import REPEATABLE_READ, SERIALIZABLE
from tests.query.arrange import CLAIMED_AT, ME, Caller, job, unique

LATER = CLAIMED_AT + timedelta(hours=1)
ERROR = '{"at":"2026-01-01T00:00:00Z","attempt":1,"error":"x","trace":""}'


def walk(conn: sa.Connection, schema: str) -> None:
    """A job's whole way, and the rest of what a session may meet, with every value checked."""
    options: dict[str, Any] = {
        "encoded_args": '{"a":1}',
        "metadata": '{"m":1}',
        "scheduled_at": CLAIMED_AT,
        "tags": ("tag",),
    }
    [made, again] = job_insert_many(conn, schema, [unique(**options), unique()], now=CLAIMED_AT)
    assert again.unique_skipped_as_duplicate
    assert (made.job.created_at, made.job.encoded_args) == (CLAIMED_AT, '{"a": 1}')
    [row] = job_get_available(conn, schema, client_id=ME, queue="default", limit=9, now=LATER)
    run = Run(row.id, row.attempted_at_us)
    failed = errored(run, error=ERROR, retry=timedelta(days=1), short=False, metadata='{"n":2}')
    [after] = job_set_state_if_running_many(conn, schema, client_id=ME, states=[failed], now=LATER)
    assert (after.state, after.scheduled_at) == (JobState.RETRYABLE, LATER + timedelta(days=1))
    assert (plain(after.metadata), len(after.errors)) == ({"m": 1, "n": 2}, 1)
    due = LATER + timedelta(days=1)
    assert len(job_schedule_plain(conn, schema, limit=9, look_ahead=timedelta(0), now=due)) == 1
    assert job_schedule_unique(conn, schema, look_ahead=timedelta(0), now=due).examined == 0
    [row] = job_get_available(conn, schema, client_id=ME, queue="default", limit=9, now=due)
    assert job_complete_many(conn, schema, client_id=ME, runs=[Run(row.id, row.attempted_at_us)], now=due) == [row.id]
    done = job_get_by_id(conn, schema, row.id)
    assert done is not None
    assert (done.state, done.finalized_at, done.attempted_by) == (JobState.COMPLETED, due, (ME, ME))
    term = leader_attempt_elect(conn, schema, leader_id=ME, ttl=timedelta(seconds=1), now=CLAIMED_AT)
    assert term is not None
    assert leader_resign(conn, schema, leader_id=ME, elected_at=term.elected_at)
    assert queue_create_or_touch(conn, schema, "q", now=CLAIMED_AT).created_at == CLAIMED_AT
    assert queue_pause(conn, schema, "q")
    assert notify_many(conn, schema, Topic.INSERT, ["x"]) is bool(audible(["x"]))


def run_on(engine: Any, fn: Callable[..., Any], *args: Any) -> Any:
    """In one transaction of an engine that the test made."""
    with engine.begin() as conn:
        return fn(conn, *args)


async def run_async(engine: AsyncEngine, fn: Callable[..., Any], *args: Any) -> Any:
    async with engine.begin() as conn:
        return await conn.run_sync(fn, *args)


def test_the_walk_itself(call: Caller) -> None:
    call(walk)


SETTINGS = [
    ["datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'", "timezone = 'Asia/Kathmandu'"],
    ["datestyle = 'SQL, MDY'", "intervalstyle = 'iso_8601'", "timezone = 'America/St_Johns'"],
    ["timezone = '-13:17'", "extra_float_digits = 0", "bytea_output = 'escape'"],
    ["standard_conforming_strings = on", "quote_all_identifiers = on", "array_nulls = on", "xmlbinary = hex"],
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each[0])
def test_settings_of_the_session_change_nothing(call: Caller, settings: list[str]) -> None:
    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        for setting in settings:
            conn.exec_driver_sql(f"SET LOCAL {setting}")
        walk(conn, schema)

    call(set_and_walk)


DECOYS = """
    CREATE TABLE river_job (id int); CREATE TABLE river_queue (id int); CREATE TABLE river_leader (id int);
    CREATE TYPE river_job_state AS ENUM ('decoy');
    CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz '2000-01-01' $$;
    CREATE FUNCTION statement_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz '2000-01-01' $$;
    CREATE FUNCTION pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'decoy'; END $$;
    CREATE FUNCTION cardinality(anyarray) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'decoy'; END $$;
    CREATE FUNCTION array_to_json(anyarray) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RAISE 'decoy'; END $$
"""


def test_a_search_path_full_of_decoys_changes_nothing(call: Caller, empty_schema: str, engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(f"SET LOCAL search_path = {empty_schema}")
        for statement in DECOYS.split(";\n"):
            conn.exec_driver_sql(statement)

    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        conn.exec_driver_sql(f"SET LOCAL search_path = {empty_schema}, pg_catalog")
        walk(conn, schema)
        [plain] = job_insert_many(conn, schema, [job()])
        assert plain.job.created_at.year > 2000

    call(set_and_walk)


def test_execution_options_change_nothing(call: Caller) -> None:
    """The application may translate schemas and stream results on its connection."""

    def set_and_walk(conn: sa.Connection, schema: str) -> None:
        translate = {schema: "elsewhere", None: "elsewhere"}
        walk(conn.execution_options(schema_translate_map=translate, stream_results=True, yield_per=7), schema)

    try:
        call(set_and_walk)
    finally:
        engine = call.transact.engine(call.adapter)  # options of a connection must not outlive it
        assert "schema_translate_map" not in engine.get_execution_options()


async def test_a_json_serializer_changes_nothing(make_engine: EngineMaker, adapter: str, schema: str) -> None:
    options = {"json_serializer": lambda _: '"decoy"', "json_deserializer": lambda _: "decoy"}
    engine = make_engine(adapter, **options)
    if isinstance(engine, AsyncEngine):
        await run_async(engine, walk, schema)
    else:
        run_on(engine, walk, schema)


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", REPEATABLE_READ, SERIALIZABLE])
async def test_isolation_levels(make_engine: EngineMaker, adapter: str, schema: str, isolation_level: str) -> None:
    engine = make_engine(adapter, isolation_level=isolation_level)
    fn: Callable[[sa.Connection, str], object] = walk
    if isolation_level == "AUTOCOMMIT":
        fn = lambda conn, schema: job_insert_many(conn, schema, [job(), unique(), unique()])  # noqa: E731  # one statement is all that runs there
    if isinstance(engine, AsyncEngine):
        await run_async(engine, fn, schema)
    else:
        run_on(engine, fn, schema)


def test_inside_savepoints(call: Caller) -> None:
    def nested(conn: sa.Connection, schema: str) -> None:
        outer = conn.begin_nested()
        walk(conn, schema)
        with pytest.raises(sa.exc.DBAPIError), conn.begin_nested():
            job_insert_many(conn, schema, [job(priority=0)])
        outer.rollback()
        walk(conn, schema)

    call(nested)


@pytest.mark.parametrize("name", ["Wei\"rd %s: $1 'Ä'", "100% (x)"])
def test_weird_schemas(transact: Transact, adapter: str, schema_pool: SchemaPool, engine: sa.Engine, name: str) -> None:
    schema_pool.create(name)
    try:
        migrate.up(engine, line="main", schema=name)
        transact(adapter, walk, name)
    finally:
        schema_pool.drop(name)


# -- the compiled text


DIALECTS = [
    sa.make_url(f"postgresql+{name}://").get_dialect()() for name in ("psycopg", "asyncpg", "pg8000", "psycopg2")
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.driver)
def test_a_statement_is_built_once_for_each_schema(dialect: sa.Dialect) -> None:
    built: list[str] = []

    def build(schema: str) -> sa.Executable:
        built.append(schema)
        return sa.select(text_param("x"), text_param("x"), text_param("y"))

    statement = Statement(build)
    first = statement.prepare(dialect, "a")
    assert statement.prepare(type(dialect)(), "a") is first  # another engine of the same kind
    statement.prepare(dialect, "b")
    assert built == ["a", "b"]


def test_repeated_parameters_are_bound_right(transact: Transact, adapter: str) -> None:
    statement = Statement(lambda _: sa.select(text_param("x"), text_param("y"), text_param("x")))
    found = transact(adapter, lambda conn: tuple(statement.execute(conn, "any", x="%s :x", y=None).one()))
    assert found == ("%s :x", None, "%s :x")


def test_a_missing_parameter_is_an_error(transact: Transact, adapter: str) -> None:
    statement = Statement(lambda _: sa.select(text_param("x")))
    with pytest.raises((KeyError, sa.exc.DBAPIError)):
        transact(adapter, lambda conn: statement.execute(conn, "any"))


def test_a_value_bound_at_build_time_is_refused() -> None:
    statement = Statement(lambda _: sa.select(sa.literal("forgotten")))
    with pytest.raises(AssertionError, match="bound at build time"):
        statement.prepare(DIALECTS[0], "any")


def test_every_adapters_errors_carry_their_sqlstate(call: Caller) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught:
        call(lambda conn, _: conn.exec_driver_sql("SELECT 1 / 0"))
    assert sqlstate(caught.value) == "22012"
