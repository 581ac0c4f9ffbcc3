from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.query.client_registry import (
    Registered,
    Twin,
    client_heartbeat,
    client_living_twins,
    client_register,
    client_unregister,
    keepalives_text,
    lock_text,
    unlock_text,
)
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import ME, Caller, Table

ONE, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
GRACE = timedelta(seconds=30)
MICROSECOND = timedelta(microseconds=1)
ODD_SCHEMA = "we\"ird %s \\ 'x' :y"

HOLDERS = """
    SELECT classid, objid, mode, granted,
        database = (SELECT oid FROM pg_database WHERE datname = current_database()) AS here
    FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND pid = %s
"""


def register(call: Caller, incarnation: str = ONE, client_id: str = ME, **times: datetime) -> Registered:
    return call(client_register, client_id=client_id, incarnation=incarnation, **{"now": NOW, **times})


def row(table: Table, row_id: int) -> dict[str, Any]:
    [found] = table.sql("SELECT * FROM {schema}.riverq_client WHERE id = %s", row_id)
    return found


def test_an_incarnation_is_registered(call: Caller, table: Table) -> None:
    entered = register(call)
    assert entered.started_at == NOW
    assert row(table, entered.id) == {
        "id": entered.id,
        "client_id": ME,
        "incarnation": uuid.UUID(ONE),
        "started_at": NOW,
        "seen_at": NOW,
        "lock_taken": False,
    }


def test_the_databases_clock_is_used_by_default(call: Caller, table: Table) -> None:
    before = table.now()
    entered = call(client_register, client_id=ME, incarnation=ONE)
    assert before <= entered.started_at == row(table, entered.id)["seen_at"] <= table.now()
    seen_at = call(client_heartbeat, row_id=entered.id)
    assert seen_at is not None
    assert entered.started_at < seen_at <= table.now()


def test_who_registers_again_keeps_the_time_it_started(call: Caller, table: Table) -> None:
    entered = register(call, started_at=NOW - GRACE)
    assert entered.started_at == NOW - GRACE
    assert row(table, entered.id)["seen_at"] == NOW


def test_a_heartbeat_touches_its_own_row_only(call: Caller, table: Table) -> None:
    mine, other = register(call), register(call, OTHER)
    assert call(client_heartbeat, row_id=mine.id, now=NOW + GRACE) == NOW + GRACE
    assert [row(table, each.id)["seen_at"] for each in (mine, other)] == [NOW + GRACE, NOW]
    assert row(table, mine.id)["started_at"] == NOW


def test_a_heartbeat_says_whether_the_lock_was_taken(call: Caller, table: Table) -> None:
    mine, other = register(call), register(call, OTHER)
    for given, expected in ((True, True), (None, True), (False, False), (None, False)):
        call(client_heartbeat, row_id=mine.id, lock_taken=given)
        assert [row(table, each.id)["lock_taken"] for each in (mine, other)] == [expected, False]


def test_a_heartbeat_without_its_row_says_so(call: Caller) -> None:
    mine = register(call)
    assert call(client_heartbeat, row_id=mine.id + 1, now=NOW) is None


def test_the_row_stays_where_a_job_still_runs_under_the_id(call: Caller, table: Table) -> None:
    """Its claim's answer was lost, or nothing could be stored for it."""
    register(call)
    job = table.add_running(attempted_by=["other", ME]).job_id
    table.add_running(attempted_by=[ME, "other"])
    assert call(client_unregister, client_id=ME, incarnation=ONE) is False
    table.sql("UPDATE {job} SET state = 'completed', finalized_at = now() WHERE id = %s", job)
    assert call(client_unregister, client_id=ME, incarnation=ONE) is True


def test_only_the_incarnation_itself_is_unregistered(call: Caller, table: Table) -> None:
    register(call)
    kept = [register(call, OTHER).id, register(call, ONE, client_id="other").id]
    assert call(client_unregister, client_id=ME, incarnation=ONE) is True
    assert call(client_unregister, client_id=ME, incarnation=ONE) is False
    assert [each["id"] for each in table.sql("SELECT id FROM {schema}.riverq_client ORDER BY id")] == kept


