from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import ConfigError
from riverq.query import queue as queue_module
from riverq.query.queue import (
    PAYLOAD_LIMIT,
    EndedPauses,
    metadata_payload,
    queue_create_or_touch,
    queue_end_pauses,
    queue_get,
    queue_list,
    queue_next_pause_end,
    queue_pause,
    queue_resume,
    queue_update,
)
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import Caller, Table, payloads

LATER = NOW + timedelta(hours=1)


def test_a_queue_is_made_once_and_then_touched(call: Caller) -> None:
    made = call(queue_create_or_touch, "mail", '{"a": 1}', now=NOW)
    assert (made.name, made.created_at, made.updated_at, made.paused_at) == ("mail", NOW, NOW, None)
    assert made.metadata == {"a": 1}
    call(queue_pause, "mail", now=NOW)
    touched = call(queue_create_or_touch, "mail", '{"b": 2}', now=LATER)
    assert (touched.created_at, touched.updated_at, touched.paused_at) == (NOW, LATER, NOW)
    assert touched.metadata == {"a": 1}
    assert call(queue_get, "mail") == touched
    assert call(queue_get, "none") is None


def test_the_databases_clock_is_used_by_default(call: Caller, table: Table) -> None:
    before = table.now()
    made = call(queue_create_or_touch, "mail")
    assert before <= made.created_at == made.updated_at <= table.now()


def test_pausing_twice_keeps_the_first_time(call: Caller, heard: Table) -> None:
    call(queue_create_or_touch, "mail", now=NOW)
    call(queue_create_or_touch, "other", now=NOW)
    assert call(queue_pause, "mail", now=NOW) is True
    assert call(queue_pause, "mail", now=LATER) is True
    queue, other = call(queue_get, "mail"), call(queue_get, "other")
    assert queue is not None
    assert other is not None
    assert (queue.paused_at, queue.updated_at) == (NOW, NOW)
    assert other.paused_at is None
    assert payloads(heard) == audible(['{"action":"pause","queue":"mail"}'] * 2)


def test_resuming_touches_what_is_paused(call: Caller, heard: Table) -> None:
    call(queue_create_or_touch, "mail", now=NOW)
    assert call(queue_resume, "mail", now=LATER) is True
    queue = call(queue_get, "mail")
    assert queue is not None
    assert queue.updated_at == NOW
    call(queue_pause, "mail", now=NOW)
    assert call(queue_resume, "mail", now=LATER) is True
    queue = call(queue_get, "mail")
    assert queue is not None
    assert (queue.paused_at, queue.updated_at) == (None, LATER)
    assert payloads(heard)[-1:] == audible(['{"action":"resume","queue":"mail"}'])


def test_a_star_is_every_queue_and_always_exists(call: Caller, heard: Table) -> None:
    assert call(queue_pause, "*") is True
    for name in ("a", "b"):
        call(queue_create_or_touch, name)
    assert call(queue_pause, "*") is True
    assert all(row["paused_at"] for row in heard.sql("SELECT paused_at FROM {queue}"))
    assert call(queue_resume, "*") is True
    assert not any(row["paused_at"] for row in heard.sql("SELECT paused_at FROM {queue}"))
    assert [json.loads(each)["queue"] for each in payloads(heard)] == audible(["*"] * 3)


@pytest.mark.parametrize("switch", [queue_pause, queue_resume])
def test_a_queue_that_does_not_exist_is_reported_in_silence(call: Caller, heard: Table, switch: object) -> None:
    assert call(switch, "none") is False  # type: ignore[arg-type]
    assert payloads(heard) == []


def test_metadata_that_is_no_object_reads_as_empty(call: Caller, table: Table) -> None:
    call(queue_create_or_touch, "mail")
    table.sql("UPDATE {queue} SET metadata = '[1]'")
    queue = call(queue_get, "mail")
    assert queue is not None
    assert queue.metadata == {}


# -- listed and described


