"""Filters, orderings and pages, against a plain model of them: the same rows filtered and sorted in Python."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.job import JobRow, JobState
from riverq.job_list import LARGEST_ID, ORDERS, JobPage, list_params
from riverq.query.job_list import job_list
from tests.query.arrange import CLAIMED_AT, Caller, Table

ENDED = ("cancelled", "completed", "discarded")
LATER = CLAIMED_AT + timedelta(microseconds=1)
EVERYTHING = 10_000
TAGS = [[], ["abc"], ["abc", "d-e_f"], ["d-e_f"], ["ABC"], ['quo"te', "back\\slash", "a,b", "{}", "NULL", "é日😀", " "]]
METADATA: list[dict[str, Any]] = [
    {},
    {"customer": 7, "nested": {"a": [1, {"b": None}], "c": "d"}},
    {"customer": "7", 'é"日\\': "it's \u2028 😀"},
    {"customer": 9007199254740993, "nested": {"a": [1, {"b": None}, 2], "c": "e"}},
]


def add_rows(table: Table) -> None:
    """Every state with equal, different and, where the column allows it, no times; the rest varies out of step."""
    randomly = random.Random(5)
    times = [CLAIMED_AT, LATER, CLAIMED_AT - timedelta(days=400)]
    ids = itertools.chain(range(1, 40), (2**53, 2**53 + 1, 2**53 + 2), range(LARGEST_ID - 30, LARGEST_ID + 1))
    for number, job_id in enumerate(randomly.sample(list(ids), 72)):
        state = list(JobState)[number % 8]
        table.add(
            id=job_id,
            state=state,
            kind=["k", "größe~?'\"\\", "other"][number % 3],
            queue=["default", "mail"][number // 8 % 2],
            priority=number % 4 + 1,
            scheduled_at=randomly.choice(times),
            attempted_at=randomly.choice([None, *times]),
            finalized_at=randomly.choice(times) if state in ENDED else None,
            tags=randomly.choice(TAGS),
            metadata=randomly.choice(METADATA),
        )


def listed(call: Caller, limit: int = EVERYTHING, after: Any = None, **options: Any) -> JobPage:
    return call(job_list, list_params(options, limit=limit, after=after))


def paged(call: Caller, size: int, **options: Any) -> list[int]:
    """The ids of all pages, each found by the text of the last one's cursor."""
    found: list[int] = []
    page = listed(call, size, **options)
    while page:
        assert len(page) <= size
        assert len(found) <= EVERYTHING, "the same place again and again"
        found += [job.id for job in page]
        before, page = page, listed(call, size, after=page.cursor, **options)
        assert before.has_more == bool(page)
    assert page.cursor is None
    return found


