"""Periodic jobs that both sides register: whoever leads inserts them, and a change of leader doubles nothing."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import leader_of, until, until_leader, until_settled

KIND = "oracle_outcome"
TICKS = "ticks"
SECOND = timedelta(seconds=1)
ARGS = '{"output": {"at": "the tick"}}'
TICK: dict[str, Any] = {
    "id": "tick",
    "seconds": 1,
    "job": {
        "kind": KIND,
        "queue": TICKS,
        "args": ARGS,
        "tags": ["tag_a", "tag_b"],
        "priority": 3,
        "metadata": {"of": "ours"},
    },
}


def _ids(fleet: Place, queue: str = TICKS) -> list[int]:
    ids: list[int] = fleet.scalars("SELECT id FROM {schema}.river_job WHERE queue = :queue ORDER BY id", queue=queue)
    return ids


def _rows(side: Side, queue: str = TICKS) -> list[Row]:
    return [side.get(job_id) for job_id in _ids(side.place, queue)]


def _until_there(fleet: Place, number: int, queue: str = TICKS) -> None:
    """Wait for so many jobs."""
    until(lambda: len(_ids(fleet, queue)) >= number, f"{number} runs in {queue}")


def _until_more(fleet: Place, more: int, queue: str = TICKS) -> None:
    """Wait for so many more jobs than there are."""
    _until_there(fleet, len(_ids(fleet, queue)) + more, queue)


def _alike(row: Row) -> Row:
    """A run without what is its own. The metadata as a text, because in Python true is one."""
    shared = {name: value for name, value in row.items() if name not in ("id", "created_at", "scheduled_at")}
    return {**shared, "metadata": json.dumps(row["metadata"], sort_keys=True)}


def _targets(rows: list[Row]) -> list[datetime]:
    return [row["scheduled_at"] for row in rows]


def _lead(side: Side, periodic: list[dict[str, Any]], number: int, queue: str) -> None:
    """Lead until there are so many jobs."""
    with side.working(KIND, queue="nobodys", periodic=periodic) as client:
        until_leader(side.place, client.id)
        _until_there(side.place, number, queue)


@pytest.mark.scenario("periodic jobs", "under one id on both sides: one run a tick, across a change of leader")
def test_a_change_of_leader(fleet: Place, giver: Side, taker: Side) -> None:
    first = giver.start(KIND, queue="first", periodic=[TICK])
    until_leader(fleet, first.id)
    second = taker.start(KIND, queue="second", periodic=[TICK])
    _until_more(fleet, 3)
    first.stop()
    until_leader(fleet, second.id)
    [elected_at] = fleet.scalars("SELECT elected_at FROM {schema}.river_leader")
    _until_more(fleet, 3)
    second.stop()

    rows = _rows(giver)
    assert rows == _rows(taker)
    for row in rows:
        assert _alike(row) == _alike(rows[0])
    assert rows[0]["state"] == "available"
    assert rows[0]["metadata"] == {"of": "ours", "periodic": True, "river:periodic_job_id": "tick"}
    # Runs are inserted for their time by the schedule, not for when they were inserted: nothing drifts.
    of_first = [row["scheduled_at"] for row in rows if row["created_at"] < elected_at]
    of_second = [row["scheduled_at"] for row in rows if row["created_at"] >= elected_at]
    for of_one in (of_first, of_second):
        assert {later - earlier for earlier, later in pairwise(of_one)} == {SECOND}
    assert _targets(rows) == of_first + of_second == sorted({*of_first, *of_second})
    with giver.working(KIND, queue=TICKS, no_leader=True):
        until_settled(fleet)
    assert {row["state"] for row in _rows(taker)} == {"completed"}
    assert {json.dumps(row["metadata"]["output"]) for row in _rows(taker)} == {'{"at": "the tick"}'}


@pytest.mark.scenario("periodic jobs", "run_on_start inserts at each change of leader, a unique job only at the first")
def test_run_on_start(fleet: Place, river: Side, riverq_side: Side) -> None:
    each_time = {"id": "each", "run_on_start": True, "job": {"kind": KIND, "queue": "each"}}
    once = {"id": "once", "run_on_start": True, "job": {"kind": KIND, "queue": "once", "unique": {"by_args": True}}}
    for number, side in enumerate((river, riverq_side, riverq_side, river), start=1):
        _lead(side, [once, each_time], number, "each")
        assert len(_ids(fleet, "each")) == number
        [unique] = _rows(side, "once")
    rows = _rows(river, "each")
    for row in rows:
        assert _alike(row) == _alike(rows[0])
        # The tick is the moment of the start, which lies before the insert.
        assert row["scheduled_at"] <= row["created_at"] + SECOND
    assert unique["metadata"] == {"periodic": True, "river:periodic_job_id": "once"}
    assert unique["unique_key"] is not None


@pytest.mark.scenario(
    "periodic jobs", "of two leaders for a moment each inserts, but a job that is unique by its period once"
)
def test_two_leaders_for_a_moment(fleet: Place, giver: Side, taker: Side) -> None:
    def periodic(side: Side) -> list[dict[str, Any]]:
        unique = {"id": "shared", "seconds": 1, "job": {"kind": KIND, "queue": TICKS, "unique": {"by_period": 1}}}
        return [unique, {"id": "own", "seconds": 1, "job": {"kind": KIND, "queue": f"of_{side.name}"}}]

    with giver.working(KIND, queue="first", periodic=periodic(giver)) as first:
        until_leader(fleet, first.id)
        with taker.working(KIND, queue="second", periodic=periodic(taker)) as second:
            _until_more(fleet, 1)
            own = {first.id: f"of_{giver.name}", second.id: f"of_{taker.name}"}
            assert any(_two_insert(fleet, own) for _ in range(5))
    both = len(_ids(fleet, f"of_{giver.name}")) + len(_ids(fleet, f"of_{taker.name}"))
    seconds = [target.replace(microsecond=0) for target in _targets(_rows(giver))]
    assert len(seconds) == len(set(seconds)) < both


def _two_insert(fleet: Place, own: dict[str, str]) -> bool:
    """Let the one who leads lose the row to the other; whether it inserted once more after the other began to.

    It believes that it leads until it tries to renew its term, 5 s later. Go's maintenance may be longer in starting:
    it begins its six services one by one, each after up to a second.
    """
    before = until_leader(fleet)
    _take_the_row_away(fleet)
    after = until_leader(fleet)
    if after == before:
        return False
    _until_more(fleet, 1, own[after])
    known = len(_ids(fleet, own[before]))
    try:
        until(lambda: len(_ids(fleet, own[before])) > known, "", seconds=3)
    except pytest.fail.Exception:
        return False
    _until_more(fleet, 1, own[after])
    assert leader_of(fleet) == after
    return True


def _take_the_row_away(fleet: Place) -> None:
    """Right after a renewal, and tell the others that somebody resigned."""
    expires = "SELECT expires_at FROM {schema}.river_leader"
    [before] = fleet.scalars(expires)
    until(lambda: fleet.scalars(expires) != [before], "the term to be renewed")
    with fleet.engine.begin() as connection:
        connection.execute(sa.text(f'DELETE FROM "{fleet.schema}".river_leader'))
        told = {"channel": f"{fleet.schema}.river_leadership", "payload": '{"leader_id": "x", "action": "resigned"}'}
        connection.execute(sa.text("SELECT pg_notify(:channel, :payload)"), told)


@pytest.mark.scenario("periodic jobs", "what is removed at one client is inserted again when the other leads")
def test_a_job_that_one_client_removes(fleet: Place, giver: Side, taker: Side) -> None:
    with taker.working(KIND, queue="second") as second:
        until_leader(fleet, second.id)
        second.periodic_add(TICK)
        with giver.working(KIND, queue="first", periodic=[TICK]) as first:
            _until_more(fleet, 2)
            assert second.periodic_remove("tick") is True
            assert second.periodic_remove("tick") is False
            second.periodic_add({**TICK, "id": "other", "job": {**TICK["job"], "queue": "others"}})
            left = len(_ids(fleet))
            _until_more(fleet, 2, "others")
            assert len(_ids(fleet)) - left <= 1  # a run that was under way
            second.stop()
            until_leader(fleet, first.id)
            _until_more(fleet, 1)
            assert _alike(_rows(giver)[-1]) == _alike(_rows(giver)[0])


@pytest.mark.scenario("periodic jobs", "riverq's durable job goes on from the last run that a Go leader inserted")
def test_a_durable_job_beside_go(fleet: Place, river: Side, riverq_side: Side) -> None:
    def runs(side: Side) -> list[datetime]:
        known = len(_ids(fleet))
        _lead(side, [{**TICK, "durable": True}], known + 3, TICKS)
        return _targets(_rows(side))[known:]

    first, goes, last = runs(riverq_side), runs(river), runs(riverq_side)
    everything = [*first, *goes, *last]
    assert everything == sorted(set(everything))
    # Nothing that Go did is done again, and what fell due since then is made up for.
    assert {later - earlier for earlier, later in pairwise([goes[-1], *last])} == {SECOND}