def test_queues_are_listed_by_name(call: Caller) -> None:
    for name in ("b", "a_2", "a", "a-1", "c"):
        call(queue_create_or_touch, name)
    assert [each.name for each in call(queue_list)] == ["a", "a-1", "a_2", "b", "c"]
    assert [each.name for each in call(queue_list, limit=2)] == ["a", "a-1"]


def test_new_metadata_replaces_the_old_and_is_told_of(call: Caller, heard: Table) -> None:
    call(queue_create_or_touch, "mail", '{"old": 1}', now=NOW)
    updated = call(queue_update, "mail", '{"q":"a \\u0026 b","n":{"z":1,"a":"é"}}', now=LATER)
    assert updated is not None
    assert updated.metadata == {"q": "a & b", "n": {"z": 1, "a": "é"}}
    assert (updated.created_at, updated.updated_at) == (NOW, LATER)
    assert call(queue_get, "mail") == updated
    payload = '{"action":"metadata_changed","metadata":{"q":"a \\u0026 b","n":{"z":1,"a":"é"}},"queue":"mail"}'
    assert payloads(heard) == audible([payload])


def test_without_metadata_the_row_is_only_touched_in_silence(call: Caller, heard: Table) -> None:
    call(queue_create_or_touch, "mail", '{"old": 1}', now=NOW)
    updated = call(queue_update, "mail", None, now=LATER)
    assert updated is not None
    assert (updated.metadata, updated.updated_at) == ({"old": 1}, LATER)
    assert call(queue_update, "none", None) is None
    assert call(queue_update, "none", "{}") is None
    assert payloads(heard) == []


