from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.query import measure
from riverq.query.job_set_state import job_complete_many
from riverq.query.measure import (
    Backend,
    backends,
    job_analyze,
    job_tally,
    lock_wait,
    missing_grant,
    schema_create,
    schema_drop,
    schema_mark,
    select_one,
    server_facts,
    wal_position,
)
from riverq.query.queue import queue_create_or_touch
from riverq.query.statement import from_us
from riverq.state import Run
from tests.fix_database import SESSION_APPLICATION, Transact
from tests.fix_schema import SchemaPool
from tests.query.arrange import ME, Caller, Table

MIXED = "Riverq_bench_Mixed"


@pytest.fixture
def name(schema_pool: SchemaPool) -> Iterator[str]:
    """The name of a schema that does not exist, and will not afterwards."""
    yield MIXED
    schema_pool.drop(MIXED)


def exists(table: Table, name: str) -> bool:
    return bool(table.sql("SELECT oid FROM pg_namespace WHERE nspname = %s", name))


def seen_waiting(call: Caller, application_name: str, wait_type: str) -> Backend:
    """The only backend of that name, as soon as it waits like this; it falls asleep a moment after it answered."""
    for _ in range(3000):
        [found] = call(backends, application_name)
        if found.wait_type == wait_type:
            break
        time.sleep(0.01)
    return found


def test_a_schema_is_made_with_its_mark_and_dropped_by_it(
    transact: Transact, adapter: str, name: str, table: Table
) -> None:
    assert transact(adapter, schema_mark, name) is None
    transact(adapter, schema_create, name, "made by me 1")
    assert transact(adapter, schema_mark, name) == "made by me 1"
    assert transact(adapter, schema_drop, name, "made by me 1") is True
    assert not exists(table, name)


@pytest.mark.parametrize("comment", ["made by me 2", None])
def test_a_schema_of_others_is_not_dropped(
    transact: Transact, adapter: str, name: str, table: Table, comment: str | None
) -> None:
    table.conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
    if comment is not None:
        table.conn.execute(SQL("COMMENT ON SCHEMA {} IS {}").format(Identifier(name), comment))
    assert transact(adapter, schema_drop, name, "made by me 1") is False
    assert exists(table, name)


def test_dropping_what_is_not_there_does_nothing(transact: Transact, adapter: str, name: str) -> None:
    assert transact(adapter, schema_drop, name, "made by me 1") is None


def test_a_schema_that_took_the_name_meanwhile_is_not_dropped(
    transact: Transact, adapter: str, name: str, table: Table
) -> None:
    """It does so after the first look, before anything is changed."""
    transact(adapter, schema_create, name, "made by me 1")
    changes: list[str] = []

    def swap(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith(("COMMENT", "DROP")):
            changes.append(statement)
            if len(changes) == 1:
                table.conn.execute(SQL("DROP SCHEMA {}").format(Identifier(name)))
                table.conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
                table.conn.execute(SQL("COMMENT ON SCHEMA {} IS 'ours'").format(Identifier(name)))

    def drop(conn: sa.Connection) -> bool | None:
        sa.event.listen(conn, "before_cursor_execute", swap)
        return schema_drop(conn, name, "made by me 1")

    assert transact(adapter, drop) is False
    assert transact(adapter, schema_mark, name) == "ours"
    assert changes


def test_a_lock_is_waited_for_so_long(
    transact: Transact, adapter: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact(adapter, lock_wait, "", 4712)
    monkeypatch.setattr(measure, "PATIENCE", "50ms")
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(4712)")
        with pytest.raises(sa.exc.DBAPIError, match="lock timeout"):
            transact(adapter, lock_wait, "", 4712)


def test_who_may_make_schemas_misses_no_right(call: Caller) -> None:
    assert call(missing_grant) is None


def test_a_schema_that_exists_is_not_made(transact: Transact, adapter: str, empty_schema: str, table: Table) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="already exists"):
        transact(adapter, schema_create, empty_schema, "made by me 1")
    assert transact(adapter, schema_mark, empty_schema) is None


def test_the_planner_knows_the_table_afterwards(call: Caller, table: Table, scratch_schema: str) -> None:
    call.schema = scratch_schema
    table.conn.execute(
        SQL("INSERT INTO {} (args, kind, max_attempts) SELECT '{{}}', 'k', 1 FROM generate_series(1, 42)").format(
            Identifier(scratch_schema, "river_job")
        )
    )
    call(job_analyze)
    found = table.sql("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", f'"{scratch_schema}".river_job')
    assert found[0]["reltuples"] == 42


def test_the_server_says_what_it_is(call: Caller, table: Table) -> None:
    assert call(select_one) == 1
    facts = call(server_facts)
    [row] = table.sql("SELECT current_setting('server_version') AS v, current_setting('fsync') AS f")
    assert (facts.version, facts.fsync) == (row["v"], row["f"])
    assert facts.synchronous_commit in ("on", "off", "local", "remote_write", "remote_apply")


def test_the_wal_grows_with_what_is_written(call: Caller) -> None:
    before = call(wal_position)
    call(queue_create_or_touch, "q")
    assert call(wal_position) > before


def test_backends_are_those_of_one_name(call: Caller, database_url: str) -> None:
    assert call(backends, "riverq_nobody") == []
    with psycopg.connect(database_url, application_name="riverq_somebody") as somebody:
        somebody.execute("SELECT 1")
        found = seen_waiting(call, "riverq_somebody", "Client")
        assert found.pid == somebody.info.backend_pid
        assert abs((from_us(found.started_us) - datetime.now(UTC)).total_seconds()) < 3600
        assert found.state == "idle in transaction"
        assert (found.wait_type, found.wait_event) == ("Client", "ClientRead")


def test_who_asks_is_left_out(call: Caller) -> None:
    asking = call(lambda conn, _: conn.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar_one())
    assert asking not in {backend.pid for backend in call(backends, SESSION_APPLICATION)}


def test_a_backend_that_waits_is_seen_waiting(call: Caller, database_url: str) -> None:
    """Two connections, one behind the other's lock."""
    with (
        psycopg.connect(database_url, autocommit=True) as holder,
        psycopg.connect(database_url, autocommit=True, application_name="riverq_waiter") as waiter,
        ThreadPoolExecutor(1) as threads,
    ):
        holder.execute("SELECT pg_advisory_lock(4711)")
        waiting = threads.submit(waiter.execute, "SELECT pg_advisory_lock(4711)")
        found = seen_waiting(call, "riverq_waiter", "Lock")
        holder.execute("SELECT pg_advisory_unlock(4711)")
        waiting.result()
        assert (found.state, found.wait_type, found.wait_event) == ("active", "Lock", "advisory")


def test_a_queue_is_counted_alone(call: Caller, table: Table) -> None:
    assert call(job_tally, "counted") == (0, 0, 0, 0, 0, None)
    for _ in range(3):
        table.add(queue="counted")
    table.add(queue="other")
    assert call(job_tally, "counted") == (3, 0, 0, 0, 0, None)
    claimed = [*call.claim(queue="counted", limit=2), *call.claim(queue="counted", limit=1)]
    call(job_complete_many, client_id=ME, runs=[Run(row.id, row.attempted_at_us) for row in claimed[:2]])
    found = call(job_tally, "counted")
    assert found[:5] == (3, 2, 3, 2, 1)
    assert found.worked_us is not None
    assert found.worked_us > 0
