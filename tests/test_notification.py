"""Payloads, byte for byte Go's, and parsing that nothing surprises."""

from __future__ import annotations

import pytest

from riverq.notification import (
    Control,
    Leadership,
    Topic,
    channel,
    insert_payload,
    parse_control,
    parse_insert,
    parse_leadership,
)


def test_channels_carry_the_schema() -> None:
    assert [channel("my schema", topic) for topic in Topic] == [
        "my schema.river_insert",
        "my schema.river_control",
        "my schema.river_leadership",
    ]


def test_insert_payload() -> None:
    assert insert_payload("mail") == '{"queue": "mail"}'
    assert parse_insert(insert_payload('é|"')) == 'é|"'
    assert parse_insert('{"queue":"mail","new":1}') == "mail"


def test_control_and_leadership() -> None:
    assert parse_control('{"action":"cancel","job_id":7,"queue":"mail"}') == Control("cancel", "mail", 7)
    assert parse_control('{"action": "pause", "queue": "*"}') == Control("pause", "*")
    assert parse_control('{"action":"resume","queue":"q","metadata":{}}') == Control("resume", "q")
    assert parse_leadership('{"leader_id":"a","action":"resigned"}') == Leadership("resigned", "a")
    assert parse_leadership('{"action":"request_resign"}') == Leadership("request_resign")


@pytest.mark.parametrize(
    "payload", ["", "{", "null", "[]", "3", "{}", '{"queue":5,"action":5,"leader_id":5}', "[" * 100_000]
)
def test_what_is_not_ours_is_ignored(payload: str) -> None:
    assert parse_insert(payload) is None
    assert parse_control(payload) is None
    assert parse_leadership(payload) is None


def test_wrong_types_are_ignored() -> None:
    assert parse_control('{"action":"cancel","job_id":"7"}') is None
    assert parse_control('{"action":"cancel","queue":null}') is None
    assert parse_leadership('{"action":"resigned","leader_id":null}') is None
