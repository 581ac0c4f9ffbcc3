"""Lists: what one side asks for gives the same rows on the other, and each goes on where the other's page ended."""

from __future__ import annotations

import base64
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

import riverq
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Page, Side

KIND = "oracle_outcome"
LAST_ID = 2**63 - 1
STATES = ("available", "cancelled", "completed", "discarded", "pending", "retryable", "running", "scheduled")
FINAL = ("cancelled", "completed", "discarded")
KINDS = ("a>b?c~d", "send_mail", "ÿÿÿ🦫?>", "?????", "<&>\u2028", "~~~~~~")
QUEUES = ("default", "q>>", "q???", "q~", "ø>ø?ø~")
TIMES = (
    "1969-12-31 23:59:59.999999+00",
    "2026-01-01 00:00:00+00",
    "2026-01-01 00:00:00.000001+00",
    "2026-01-01 00:00:00.1+00",
    "2026-01-01 02:00:00.1+02",  # the same moment again
    "2999-12-31 23:59:59.999999+00",
)
METADATA: tuple[dict[str, Any], ...] = (
    {},
    {"tenant": "a", "deep": {"x": [1, 2, {"y": None}], "z": True}},
    {"tenant": "b", "n": 2**53 + 1},
    {"tenant": "ä🦫\u2028<&>", "deep": {"x": []}},
)
TAGS: tuple[list[str], ...] = ([], ["red"], ["red", "blue"], ["blue", "Grün-1"])
JOBS = 48


def _populate(place: Place) -> list[int]:
    """Jobs in every state, as nobody inserts them: ids over the whole of 64 bits; few times, so that many are equal."""
    ids = [1, 2, 3, 2**31, 2**32 + 1, 2**53 + 1, 2**53 + 2]
    ids += [LAST_ID - number for number in range(JOBS - len(ids))]
    with place.engine.begin() as connection:
        connection.execute(_insert(place.schema), [_job(number, job_id) for number, job_id in enumerate(ids)])
    return sorted(ids)


def _insert(schema: str) -> sa.TextClause:
    return sa.text(
        f'INSERT INTO "{schema}".river_job (id, state, attempt, max_attempts, attempted_at, created_at, finalized_at,'
        " scheduled_at, priority, args, kind, metadata, queue, tags)"
        f' VALUES (:id, CAST(:state AS "{schema}".river_job_state), 1, 3, CAST(:attempted_at AS timestamptz), now(),'
        " CAST(:finalized_at AS timestamptz), CAST(:scheduled_at AS timestamptz), :priority, '{}', :kind,"
        " CAST(:metadata AS jsonb), :queue, CAST(:tags AS text[]))"
    )