def test_twins_are_other_living_incarnations_of_the_same_id(call: Caller) -> None:
    register(call)
    register(call, str(uuid.UUID(int=3)), client_id="other")
    register(call, str(uuid.UUID(int=4)), now=NOW - GRACE - MICROSECOND)
    assert twins(call) == []
    register(call, OTHER, started_at=NOW - 2 * GRACE, now=NOW - GRACE)
    register(call, str(uuid.UUID(int=5)), now=NOW + MICROSECOND)
    assert twins(call) == [Twin(NOW + MICROSECOND, timedelta(0)), Twin(NOW - 2 * GRACE, GRACE)]


def twins(call: Caller) -> list[Twin]:
    return call(client_living_twins, client_id=ME, incarnation=ONE, grace=GRACE, now=NOW)


@pytest.mark.parametrize("odd", [False, True])
def test_the_lock_has_the_documented_key(table: Table, schema: str, *, odd: bool) -> None:
    if odd:
        schema = ODD_SCHEMA
        table.conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
        table.conn.execute(SQL("CREATE TABLE {} (id integer)").format(Identifier(schema, "riverq_client")))
    try:
        text = lock_text(schema, 7)
        for setting in ("on", "off"):
            table.conn.execute(f"SET escape_string_warning = off; SET standard_conforming_strings = {setting}")
            assert table.conn.execute(text.encode()).fetchall() == [{"pg_try_advisory_lock_shared_1": "true"}]
        [oid] = table.sql(
            "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relname = 'riverq_client' AND nspname = %s",
            schema,
        )
        pid = table.conn.info.backend_pid
        expected = {"classid": oid["oid"], "objid": 7, "mode": "ShareLock", "granted": True, "here": True}
        assert table.sql(HOLDERS, pid) == [expected]
        table.conn.execute(unlock_text().encode())
        assert table.sql(HOLDERS, pid) == []
    finally:
        if odd:
            table.conn.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))


def test_the_lock_is_never_waited_for(table: Table, schema: str, engine: sa.Engine) -> None:
    """Not for the lock itself, nor for the table, which a migration may have locked."""
    with engine.connect() as other:
        other.exec_driver_sql(f'LOCK TABLE "{schema}".riverq_client IN ACCESS EXCLUSIVE MODE')
        table.conn.execute("SET statement_timeout = '5s'")
        assert list(table.sql(lock_text(schema, 7))[0].values()) == ["true"]
        table.sql(unlock_text())
        key = other.exec_driver_sql(f"SELECT '{schema}.riverq_client'::regclass::oid::int4").scalar_one()
        other.exec_driver_sql(f"SELECT pg_advisory_xact_lock({key}, 7)")
        assert list(table.sql(lock_text(schema, 7))[0].values()) == ["false"]


@pytest.mark.parametrize(
    ("within", "settings"),
    [(25, {"idle": "10", "interval": "5", "count": "3"}), (5, {"idle": "2", "interval": "1", "count": "3"})],
)
def test_keepalives_are_the_sessions(table: Table, within: int, settings: dict[str, str]) -> None:
    is_socket = table.conn.info.host.startswith("/")
    table.sql("SET tcp_user_timeout = '7s'")
    table.sql("SET idle_session_timeout = '1h'")
    [found] = table.sql(keepalives_text(timedelta(seconds=within)))
    assert list(found.values()) == ["5"]
    for name, value in settings.items():
        [shown] = table.sql(f"SELECT setting FROM pg_settings WHERE name = 'tcp_keepalives_{name}'")
        assert shown["setting"] == ("0" if is_socket else value)
    for name in ("tcp_user_timeout", "idle_session_timeout"):
        [shown] = table.sql("SELECT setting FROM pg_settings WHERE name = %s", name)
        assert shown["setting"] == "0", "it would end the session of a client that is suspended"
