"""Options: precedence, limits, and the row they resolve to."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.errors import ArgsEncodeError, ConfigError
from riverq.insert_opts import (
    ClientDefaults,
    InsertItem,
    InsertParams,
    check_kind,
    check_queue_name,
    check_worker_kind,
    resolve,
)
from riverq.job import JobState
from riverq.job_args import RawArgs, job_args, spec_of
from riverq.unique import UniqueOpts

NOW = datetime(2026, 8, 5, 13, 37, 23, 123000, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOURLY = UniqueOpts(by_period=HOUR)


@job_args("plain")
@dataclass
class Plain:
    id: int = 1


@job_args(
    "opinionated",
    queue="own",
    max_attempts=7,
    priority=3,
    tags=["own-tag"],
    delay=HOUR,
    unique_opts=UniqueOpts(by_args=True),
)
@dataclass
class Opinionated:
    id: int = 1


def row(args: object, defaults: ClientDefaults | None = None, **options: Any) -> InsertParams:
    return resolve(spec_of(args), args, options, defaults=defaults or ClientDefaults(), now=NOW)


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_defaults_are_rivers() -> None:
    args = Plain()
    assert row(args) == InsertParams(kind="plain", encoded_args='{"id":1}')
    found = row(args)
    assert (found.max_attempts, found.priority, found.queue, found.tags, found.metadata) == (25, 1, "default", (), "{}")
    assert (found.state, found.scheduled_at, found.scheduled_in) == (JobState.AVAILABLE, None, None)
    assert (found.unique_key, found.unique_states) == (None, 0)
    assert found.args is args


def test_the_clients_attempts_come_last() -> None:
    client = ClientDefaults(max_attempts=3)
    assert row(Plain(), client).max_attempts == 3
    assert row(Opinionated(), client).max_attempts == 7
    assert row(Opinionated(), client, max_attempts=9).max_attempts == 9


def test_the_classs_options_hold_until_the_call_says_otherwise() -> None:
    found = row(Opinionated())
    assert (found.queue, found.priority, found.tags, found.scheduled_in) == ("own", 3, ("own-tag",), HOUR)
    assert found.unique_key == key('&kind=opinionated&args={"id":1}')
    found = row(
        Opinionated(), queue="other", priority=1, tags=[], delay=timedelta(0), unique_opts=UniqueOpts(by_queue=True)
    )
    assert (found.queue, found.priority, found.tags, found.scheduled_in) == ("other", 1, (), None)
    assert (found.state, found.unique_key) == (JobState.AVAILABLE, key("&kind=opinionated&queue=other"))


def test_none_means_not_given() -> None:
    assert row(
        Opinionated(), **dict.fromkeys(("queue", "tags", "delay", "scheduled_at", "pending", "unique_opts"))
    ) == row(Opinionated())


def test_empty_unique_options_do_not_hide_the_classs() -> None:
    assert row(Opinionated(), unique_opts=UniqueOpts()).unique_key == row(Opinionated()).unique_key
    assert row(Plain(), unique_opts=UniqueOpts()).unique_key is None


def test_the_time_decides_the_state() -> None:
    past = NOW - HOUR
    assert (row(Plain(), delay=HOUR).state, row(Plain(), delay=HOUR).scheduled_in) == (JobState.SCHEDULED, HOUR)
    assert (row(Plain(), scheduled_at=past).state, row(Plain(), scheduled_at=past).scheduled_at) == (
        JobState.SCHEDULED,
        past,
    )
    assert row(Plain(), delay=timedelta(0)).state is JobState.AVAILABLE
    assert row(Plain(), pending=True, delay=HOUR).state is JobState.PENDING
    explicit = row(Opinionated(), scheduled_at=past)
    assert (explicit.scheduled_at, explicit.scheduled_in) == (past, None)


def test_the_period_is_that_of_the_scheduled_time_or_of_the_insert() -> None:
    old = ClientDefaults(period_basis="insert_time")
    now, later = key("&kind=plain&period=2026-08-05T13:00:00Z"), key("&kind=plain&period=2026-08-05T15:00:00Z")
    at = NOW + 2 * HOUR
    assert row(Plain(), unique_opts=HOURLY).unique_key == now
    assert row(Plain(), unique_opts=HOURLY, scheduled_at=at).unique_key == later
    assert row(Plain(), unique_opts=HOURLY, delay=2 * HOUR).unique_key == later
    assert row(Plain(), old, unique_opts=HOURLY, scheduled_at=at).unique_key == now
    assert row(Plain(), old, unique_opts=HOURLY, delay=2 * HOUR).unique_key == now


def test_unique_rows_carry_key_and_mask() -> None:
    found = row(Plain(), unique_opts=UniqueOpts(by_queue=True), queue="mail")
    assert (found.unique_key, found.unique_states) == (key("&kind=plain&queue=mail"), 0xF5)


def test_metadata_is_an_encoded_object() -> None:
    assert row(Plain(), metadata={"b": NOW, "a": "<", "river:log": 1}).metadata == (
        '{"a":"\\u003c","b":"2026-08-05T13:37:23.123Z","river:log":1}'
    )
    with pytest.raises(ArgsEncodeError) as caught:
        row(Plain(), metadata={"a": {"b": {1}}})
    assert caught.value.path == "metadata.a.b"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"priorty": 2}, "unknown insert option 'priorty' (did you mean 'priority'?)"),
        ({"zzz": 2}, "known: delay, max_attempts, metadata, pending, priority, queue"),
        ({"priority": 0}, "expected priority to be an integer from 1 to 4, got: 0"),
        ({"priority": True}, "expected priority"),
        ({"max_attempts": 0}, "from 1 to 32767"),
        ({"max_attempts": 32_768}, "from 1 to 32767"),
        ({"delay": -HOUR}, "expected delay to be at least 0 s"),
        ({"delay": 5}, "timedelta(seconds=…)"),
        ({"delay": HOUR, "scheduled_at": NOW}, "got both"),
        ({"scheduled_at": datetime(2026, 1, 1)}, "aware"),  # noqa: DTZ001  # it is the point
        ({"scheduled_at": "tomorrow"}, "to be a datetime"),
        ({"queue": ""}, "queue"),
        ({"queue": "Upper"}, "lower case"),
        ({"queue": "a--b"}, "queue"),
        ({"queue": "a\n"}, "queue"),
        ({"queue": "a" * 65}, "at most 64"),
        ({"queue": 5}, "queue"),
        ({"tags": "tag"}, "list of texts"),
        ({"tags": ["ok1", "no,comma"]}, "tags[1]"),
        ({"tags": ["ab"]}, "tags[0]"),
        ({"tags": ["abc\n"]}, "tags[0]"),
        ({"tags": ["é" * 3]}, "tags[0]"),
        ({"tags": ["a" * 256]}, "255"),
        ({"tags": [5]}, "tags[0]"),
        ({"metadata": []}, "metadata to be a dict"),
        ({"pending": 1}, "pending"),
        ({"unique_opts": {"by_args": True}}, "riverq.UniqueOpts"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        row(Plain(), **options)
    with pytest.raises(ConfigError, match=re.escape(words)):
        InsertItem(Plain(), **options)


@pytest.mark.parametrize("queue", ["default", "a", "0", "mail_high-2", "a|b", "a" * 64])
def test_queue_names_that_river_takes(queue: str) -> None:
    check_queue_name(queue)
    assert row(Plain(), queue=queue).queue == queue


def test_no_queue_name_takes_long_to_refuse() -> None:
    started = time.process_time()
    with pytest.raises(ConfigError):
        check_queue_name("a" * 63 + "!")
    assert time.process_time() - started < 5  # with backtracking this would be 2 to the 60th steps


@pytest.mark.parametrize("kind", ["ab", "send_email", "a[b]<c>/d.e·f:g+h-i", "9x"])
def test_kinds_that_river_takes(kind: str) -> None:
    check_worker_kind(kind)


@pytest.mark.parametrize("kind", ["a", "send email", "-ab", "ab\n", "éa", "a,b"])
def test_kinds_that_only_an_insert_takes(kind: str) -> None:
    check_kind(kind)
    assert row(RawArgs(kind, {})).kind == kind
    with pytest.raises(ConfigError, match="skip_kind_validation"):
        check_worker_kind(kind)


@pytest.mark.parametrize("kind", ["", "x" * 128, "a\0", "\ud800", None])
def test_kinds_that_the_table_refuses(kind: Any) -> None:
    with pytest.raises(ConfigError):
        check_kind(kind)


def test_items_carry_their_options() -> None:
    item = InsertItem(Plain(), queue="mail", delay=None)
    assert (item.args, item.options) == (Plain(), {"queue": "mail", "delay": None})
    assert repr(item) == "InsertItem(Plain(id=1), queue='mail', delay=None)"