def _job(number: int, job_id: int) -> dict[str, Any]:
    # Strides without common divisors, so that every value meets every state.
    state = STATES[number % len(STATES)]
    return {
        "id": job_id,
        "state": state,
        "attempted_at": None if number % 3 == 0 else TIMES[number % 5],
        "finalized_at": TIMES[number // 8 % 6] if state in FINAL else None,
        "scheduled_at": TIMES[number * 5 % 6],
        "priority": 1 + number // 8 % 4,
        "kind": KINDS[number // 3 % len(KINDS)],
        "metadata": json.dumps(METADATA[number // 5 % len(METADATA)]),
        "queue": QUEUES[number // 2 % len(QUEUES)],
        "tags": TAGS[number // 7 % len(TAGS)],
    }


# -- orderings

ORDERS: dict[str, tuple[dict[str, Any], str]] = {
    "by id": ({"order_by": "id"}, "id"),
    "by id, which nobody asked for": ({}, "id"),
    "by id, one kind": ({"order_by": "id", "kinds": [KINDS[0]]}, "id"),
    "by the time at which they are due": ({"order_by": "scheduled_at"}, "scheduled_at"),
    "by the time at which they ended": ({"order_by": "finalized_at", "states": [*FINAL]}, "finalized_at"),
    "by the time of no state": ({"order_by": "time"}, "scheduled_at"),
    "by the time of a final state": ({"order_by": "time", "states": ["completed", "discarded"]}, "finalized_at"),
    "by the time of waiting states": ({"order_by": "time", "states": ["pending", "available"]}, "scheduled_at"),
    "by the time of the first state": ({"order_by": "time", "states": ["available", "completed"]}, "scheduled_at"),
}
DIRECTIONS = (False, True)


def _expected(place: Place, asked: dict[str, Any], column: str, *, descending: bool) -> list[int]:
    """The ids as the database orders them."""
    way = "DESC" if descending else "ASC"
    return place.scalars(
        "SELECT id FROM {schema}.river_job WHERE state::text = ANY(CAST(:states AS text[]))"
        f" AND kind = ANY(CAST(:kinds AS text[])) ORDER BY {column} {way}, id {way}",
        states=asked.get("states", [*STATES]),
        kinds=asked.get("kinds", [*KINDS]),
    )


def _hand_on(giver: Side, taker: Side, asked: dict[str, Any], limit: int) -> list[list[int]]:
    """The ids page by page, each page read by the other side from where the last one ended."""
    pages: list[list[int]] = []
    cursor: str | None = None
    while len(pages) <= JOBS:
        side = (giver, taker)[len(pages) % 2]
        page = side.list(**asked, limit=limit, **({"after": cursor} if cursor else {}))
        if not page.ids:
            assert page.cursor is None
            return pages
        pages.append(page.ids)
        cursor = page.cursor
    pytest.fail(f"the pages never end: {pages}")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.scenario("lists", f"pages handed on, {how}")) for how in ORDERS]
)
def test_pages_are_handed_on_until_the_end(fleet: Place, giver: Side, taker: Side, adapter: str, how: str) -> None:
    """Neither a gap nor a repetition, in both directions, equal times and ids up to 2**63 - 1 included."""
    _populate(fleet)
    options, column = ORDERS[how]
    for descending in DIRECTIONS if options else DIRECTIONS[:1]:
        asked = {**options, "descending": True} if descending else options
        expected = _expected(fleet, asked, column, descending=descending)
        assert len(expected) > 5
        assert giver.list(**asked).ids == taker.list(**asked).ids == expected
        pages = _hand_on(giver, taker, asked, limit=3)
        assert [job_id for page in pages for job_id in page] == expected
        assert {len(page) for page in pages[:-1]} == {3}


@pytest.mark.scenario("lists", "pages handed on, of jobs inserted at one moment")
def test_pages_of_jobs_inserted_at_one_moment(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    giver.insert_many(KIND, number=60)
    taker.insert_many(KIND, number=60)
    assert len(fleet.scalars("SELECT DISTINCT scheduled_at FROM {schema}.river_job")) == 2
    expected = fleet.scalars("SELECT id FROM {schema}.river_job ORDER BY scheduled_at, id")
    for options in ({"order_by": "scheduled_at"}, {"order_by": "time", "states": ["available"]}):
        pages = _hand_on(giver, taker, options, limit=25)
        assert [job_id for page in pages for job_id in page] == expected
    newest = _hand_on(giver, taker, {"order_by": "scheduled_at", "descending": True}, limit=25)
    assert [job_id for page in newest for job_id in page] == expected[::-1]


@pytest.mark.scenario("lists", "the cursors of the same page say the same")
def test_cursors_of_the_same_page_say_the_same(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    """Go writes `-` and `_`, which its older versions cannot read; riverq writes the same JSON free of them."""
    _populate(fleet)
    cursors: dict[str, list[str]] = {"river": [], "riverq": []}
    for options, _ in ORDERS.values():
        for limit in range(1, 9):
            for side in (giver, taker):
                cursor = side.list(**options, limit=limit).cursor
                assert cursor is not None
                cursors[side.name].append(cursor)
    goes, ours = cursors["river"], cursors["riverq"]
    assert [_opened(cursor) for cursor in goes] == [_opened(cursor) for cursor in ours]
    plain = [cursor for cursor in goes if not set(cursor) & set("-_+/")]
    assert 0 < len(plain) < len(goes)
    assert set(plain) <= set(ours)
    assert not any(set(cursor) & set("-_+/") for cursor in ours)


def _opened(cursor: str) -> dict[str, Any]:
    opened: dict[str, Any] = json.loads(base64.urlsafe_b64decode(cursor))
    return opened


@pytest.mark.scenario("lists", "cursors in Go's alphabet, and in that of older ones")
def test_cursors_in_either_alphabet(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    """riverq reads base64 in both alphabets. Go reads one, the URL alphabet since 0.51, and so needs riverq's to be in
    neither."""
    _populate(fleet)
    asked: dict[str, Any] = {"order_by": "id", "kinds": [KINDS[2]]}
    for limit in (1, 2, 3):
        behind = riverq_side.list(**asked).ids[limit:]
        told = str(river.list(**asked, limit=limit).cursor)
        assert set(told) & set("-_")
        standard = base64.standard_b64encode(base64.urlsafe_b64decode(told)).decode()
        assert riverq_side.list(**asked, after=told).ids == river.list(**asked, after=told).ids == behind
        assert riverq_side.list(**asked, after=standard).ids == behind
        with pytest.raises(OracleError, match="illegal base64"):
            river.list(**asked, after=standard)


@pytest.mark.scenario("lists", "a list goes on behind a job, made a cursor by the other side's row of it")
def test_a_list_goes_on_behind_a_job(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    ids = _populate(fleet)
    for options, _ in ORDERS.values():
        jobs = giver.list(**options).ids
        for job_id in (jobs[0], jobs[len(jobs) // 2], jobs[-1]):
            behind = jobs[jobs.index(job_id) + 1 :]
            assert giver.list(**options, after_job=job_id).ids == behind
            assert taker.list(**options, after_job=job_id).ids == behind
    assert giver.list(order_by="id", after_job=ids[-2]).ids == [LAST_ID]


@pytest.mark.scenario("lists", "a list goes on though the job at its cursor is gone, and others came")
def test_a_list_goes_on_where_its_job_is_gone(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    ids = [giver.insert(KIND, scheduled_at="2999-01-01T00:00:00.000001Z") for _ in range(6)]
    page = giver.list(order_by="scheduled_at", limit=3)
    assert page.ids == ids[:3]
    taker.delete(ids[2])
    late = taker.insert(KIND, scheduled_at="2999-01-01T00:00:00Z")  # in front of the cursor: of a page already read
    last = taker.insert(KIND, scheduled_at="2999-01-01T00:00:00.000002Z")
    assert taker.list(order_by="scheduled_at", after=page.cursor).ids == [*ids[3:], last]
    assert giver.list(order_by="scheduled_at", after=page.cursor).ids == [*ids[3:], last]
    assert giver.list(order_by="scheduled_at").ids == [late, *ids[:2], *ids[3:], last]


@pytest.mark.scenario("lists", "a page within a transaction shows what is uncommitted there, and only there")
def test_a_page_in_a_transaction(giver: Side, taker: Side, adapter: str) -> None:
    seen = [giver.insert(KIND), taker.insert(KIND)]
    first = taker.list(limit=1)
    with giver.transaction() as tx:
        unseen = giver.insert(KIND, tx=tx)
        assert giver.list(tx=tx, after=first.cursor).ids == [seen[1], unseen]
        within = giver.list(tx=tx)
        assert within.ids == [*seen, unseen]
        assert taker.list().ids == seen
        tx.rollback()
    assert taker.list(after=within.cursor).ids == []


# -- times that jobs lack


@pytest.mark.scenario("lists", "jobs that lack the time they are ordered by come last, first in descending order")
@pytest.mark.parametrize(
    ("states", "column"),
    [
        pytest.param(["running"], "attempted_at", id="running"),
        pytest.param(["running", "available"], "attempted_at", id="running-first"),
        pytest.param(["completed", "available"], "finalized_at", id="completed-first"),
    ],
)
def test_jobs_without_the_time(
    fleet: Place, river: Side, riverq_side: Side, adapter: str, states: list[str], column: str
) -> None:
    _populate(fleet)
    for descending in DIRECTIONS:
        asked: dict[str, Any] = {"order_by": "time", "states": states, "descending": descending}
        expected = _expected(fleet, asked, column, descending=descending)
        assert river.list(**asked).ids == riverq_side.list(**asked).ids == expected
        for first, second in ((riverq_side, river), (river, riverq_side), (river, river)):
            pages = _hand_on(first, second, asked, limit=2)
            assert [job_id for page in pages for job_id in page] == expected, (first, second)


# -- filters

FILTERS: dict[str, dict[str, Any]] = {
    "ids": {"ids": [2**53 + 1, LAST_ID, 3, 77]},
    "one id": {"ids": [LAST_ID - 1]},
    "kinds": {"kinds": [KINDS[0], KINDS[2], KINDS[4]]},
    "one kind": {"kinds": [KINDS[5]]},
    "priorities": {"priorities": [1, 4]},
    "one priority": {"priorities": [2]},
    "queues": {"queues": [QUEUES[1], QUEUES[4]]},
    "one queue": {"queues": [QUEUES[2]]},
    "states": {"states": ["pending", "retryable", "discarded"]},
    "one state": {"states": ["running"]},
    "all of some tags": {"tags_all": ["blue", "red"]},
    "one tag": {"tags_all": ["Grün-1"]},
    "any of some tags": {"tags_any": ["Grün-1", "red", "nobody's"]},
    "metadata": {"metadata": '{"tenant": "a"}'},
    "metadata, deep": {"metadata": '{"deep": {"x": [{"y": null}, 2]}}'},
    "metadata, an empty list within": {"metadata": '{"deep": {"x": []}, "tenant": "a"}'},
    "metadata, a large number": {"metadata": f'{{"n": {2**53 + 1}}}'},
    "metadata, beyond ASCII": {"metadata": json.dumps({"tenant": "ä🦫\u2028<&>"}, ensure_ascii=False)},
    "several at once": {
        "kinds": [*KINDS[:4]],
        "metadata": '{"tenant": "b"}',
        "priorities": [1, 2, 3],
        "states": ["available", "completed", "discarded", "pending"],
        "tags_any": ["red", "blue"],
    },
}
NOBODY: dict[str, dict[str, Any]] = {
    "an id": {"ids": [77]},
    "a kind": {"kinds": ["nobody's", "a>b?c~"]},
    "a queue": {"queues": ["Default"]},
    "tags that no job has together": {"tags_all": ["red", "blue", "Grün-1"]},
    "a part of a tag": {"tags_any": ["re", "redd"]},
    "a near number": {"metadata": f'{{"n": {2**53}}}'},
}


@pytest.mark.scenario("lists", "every filter gives the same rows on both sides")
def test_every_filter_gives_the_same_rows(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    every = _populate(fleet)
    for what, asked in FILTERS.items():
        theirs, ours = river.list(**asked), riverq_side.list(**asked)
        assert theirs.jobs == ours.jobs, what
        assert 0 < len(ours.jobs) < len(every), what
        # A filter holds for the pages behind a cursor, whoever wrote that.
        behind = ours.ids[1:]
        assert river.list(**asked, after=riverq_side.list(**asked, limit=1).cursor).ids == behind, what
        assert riverq_side.list(**asked, after=river.list(**asked, limit=1).cursor).ids == behind, what
    for what, asked in NOBODY.items():
        assert river.list(**asked) == riverq_side.list(**asked) == Page([], None), what


@pytest.mark.scenario("lists", "an empty list is no filter for Go, and one that no job meets for riverq")
def test_empty_filters(fleet: Place, river: Side, riverq_side: Side) -> None:
    """A choice of riverq's: a list that a program made, and which came out empty, lists nothing and deletes nothing."""
    every = _populate(fleet)
    for name in ("ids", "kinds", "priorities", "queues", "states", "tags_any"):
        asked: dict[str, Any] = {name: []}
        assert (river.list(**asked).ids, riverq_side.list(**asked).ids) == (every, []), name
    assert river.list(tags_all=[]).ids == riverq_side.list(tags_all=[]).ids == every


@pytest.mark.scenario("lists", "counts are those of the other side's lists")
def test_counts(fleet: Place, giver: Side, taker: Side) -> None:
    """River's client counts nothing; what riverq counts is compared with what either side lists."""
    for number in range(5):
        giver.insert("another", queue="nobodys", pending=number == 4)
        taker.insert(KIND, scheduled_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    taker.cancel(giver.insert(KIND))
    waiting = giver.insert(KIND, {"outcome": "wait"}, queue="q")
    with taker.working(KIND, queue="q", max_workers=1) as client:
        client.until_begun(waiting)
        _check_counts(fleet, giver, taker)
        client.release()
    _check_counts(fleet, giver, taker)


def _check_counts(fleet: Place, *sides: Side) -> None:
    counting = riverq.Client(fleet.engine, riverq.Config(schema=fleet.schema))
    for side in sides:
        by_state = Counter(row["state"] for row in side.list().jobs)
        assert counting.job_count_by_state() == {state: by_state[state] for state in riverq.JobState}
        for kind, counts in counting.job_count_by_kind([KIND, "another", "nobody's"]).items():
            assert counts == {state: _listed(side, kinds=[kind], states=[state]) for state in riverq.JobState}
        for queue, waits in counting.job_count_by_queue(["default", "q", "nobodys"]).items():
            assert waits.available == _listed(side, queues=[queue], states=["available"])
            assert waits.running == _listed(side, queues=[queue], states=["running"])


def _listed(side: Side, **which: Any) -> int:
    return len(side.list(**which).jobs)
