"""Cursors as Go River writes them, and what is refused before a statement is sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverq.errors import ConfigError
from riverq.job import FINAL_STATES, JobRow, JobState
from riverq.job_list import LARGEST_ID, ORDERS, Cursor, JobListParams, JobPage, list_params

AT = datetime(2026, 11, 21, 5, 4, 3, 123457, tzinfo=UTC)
STRANGE = "größe~?>&<"
FAR = "日本😀\u2028"

# Texts of `JobListCursor.MarshalText` in River 0.51.1, seen with TZ=UTC and TZ=America/New_York alike.
GO: dict[str, Cursor] = {
    "eyJpZCI6MSwia2luZCI6ImdyZWV0IiwicXVldWUiOiJkZWZhdWx0Iiwic29ydF9maWVsZCI6ImlkIiwidGltZSI6IjAwMDEtMDEtMDFUMDA6MDA6MDBa"
    "In0=": Cursor(1, "greet", "default", "id"),
    "eyJpZCI6OTAwNzE5OTI1NDc0MDk5Mywia2luZCI6ImsiLCJxdWV1ZSI6ImRlZmF1bHQiLCJzb3J0X2ZpZWxkIjoiaWQiLCJ0aW1lIjoiMDAwMS0wMS0w"
    "MVQwMDowMDowMFoifQ==": Cursor(9007199254740993, "k", "default", "id"),
    "eyJpZCI6OTIyMzM3MjAzNjg1NDc3NTgwNywia2luZCI6IuaXpeacrPCfmIBcdTIwMjgiLCJxdWV1ZSI6ImRlZmF1bHQiLCJzb3J0X2ZpZWxkIjoidGlt"
    "ZSIsInRpbWUiOiIwMDAxLTAxLTAyVDAwOjAwOjAwWiJ9": Cursor(
        LARGEST_ID, FAR, "default", "time", datetime(1, 1, 2, tzinfo=UTC)
    ),
    "eyJpZCI6MSwia2luZCI6ImdyZWV0IiwicXVldWUiOiJkZWZhdWx0Iiwic29ydF9maWVsZCI6InNjaGVkdWxlZF9hdCIsInRpbWUiOiIyMDI2LTExLTIx"
    "VDA1OjA0OjAzLjEyMzQ1N1oifQ==": Cursor(1, "greet", "default", "scheduled_at", AT),
    "eyJpZCI6OTAwNzE5OTI1NDc0MDk5Mywia2luZCI6ImsiLCJxdWV1ZSI6ImRlZmF1bHQiLCJzb3J0X2ZpZWxkIjoiZmluYWxpemVkX2F0IiwidGltZSI6"
    "IjIwMjYtMTEtMjFUMDc6MDA6MDAuMDAwMDAxWiJ9": Cursor(
        9007199254740993, "k", "default", "finalized_at", datetime(2026, 11, 21, 7, 0, 0, 1, tzinfo=UTC)
    ),
    "eyJpZCI6OTAwNzE5OTI1NDc0MDk5Mywia2luZCI6ImsiLCJxdWV1ZSI6ImRlZmF1bHQiLCJzb3J0X2ZpZWxkIjoidGltZSIsInRpbWUiOiIyMDI2LTEx"
    "LTIxVDA2OjAwOjAwLjVaIn0=": Cursor(
        9007199254740993, "k", "default", "time", datetime(2026, 11, 21, 6, 0, 0, 500_000, tzinfo=UTC)
    ),
}
GO_URL_ONLY = (
    "eyJpZCI6Miwia2luZCI6Imdyw7bDn2V-P1x1MDAzZVx1MDAyNlx1MDAzYyIsInF1ZXVlIjoibWFpbHxhIiwic29ydF9maWVsZCI6InNjaGVkdWxlZF9h"
    "dCIsInRpbWUiOiIyMDI2LTExLTIxVDA1OjA0OjAzLjEyWiJ9"
)
"""Has a `-`: Go before 0.51 cannot read what it wrote."""


def row(**columns: Any) -> JobRow:
    plain: dict[str, Any] = {
        "id": 5,
        "kind": "k",
        "state": JobState.AVAILABLE,
        "attempt": 0,
        "max_attempts": 25,
        "priority": 1,
        "queue": "default",
        "created_at": AT,
        "scheduled_at": AT,
    }
    return JobRow(**{**plain, **columns})


def params(after: Any = None, limit: Any = 100, **options: Any) -> JobListParams:
    return list_params(options, limit=limit, after=after)


# -- cursors


@pytest.mark.parametrize("text", GO)
def test_gos_cursors_are_read_and_written_byte_for_byte(text: str) -> None:
    assert Cursor.decode(text) == GO[text]
    assert GO[text].encode() == text


def test_a_text_that_only_one_alphabet_has_is_read_and_written_for_both() -> None:
    cursor = Cursor(2, STRANGE, "mail|a", "scheduled_at", AT.replace(microsecond=120_000))
    assert Cursor.decode(GO_URL_ONLY) == cursor
    text = cursor.encode()
    assert base64.b64decode(text, validate=True) == base64.urlsafe_b64decode(text)
    assert json.loads(base64.b64decode(text)) == json.loads(base64.urlsafe_b64decode(GO_URL_ONLY))


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.text(
    '>?~\x7f\x1f\\"/é\uffff😀&<', max_size=30
)
CURSORS = st.builds(
    Cursor,
    st.integers(1, LARGEST_ID) | st.integers(LARGEST_ID - 2, LARGEST_ID) | st.integers(2**53 - 2, 2**53 + 2),
    TEXTS,
    TEXTS,
    st.sampled_from(ORDERS),
    st.none() | st.datetimes(datetime(1, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001  # the strategy wants it naive
)


@settings(max_examples=500, deadline=None)
@given(cursor=CURSORS)
def test_every_cursor_reads_back_in_either_alphabet_padded_or_not(cursor: Cursor) -> None:
    text = cursor.encode()
    assert not set(text) & set("+/-_")
    assert base64.b64decode(text, validate=True) == base64.urlsafe_b64decode(text)  # one of them is any Go's
    assert Cursor.decode(text) == Cursor.decode(text.rstrip("=")) == cursor
    data = json.loads(base64.b64decode(text))
    assert list(data) == ["id", "kind", "queue", "sort_field", "time"]


@settings(max_examples=200, deadline=None)
@given(cursor=CURSORS)
def test_what_go_writes_in_its_own_alphabet_is_read(cursor: Cursor) -> None:
    data = json.loads(base64.b64decode(cursor.encode()))
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        assert Cursor.decode(encoded.decode()) == Cursor.decode(encoded.decode().rstrip("=")) == cursor


def altered(**changes: Any) -> str:
    data = {"id": 1, "kind": "k", "queue": "q", "sort_field": "id", "time": "0001-01-01T00:00:00Z", **changes}
    return base64.b64encode(json.dumps({k: v for k, v in data.items() if v is not ...}).encode()).decode()


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-21T05:04:03.123457999Z", AT),
        ("2026-11-21T07:04:03.123457+02:00", AT),
        ("2026-11-21T05:04:03.5Z", AT.replace(microsecond=500_000)),
        ("2026-11-21T05:04:03Z", AT.replace(microsecond=0)),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T02:00:00+02:00", None),
    ],
)
def test_times_of_other_zones_and_precisions(text: str, time: datetime | None) -> None:
    assert Cursor.decode(altered(time=text)).time == time


def test_the_time_is_written_in_utc() -> None:
    there = AT.astimezone(timezone(timedelta(hours=-5)))
    assert Cursor(1, "k", "q", "time", there).encode() == Cursor(1, "k", "q", "time", AT).encode()


GARBAGE: dict[str, str] = {
    "empty": "",
    "no_base64": "a cursor",
    "cut": "eyJpZCI6MSwia2luZCI6",
    "impossible_length": "eyJpZ",
    "no_json": base64.b64encode(b"garbage").decode(),
    "no_utf8": base64.b64encode(b'{"id":\xff}').decode(),
    "a_list": base64.b64encode(b"[1]").decode(),
    "a_number": base64.b64encode(b"1").decode(),
    "deep": base64.b64encode(b"[" * 100_000).decode(),
    "long_number": base64.b64encode(b'{"id":' + b"1" * 5000 + b"}").decode(),
    "non_ascii": "é",
    "inner_padding": "eyJp=ZCI6",
    "no_id": altered(id=...),
    "no_time": altered(time=...),
    "no_sort_field": altered(sort_field=...),
    "text_id": altered(id="1"),
    "true_id": altered(id=True),
    "float_id": altered(id=1.0),
    "zero_id": altered(id=0),
    "large_id": altered(id=2**63),
    "null_kind": altered(kind=None),
    "nul_in_queue": altered(queue="a\0"),
    "lone_surrogate": altered(kind="\ud800"),
    "number_time": altered(time=5),
    "no_zone": altered(time="2026-11-21T05:04:03"),
    "a_day": altered(time="2026-11-21"),
    "no_such_day": altered(time="2026-02-30T00:00:00Z"),
    "before_all_years": altered(time="0001-01-01T00:00:00+05:00"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected after to be the cursor of a page, got: ") as raised:
        params(after=GARBAGE[name])
    assert len(str(raised.value)) < 300


def test_a_cursor_of_the_largest_names_is_read() -> None:
    cursor = Cursor(LARGEST_ID, "😀" * 127, "?" * 127, "scheduled_at", AT)
    assert Cursor.decode(cursor.encode()) == cursor


# -- a cursor of another list


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order_by": "time"}, "ordered by time, got: one of a list ordered by id "),
        ({"ids": [4, 6]}, "job 5, which is none of it by ids"),
        ({"kinds": ["l"]}, "job 5, which is none of it by kinds"),
        ({"queues": ["mail"]}, "job 5, which is none of it by queues"),
    ],
)
def test_a_cursor_of_another_list_is_refused(options: dict[str, Any], message: str) -> None:
    cursor = params().place_of(row()).encode()
    assert params(after=cursor, ids=[4, 5], kinds=["j", "k"], queues=["default"]).after == Cursor(
        5, "k", "default", "id"
    )
    with pytest.raises(ConfigError, match=message):
        params(after=cursor, **options)


@pytest.mark.parametrize("order", ORDERS)
def test_each_ordering_takes_its_own_cursors_only(order: Any) -> None:
    ended = row(state=JobState.COMPLETED, finalized_at=AT)
    cursor = params(order_by=order).place_of(ended).encode()
    assert params(after=cursor, order_by=order).after is not None
    for other in set(ORDERS) - {order}:
        with pytest.raises(ConfigError, match=f"ordered by {order}"):
            params(after=cursor, order_by=other)


def test_a_place_without_the_time_that_every_listed_job_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="job 5 without finalized_at, by which the list is ordered"):
        params(after=row(), order_by="finalized_at")
    with pytest.raises(ConfigError, match="job 1 without scheduled_at"):
        params(after=altered(sort_field="time"), order_by="time")
    with pytest.raises(ConfigError, match="job 1 without finalized_at"):
        params(after=altered(sort_field="time"), order_by="time", states=["completed", "cancelled"])
    nullable = params(after=altered(sort_field="time"), order_by="time", states=["completed", "running"])
    assert nullable.after == Cursor(1, "k", "q", "time")


def test_a_job_is_a_place_too() -> None:
    assert params(after=row()).after == Cursor(5, "k", "default", "id")
    assert params(after=row(), order_by="scheduled_at").after == Cursor(5, "k", "default", "scheduled_at", AT)
    for wrong in (5, b"eyJ", ["eyJ"], Cursor(1, "k", "q", "id")):
        with pytest.raises(ConfigError, match="expected after to be the cursor of a page, or a JobRow"):
            params(after=wrong)


# -- options

COLUMNS = {
    "available": "scheduled_at",
    "pending": "scheduled_at",
    "retryable": "scheduled_at",
    "scheduled": "scheduled_at",
    "running": "attempted_at",
    "cancelled": "finalized_at",
    "completed": "finalized_at",
    "discarded": "finalized_at",
}


@pytest.mark.parametrize("state", JobState)
def test_the_first_state_decides_which_time_orders(state: JobState) -> None:
    others = [other for other in JobState if other is not state]
    for states in ([state], [state, *others], [str(state)], {state}):
        assert params(order_by="time", states=states).column == COLUMNS[state]
    assert params(order_by="time", states=[state]).nullable is (state is JobState.RUNNING)
    assert params(order_by="time", states=[state, *others]).nullable is (COLUMNS[state] != "scheduled_at")
    assert params(order_by="time").column == params(order_by="time", states=[]).column == "scheduled_at"


def test_by_finalized_at_only_jobs_that_have_ended_are_listed() -> None:
    assert set(params(order_by="finalized_at").states or ()) == FINAL_STATES
    chosen = params(order_by="finalized_at", states={"cancelled"})
    assert (chosen.states, chosen.column, chosen.nullable) == ((JobState.CANCELLED,), "finalized_at", False)
    with pytest.raises(
        ConfigError, match="expected states to be final ones for order_by='finalized_at', got: 'running'"
    ):
        params(order_by="finalized_at", states=["completed", "running"])


def test_a_set_has_no_first_state() -> None:
    assert params(order_by="time", states=FINAL_STATES).column == "finalized_at"
    assert params(order_by="id", states={"running", "completed"}).column is None
    with pytest.raises(
        ConfigError, match=r"states to be a list for order_by='time', got: the set \{completed, running\}"
    ):
        params(order_by="time", states={"running", "completed"})


def test_none_is_no_option_and_an_empty_list_is_one() -> None:
    assert params(**dict.fromkeys(("ids", "states", "metadata", "order_by", "descending"))) == params()
    assert params().ids is None
    assert params(ids=[], tags_all=()) == JobListParams(ids=(), tags_all=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "expected limit to be an integer from 1 to 10000, got: 0"),
        ({"limit": 10_001}, "expected limit to be an integer from 1 to 10000"),
        ({"limit": True}, "expected limit to be an integer"),
        ({"kind": ["k"]}, "unknown list option 'kind' .did you mean 'kinds'"),
        ({"ids": 5}, "expected ids to be a list of integers, got: 5"),
        ({"ids": ["5"]}, r"expected ids\[0\] to be an integer from 1"),
        ({"ids": [1, 2**63]}, r"expected ids\[1\] to be an integer from 1 to 9223372036854775807"),
        ({"kinds": "k"}, "expected kinds to be a list of texts, got: 'k'"),
        ({"kinds": [None]}, r"expected kinds\[0\] to be a text, got: None"),
        ({"queues": ["a\0"]}, r"expected queues\[0\] to be a text that Postgres can store"),
        ({"queues": ["\ud800"]}, r"expected queues\[0\] to be a text that Postgres can store"),
        ({"priorities": [5]}, r"expected priorities\[0\] to be an integer from 1 to 4, got: 5"),
        ({"states": "running"}, "expected states to be a list of states, got: 'running'"),
        ({"states": ["runing"]}, r"expected states\[0\] to be a state of a job, got: 'runing' .did you mean 'running'"),
        ({"states": [5]}, r"expected states\[0\] to be a state of a job, got: 5"),
        ({"tags_all": {"a": 1}}, "expected tags_all to be a list of texts"),
        ({"tags_any": [1]}, r"expected tags_any\[0\] to be a text"),
        ({"metadata": [1]}, r"expected metadata to be a dict, got: \[1\]"),
        ({"metadata": {"a": "\0"}}, "cannot encode metadata.a"),
        ({"order_by": "created_at"}, "expected order_by to be one of id, time, finalized_at, scheduled_at"),
        ({"order_by": []}, "expected order_by to be one of id, time"),
        ({"descending": 1}, "expected descending to be True or False, got: 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        params(**options)


# -- pages


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_page_is_a_sequence_that_knows_its_end(count: int) -> None:
    rows = [row(id=number) for number in range(1, count + 1)]
    page = params(limit=2).page(rows)
    assert list(page) == rows[:2] == list(page.jobs)
    assert (len(page), bool(page), page.has_more) == (min(count, 2), count > 0, count > 2)
    assert page.cursor == (Cursor(min(count, 2), "k", "default", "id").encode() if count else None)
    assert repr(page) == f"<JobPage of {min(count, 2)}{', and more' if count > 2 else ''}>"
    if count:
        assert (page[0], page[-1], page[:1], rows[0] in page) == (rows[0], rows[:2][-1], (rows[0],), True)


def test_a_page_cannot_be_changed() -> None:
    change: Callable[..., Any] = JobPage.__setattr__
    with pytest.raises(AttributeError):
        change(JobPage(()), "has_more", True)