def contains(whole: Any, part: Any) -> bool:
    """What `@>` means."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(have, want) for have in whole) for want in part)
    return type(whole) is type(part) and bool(whole == part)


def meets(job: JobRow, options: dict[str, Any]) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "ids": lambda wanted: job.id in wanted,
        "kinds": lambda wanted: job.kind in wanted,
        "priorities": lambda wanted: job.priority in wanted,
        "queues": lambda wanted: job.queue in wanted,
        "states": lambda wanted: job.state in wanted,
        "tags_all": lambda wanted: set(job.tags) >= set(wanted),
        "tags_any": lambda wanted: bool(set(job.tags) & set(wanted)),
        "metadata": lambda wanted: contains(json.loads(job.encoded_metadata), wanted),
    }
    return all(check(options[name]) for name, check in checks.items() if name in options)


def model(rows: list[JobRow], column: str | None, *, descending: bool = False, **options: Any) -> list[int]:
    last = datetime.max.replace(tzinfo=UTC)
    chosen = [job for job in rows if meets(job, options)]
    chosen.sort(key=lambda job: ((column and getattr(job, column)) or last, job.id), reverse=descending)
    return [job.id for job in chosen]


FILTERS: dict[str, list[Any]] = {
    "ids": [[3], [LARGEST_ID, 2**53 + 1, 7, 8, 9], [2**53, LARGEST_ID - 1], [1234], []],
    "kinds": [["k"], ["größe~?'\"\\", "k"], ["K"], [], ("other",)],
    "priorities": [[2], {1, 4}, []],
    "queues": [["mail"], ["mail", "default"], ["m"], []],
    "states": [["running"], [JobState.COMPLETED, "available"], list(JobState), []],
    "tags_all": [["abc"], ["d-e_f", "abc"], TAGS[-1], ["abc" * 80], []],
    "tags_any": [["abc"], ["ABC", "é日😀"], ["NULL"], ["{}", "no"], ["nobody's"], []],
    "metadata": [
        {},
        {"customer": 7},
        {"customer": "7"},
        {"nested": {"c": "d"}},
        {"nested": {"a": [{"b": None}]}},
        {'é"日\\': "it's \u2028 😀"},
        {"customer": 9007199254740993, "nested": {}},
        {"customer": None},
    ],
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_alone(call: Caller, table: Table, name: str) -> None:
    add_rows(table)
    rows = list(listed(call))
    assert [job.id for job in rows] == [each["id"] for each in table.sql("SELECT id FROM {job} ORDER BY id")]
    sizes = set()
    for value in FILTERS[name]:
        found = [job.id for job in listed(call, **{name: value})]
        assert found == model(rows, None, **{name: value}), value
        sizes.add(len(found))
    assert len(sizes) > 2  # the values tell


def test_filters_together(call: Caller, table: Table) -> None:
    add_rows(table)
    rows = list(listed(call))
    randomly = random.Random(7)
    met = 0
    for _ in range(60):
        names = randomly.sample(list(FILTERS), randomly.randint(2, 4))
        options = {name: randomly.choice(FILTERS[name][:3]) for name in names}
        found = [job.id for job in listed(call, **options)]
        assert found == model(rows, None, **options), options
        met += bool(found)
    assert met > 10


ORDERINGS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"order_by": "scheduled_at"}, "scheduled_at"),
    ({"order_by": "scheduled_at", "states": ["available"]}, "scheduled_at"),
    ({"order_by": "finalized_at"}, "finalized_at"),
    ({"order_by": "finalized_at", "states": ["cancelled"]}, "finalized_at"),
    ({"order_by": "time"}, "scheduled_at"),
    ({"order_by": "time", "states": ["retryable", "completed"]}, "scheduled_at"),
    ({"order_by": "time", "states": ["completed"]}, "finalized_at"),
    ({"order_by": "time", "states": ["running"]}, "attempted_at"),
    ({"order_by": "time", "states": ["running", "completed", "available"]}, "attempted_at"),
    ({"order_by": "time", "states": ["discarded", "running", "pending"]}, "finalized_at"),
    ({"order_by": "time", "states": ["completed", "discarded"]}, "finalized_at"),
]


@pytest.mark.parametrize("descending", [False, True])
def test_every_ordering_whole_and_in_pages(call: Caller, table: Table, descending: bool) -> None:
    add_rows(table)
    rows = list(listed(call))
    assert {options.get("order_by", "id") for options, _ in ORDERINGS} == set(ORDERS)
    for options, column in ORDERINGS:
        wanted = {"states": ENDED, **options} if options.get("order_by") == "finalized_at" else options
        filters = {name: value for name, value in wanted.items() if name != "order_by"}
        expected = model(rows, column, descending=descending, **filters)
        assert len(expected) >= 9
        whole = listed(call, **options, descending=descending)
        assert [job.id for job in whole] == expected, options
        assert not whole.has_more
        for size in (1, 4, len(expected)):
            assert paged(call, size, **options, descending=descending) == expected, (options, size)


@pytest.mark.parametrize("descending", [False, True])
def test_a_thousand_jobs_of_one_time(call: Caller, table: Table, descending: bool) -> None:
    """Of three neighbouring microseconds rather, so that a place which is not exact shows."""
    table.sql(
        """INSERT INTO {job} (state, kind, args, scheduled_at, attempted_at, max_attempts)
        SELECT 'running', 'k', '{{}}', at, CASE WHEN n %% 4 > 0 THEN at END, 25 FROM generate_series(1, 1000) AS n,
        LATERAL (SELECT %s::timestamptz + n %% 3 * interval '1 microsecond' AS at) AS times""",
        CLAIMED_AT,
    )
    for options, column in (
        ({}, None),
        ({"order_by": "scheduled_at"}, "scheduled_at"),
        ({"order_by": "time", "states": ["running"]}, "attempted_at"),
    ):
        given: dict[str, Any] = {**options, "descending": descending}
        found = paged(call, 64, **given)
        assert len(set(found)) == 1000
        assert found == model(list(listed(call)), column, descending=descending)


@pytest.mark.parametrize("descending", [False, True])
def test_times_that_python_cannot_hold_are_passed_too(call: Caller, table: Table, descending: bool) -> None:
    far = ["infinity", "9999-12-31 23:59:59.999999+00", "9999-12-30 00:00:00+00", "25000-01-01 00:00:00+00"]
    near = ["-infinity", "0044-03-15 12:00:00+00 BC", "0001-01-01 00:00:00+00", "0001-01-02 00:00:00+00"]
    middle = ["2300-01-01 00:00:00.000001+00", "9999-12-29 23:59:59.999999+00", "0001-01-02 00:00:00.000001+00"]
    for time in [*far, *near, *middle] * 3:
        table.sql("INSERT INTO {job} (kind, args, scheduled_at, max_attempts) VALUES ('k', '{{}}', %s, 25)", time)
    direction = "DESC" if descending else "ASC"
    expected = [
        row["id"] for row in table.sql(f"SELECT id FROM {{job}} ORDER BY scheduled_at {direction}, id {direction}")
    ]
    for size in (1, 2, 5):
        assert paged(call, size, order_by="scheduled_at", descending=descending) == expected


def test_a_place_at_infinity_whose_job_is_gone_is_left_behind(call: Caller, table: Table) -> None:
    ids = [table.add() for _ in range(6)]
    table.sql("UPDATE {job} SET scheduled_at = 'infinity'")
    met: list[int] = []
    page = listed(call, 1, order_by="scheduled_at")
    while page:
        met += [job.id for job in page]
        table.sql("DELETE FROM {job} WHERE id = %s", met[-1])
        page = listed(call, 1, order_by="scheduled_at", after=page.cursor)
    assert met == ids


def test_pages_do_not_shift_when_others_come_go_and_change(call: Caller, table: Table) -> None:
    ids = [table.add(state="available") for _ in range(6)]
    first = listed(call, 2, states=["available"])
    table.sql("DELETE FROM {job} WHERE id = ANY(%s)", ids[:2])  # the place itself too
    table.sql("UPDATE {job} SET state = 'running' WHERE id = %s", ids[3])
    new = table.add()
    second = listed(call, 2, states=["available"], after=first.cursor)
    third = listed(call, 2, states=["available"], after=second[-1])
    assert [[job.id for job in page] for page in (first, second, third)] == [ids[:2], [ids[2], ids[4]], [ids[5], new]]
    assert [first.has_more, second.has_more, third.has_more] == [True, True, False]


def test_a_listing_waits_for_nobody(call: Caller, table: Table, engine: sa.Engine) -> None:
    job_id = table.add()
    with engine.connect() as other:
        other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job FOR UPDATE')
        assert [job.id for job in listed(call, ids=[job_id])] == [job_id]


def test_a_long_tag_is_not_cut_to_one_that_exists(call: Caller, table: Table) -> None:
    table.add(tags=["x" * 255])
    assert len(listed(call, tags_any=["x" * 255])) == 1
    assert len(listed(call, tags_any=["x" * 256])) == len(listed(call, tags_all=["x" * 256])) == 0


def test_every_legal_character_of_a_tag(call: Caller, table: Table) -> None:
    legal = [f"a{chr(code)}b" for code in range(128) if chr(code).isalnum() or chr(code) in "_-"]
    awkward = [f"a{chr(code)}b" for code in range(1, 256)]  # which other clients may have written
    table.add(tags=legal)
    table.add(tags=awkward)
    assert len(listed(call, tags_all=legal)) == 2
    for tag in awkward:
        assert len(listed(call, tags_any=[tag])) == 1 + (tag in legal)


def test_an_id_is_exact_to_its_last_bit(call: Caller, table: Table) -> None:
    ids = [2**53, 2**53 + 1, LARGEST_ID - 1, LARGEST_ID]
    for job_id in ids:
        table.add(id=job_id)
        assert [job.id for job in listed(call, ids=[job_id])] == [job_id]
    assert paged(call, 1) == ids
    assert paged(call, 1, descending=True) == ids[::-1]


def test_what_the_session_sets_changes_nothing(call: Caller, table: Table, engine: sa.Engine) -> None:
    at = datetime(2026, 3, 29, 1, 30, 0, 1, tzinfo=UTC)
    ids = [table.add(scheduled_at=at + timedelta(microseconds=n // 2), tags=["a,b"]) for n in range(4)]
    found: list[int] = []
    with engine.connect() as conn:
        conn.exec_driver_sql(
            "SET TimeZone = 'Europe/Berlin'; SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'"
        )
        after = None
        for _ in ids:
            params = list_params({"order_by": "scheduled_at", "tags_any": ["a,b"]}, limit=1, after=after)
            page = job_list(conn, call.schema, params)
            after = page.cursor
            found += [job.id for job in page]
            assert page[0].scheduled_at.utcoffset() == timedelta(0)
    assert found == ids


def test_a_page_can_be_of_ten_thousand(call: Caller, table: Table) -> None:
    table.sql("INSERT INTO {job} (kind, args, max_attempts) SELECT 'k', '{{}}', 25 FROM generate_series(1, 10001) AS n")
    page = listed(call)
    assert (len(page), page.has_more) == (10_000, True)
    assert len(listed(call, after=page.cursor)) == 1
    assert [job.id for job in listed(call, ids=[job.id for job in page])] == [job.id for job in page]


def test_a_column_that_is_null_against_the_rules_is_no_trouble(call: Caller, table: Table) -> None:
    """A running job without attempted_at, as only somebody's own statement leaves it."""
    without = [table.add(state="running") for _ in range(3)]
    claimed = table.add(state="running", attempted_at=CLAIMED_AT)
    assert paged(call, 1, order_by="time", states=["running"]) == [claimed, *without]
    assert paged(call, 1, order_by="time", states=["running"], descending=True) == [*without[::-1], claimed]
    with pytest.raises(psycopg.errors.CheckViolation):
        table.sql("UPDATE {job} SET state = 'completed'")  # of the others, River's tables keep it