def test_metadata_that_no_notification_can_carry_is_refused_before_any_statement(call: Caller, heard: Table) -> None:
    call(queue_create_or_touch, "mail", now=NOW)
    room = PAYLOAD_LIMIT - 1 - len(metadata_payload("mail", '{"k":""}').encode())
    fits = '{"k":"' + "é" * (room // 2) + "x" * (room % 2) + '"}'
    assert len(metadata_payload("mail", fits).encode()) == PAYLOAD_LIMIT - 1

    def refused(conn: sa.Connection, schema: str) -> None:
        with pytest.raises(ConfigError, match="less than 8000 bytes, got: 8000"):
            queue_update(conn, schema, "mail", fits.replace("x", "xx") if "x" in fits else fits[:-2] + 'x"}')
        assert queue_get(conn, schema, "mail") is not None  # the transaction is whole

    call(refused)
    assert call(queue_update, "mail", fits) is not None
    assert [json.loads(each)["queue"] for each in payloads(heard)] == audible(["mail"])


# -- pauses with an end


def intention(table: Table, name: str) -> tuple[datetime, datetime] | None:
    """`paused_at` and `until`."""
    rows = table.sql("SELECT paused_at, until FROM {schema}.riverq_queue WHERE name = %s", name)
    return (rows[0]["paused_at"], rows[0]["until"]) if rows else None


def paused_at(call: Caller, name: str) -> datetime | None:
    queue = call(queue_get, name)
    assert queue is not None
    return queue.paused_at


def pause_until(call: Caller, name: str = "mail", until: Any = LATER, now: datetime = NOW) -> None:
    call(queue_create_or_touch, name, now=now)
    assert call(queue_pause, name, until=until, own_tables=True, now=now)


@pytest.mark.parametrize("until", [LATER, LATER - NOW])
def test_a_pause_with_an_end_is_an_intention_for_that_pause(call: Caller, heard: Table, until: Any) -> None:
    pause_until(call, until=until)
    assert paused_at(call, "mail") == NOW
    assert intention(heard, "mail") == (NOW, LATER)
    assert payloads(heard) == audible(['{"action":"pause","queue":"mail"}'])


def test_a_timedelta_counts_from_the_call_and_not_from_the_transactions_start(call: Caller, table: Table) -> None:
    call(queue_create_or_touch, "mail")
    began: list[datetime] = []

    def late(conn: sa.Connection, schema: str) -> None:
        conn.exec_driver_sql("SELECT 1").all()
        began.append(table.now())  # by then the transaction has begun
        queue_pause(conn, schema, "mail", until=timedelta(hours=1), own_tables=True)

    call(late)
    found = intention(table, "mail")
    assert found is not None
    assert found[1] > began[0] + timedelta(hours=1)
    assert found[0] < began[0]


def test_a_queue_paused_already_keeps_its_time_and_gets_an_end(call: Caller, table: Table) -> None:
    call(queue_create_or_touch, "mail")
    call(queue_pause, "mail", now=NOW)
    call(queue_pause, "mail", until=timedelta(hours=2), own_tables=True, now=LATER)
    assert paused_at(call, "mail") == NOW
    assert intention(table, "mail") == (NOW, LATER + timedelta(hours=2))
    call(queue_pause, "mail", until=LATER, own_tables=True, now=LATER)
    assert intention(table, "mail") == (NOW, LATER)


@pytest.mark.parametrize("name", ["mail", "*"])
def test_the_last_call_decides_whether_a_pause_ends(call: Caller, table: Table, name: str) -> None:
    pause_until(call, "*")  # no queue yet, so no intention
    pause_until(call)
    call(queue_pause, name, own_tables=True, now=LATER)
    assert (paused_at(call, "mail"), intention(table, "mail")) == (NOW, None)
    pause_until(call)
    call(queue_resume, name, own_tables=True, now=LATER)
    assert (paused_at(call, "mail"), intention(table, "mail")) == (None, None)


def test_a_star_with_an_end_is_every_queue_there_is(call: Caller, table: Table) -> None:
    for name in ("a", "b"):
        call(queue_create_or_touch, name)
    call(queue_pause, "b", now=NOW)
    call(queue_pause, "*", until=timedelta(hours=3), own_tables=True, now=LATER)
    end = LATER + timedelta(hours=3)
    assert [intention(table, name) for name in ("a", "b")] == [(LATER, end), (NOW, end)]


def test_a_queue_that_does_not_exist_gets_no_end(call: Caller, heard: Table) -> None:
    assert call(queue_pause, "none", until=LATER, own_tables=True) is False
    assert (intention(heard, "none"), payloads(heard)) == (None, [])


def test_without_own_tables_nothing_names_them(call: Caller, table: Table, scratch_schema: str) -> None:
    bare = Caller(call.transact, call.adapter, scratch_schema)
    table.conn.execute(f'DROP TABLE "{scratch_schema}".riverq_queue')
    bare(queue_create_or_touch, "mail")
    assert bare(queue_pause, "mail")
    assert bare(queue_resume, "*")


# -- ending them


def test_a_pause_ends_when_its_time_has_come(call: Caller, heard: Table) -> None:
    pause_until(call, "mail")
    pause_until(call, "other", until=LATER + timedelta(microseconds=1))
    assert call(queue_next_pause_end, now=NOW) == LATER - NOW
    assert call(queue_end_pauses, now=LATER - timedelta(microseconds=1)) == EndedPauses([], [])
    payloads(heard)
    assert call(queue_end_pauses, now=LATER) == EndedPauses(["mail"], [])
    queue = call(queue_get, "mail")
    assert queue is not None
    assert (queue.paused_at, queue.updated_at, intention(heard, "mail")) == (None, LATER, None)
    assert paused_at(call, "other") == NOW
    assert payloads(heard) == audible(['{"action":"resume","queue":"mail"}'])
    assert call(queue_next_pause_end, now=LATER) == timedelta(microseconds=1)
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], [])
    assert call(queue_end_pauses, now=LATER + timedelta(1)) == EndedPauses(["other"], [])
    assert call(queue_next_pause_end, now=LATER) is None


@pytest.mark.parametrize("since", [None, NOW + timedelta(microseconds=1)])
def test_a_pause_that_somebody_changed_is_left_to_them(call: Caller, heard: Table, since: datetime | None) -> None:
    pause_until(call)
    heard.sql("UPDATE {queue} SET paused_at = %s", since)
    payloads(heard)
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], ["mail"])
    assert (paused_at(call, "mail"), intention(heard, "mail"), payloads(heard)) == (since, None, [])


