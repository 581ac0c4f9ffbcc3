from __future__ import annotations

import pytest
import sqlalchemy as sa

from riverq.notification import Topic, insert_payload
from riverq.query.notify import can_notify, notify_many, notify_raw
from tests.fix_server import audible
from tests.query.arrange import Caller, Table, notified


def listen(table: Table, channel: str) -> None:
    table.conn.execute(f'LISTEN "{channel}"')


def heard(table: Table) -> list[tuple[str, str]]:
    return [(note.channel, note.payload) for note in notified(table.conn)]


def test_payloads_arrive_byte_for_byte(call: Caller, table: Table) -> None:
    channel = f"{call.schema}.river_insert"
    listen(table, channel)
    sent = [insert_payload("default"), '{"queue": "é\\" {}, NULL"}']
    arrived = audible([(channel, payload) for payload in sent])
    assert call(notify_many, Topic.INSERT, sent) is bool(arrived)
    assert heard(table) == arrived
    assert heard(table) == []


def test_nothing_to_say_is_not_said(call: Caller) -> None:
    assert call(notify_many, Topic.INSERT, []) is False


def test_nothing_is_heard_of_what_was_rolled_back(call: Caller, table: Table) -> None:
    listen(table, f"{call.schema}.river_insert")

    def fail(conn: sa.Connection, schema: str) -> None:
        notify_many(conn, schema, Topic.INSERT, ["lost"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(fail)
    assert heard(table) == []


def test_any_channel_can_be_probed(call: Caller, table: Table) -> None:
    listen(table, "probe : %s")
    call(notify_raw, "probe : %s", "p")
    assert heard(table) == audible([("probe : %s", "p")])


def test_two_phase_transactions_are_left_without(schema: str, engine: sa.Engine) -> None:
    with engine.connect() as conn:
        transaction = conn.begin_twophase()
        assert can_notify(conn) is False
        assert notify_many(conn, schema, Topic.INSERT, ["x"]) is False
        with conn.begin_nested():
            assert can_notify(conn) is False
        transaction.rollback()
    with engine.connect() as conn:
        assert can_notify(conn) is bool(audible([True]))
