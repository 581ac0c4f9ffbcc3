from __future__ import annotations

import json
from datetime import timedelta

import pytest

from riverq.query.queue import queue_create_or_touch, queue_get, queue_pause, queue_resume
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import Caller, Table

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def heard(call: Caller, table: Table) -> Table:
    table.conn.execute(f'LISTEN "{call.schema}.river_control"')
    return table


def payloads(heard: Table) -> list[str]:
    return [note.payload for note in heard.conn.notifies(timeout=0.1)]


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
    assert payloads(heard) == ['{"action":"pause","queue":"mail"}'] * 2


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
    assert payloads(heard)[-1] == '{"action":"resume","queue":"mail"}'


def test_a_star_is_every_queue_and_always_exists(call: Caller, heard: Table) -> None:
    assert call(queue_pause, "*") is True
    for name in ("a", "b"):
        call(queue_create_or_touch, name)
    assert call(queue_pause, "*") is True
    assert all(row["paused_at"] for row in heard.sql("SELECT paused_at FROM {queue}"))
    assert call(queue_resume, "*") is True
    assert not any(row["paused_at"] for row in heard.sql("SELECT paused_at FROM {queue}"))
    assert [json.loads(each)["queue"] for each in payloads(heard)] == ["*"] * 3


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