def test_an_end_without_its_queue_is_dropped_when_it_is_due(call: Caller, table: Table) -> None:
    pause_until(call)
    table.sql("DELETE FROM {queue}")
    assert call(queue_end_pauses, now=NOW) == EndedPauses([], [])
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], ["mail"])
    assert call(queue_next_pause_end) is None


def test_odd_names_are_told_as_json(call: Caller, heard: Table) -> None:
    name = 'a"b\\c'
    pause_until(call, name)
    assert call(queue_end_pauses, now=LATER).resumed == [name]
    told = [{"action": action, "queue": name} for action in ("pause", "resume")]
    assert [json.loads(each) for each in payloads(heard)] == audible(told)


# -- races


def lock(conn: sa.Connection, schema: str, name: str) -> None:
    conn.exec_driver_sql(f"SELECT FROM \"{schema}\".river_queue WHERE name = '{name}' FOR UPDATE")


def while_waiting(call: Caller, table: Table, other: sa.Connection, fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a query that waits for `other`'s lock, and commit `other` once it waits."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call(fn, *args, **kwargs)))
    thread.start()
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not table.sql(waiting):
        assert thread.is_alive()
    other.commit()
    thread.join()
    return results[0]


@pytest.mark.parametrize("until", [None, LATER])
def test_a_pause_that_waited_for_a_resume_pauses_all_the_same(
    call: Caller, table: Table, other: sa.Connection, until: datetime | None
) -> None:
    call(queue_create_or_touch, "mail")
    call(queue_pause, "mail", now=NOW)
    queue_resume(other, call.schema, "mail")
    assert while_waiting(call, table, other, queue_pause, "mail", until=until, own_tables=True, now=LATER) is True
    assert paused_at(call, "mail") == LATER
    assert intention(table, "mail") == (until and (LATER, until))


def test_a_resume_that_waited_for_a_pause_resumes_all_the_same(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    call(queue_create_or_touch, "mail")
    queue_pause(other, call.schema, "mail")
    assert while_waiting(call, table, other, queue_resume, "mail") is True
    assert paused_at(call, "mail") is None


@pytest.mark.parametrize("query", [queue_pause, queue_resume])
def test_an_end_that_was_set_while_one_waited_is_taken_back(
    call: Caller, table: Table, other: sa.Connection, query: Any
) -> None:
    call(queue_create_or_touch, "mail")
    queue_pause(other, call.schema, "mail", until=LATER, own_tables=True, now=NOW)
    assert while_waiting(call, table, other, query, "mail", own_tables=True) is True
    assert intention(table, "mail") is None


def test_a_queue_that_somebody_holds_is_ended_later_and_not_waited_for(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    for name in ("free", "held"):
        pause_until(call, name)
    lock(other, call.schema, "held")
    assert call(queue_end_pauses, now=LATER) == EndedPauses(["free"], [])
    assert intention(table, "held") == (NOW, LATER)
    other.rollback()
    assert call(queue_end_pauses, now=LATER) == EndedPauses(["held"], [])


def test_of_two_who_end_a_pause_at_once_one_does(call: Caller, heard: Table, other: sa.Connection) -> None:
    pause_until(call)
    payloads(heard)
    assert queue_end_pauses(other, call.schema, now=LATER) == EndedPauses(["mail"], [])
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], [])  # while the first has not committed
    other.commit()
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], [])
    assert payloads(heard) == audible(['{"action":"resume","queue":"mail"}'])


def test_an_end_put_off_before_the_lock_was_had_is_kept(
    call: Caller, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is due and the lock, somebody sets a later end."""
    pause_until(call)
    real = queue_module._drop_orphans.rows

    def put_off(conn: sa.Connection, schema: str, **given: Any) -> Any:
        table.sql("UPDATE {schema}.riverq_queue SET until = %s", LATER + timedelta(hours=1))
        return real(conn, schema, **given)

    monkeypatch.setattr(queue_module._drop_orphans, "rows", put_off)
    assert call(queue_end_pauses, now=LATER) == EndedPauses([], [])
    assert (paused_at(call, "mail"), intention(table, "mail")) == (NOW, (NOW, LATER + timedelta(hours=1)))
