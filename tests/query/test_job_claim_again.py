"""Rows that a client claimed, claimed again by when that was: exactly those, and as the claim returned them."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.client_registry import client_register
from riverq.query.job_fetch import Claimant, ClaimedRow, ClaimGap, job_claim_again, job_lost
from riverq.query.job_set_state import job_complete_many
from riverq.state import Run
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, DEFAULT_MASK, ME, Caller, Table

MINE, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))
CLAIMANT = Claimant(ME, MINE, timedelta(seconds=30))
FAR = timedelta(days=99_999)
LATER = CLAIMED_AT + timedelta(days=999)
ERROR = {"at": "2026-01-01T00:00:00Z", "attempt": 1, "error": "x", "trace": ""}


def lost(call: Caller, **options: Any) -> list[Run]:
    gap: dict[str, Any] = {"after_us": CLAIMED_US - 1, "before_us": None, "from_ago": FAR, "to_ago": -FAR}
    gap |= {name: options.pop(name) for name in gap if name in options}
    return call(job_lost, CLAIMANT, ClaimGap(**gap), **{"queue": "default", "limit": 100, **options})


def lost_ids(call: Caller, **options: Any) -> list[int]:
    return [run.job_id for run in lost(call, **options)]


def again(call: Caller, runs: list[Run], client_id: str = ME, **options: Any) -> list[ClaimedRow]:
    return call(job_claim_again, client_id=client_id, runs=runs, **options)


def test_the_rows_are_those_of_the_claim(call: Caller, table: Table) -> None:
    rich: dict[str, Any] = {"tags": ["tag", 'a"b,c'], "errors": [ERROR], "attempt": 3, "attempted_by": ["other"]}
    table.add(args={"a": "é", "n": 1.5}, metadata={"m": 1}, priority=3, **rich)
    table.add(unique_key=b"\x00key", unique_states=DEFAULT_MASK, priority=2)
    table.add()
    claimed = call.claim(now=LATER)
    assert len(claimed) == 3
    runs = lost(call)
    assert runs == [Run(row.id, row.attempted_at_us) for row in claimed]
    tick = timedelta(microseconds=1)
    expected = [row._replace(attempted_at_us=row.attempted_at_us + 1) for row in claimed]
    assert again(call, runs[::-1], now=LATER + tick) == expected


@pytest.mark.parametrize(
    "setting", ["datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'", "timezone = '-13:17'"]
)
def test_settings_of_the_session_change_nothing(call: Caller, table: Table, setting: str) -> None:
    table.add()
    [claimed] = call.claim(now=LATER)
    gap = ClaimGap(claimed.attempted_at_us - 1, claimed.attempted_at_us + 1, FAR, -FAR)

    def set_and_claim(conn: sa.Connection, schema: str) -> list[ClaimedRow]:
        conn.exec_driver_sql(f"SET LOCAL {setting}")
        conn.exec_driver_sql("SET LOCAL search_path = pg_temp")
        runs = job_lost(conn, schema, CLAIMANT, gap, queue="default", limit=1)
        return job_claim_again(conn, schema, client_id=ME, runs=runs, now=LATER)

    assert call(set_and_claim) == [claimed]


def test_only_its_own_running_rows_of_the_queue(call: Caller, table: Table) -> None:
    mine = table.add_running().job_id
    later_mine = table.add_running(attempted_by=["other", ME]).job_id
    table.add_running(attempted_by=["other"])
    table.add_running(attempted_by=[ME, "other"])
    table.add_running(attempted_by=None)
    table.add_running(queue="other")
    table.add_running(metadata={"cancel_attempted_at": "2026-01-01T00:00:00Z"})
    for state in JobState:
        if state is not JobState.RUNNING:
            table.add(state=state.value, attempted_at=CLAIMED_AT, attempted_by=[ME])
    assert lost_ids(call) == [mine, later_mine]


def test_only_between_the_two_claims(call: Caller, table: Table) -> None:
    mine = table.add_running().job_id
    assert lost_ids(call, after_us=CLAIMED_US) == []
    assert lost_ids(call, before_us=CLAIMED_US) == []
    second = timedelta(seconds=1)
    now = CLAIMED_AT + second
    tick = timedelta(microseconds=1)
    assert lost_ids(call, now=now, from_ago=second - tick) == []
    assert lost_ids(call, now=now, to_ago=second + tick) == []
    assert lost_ids(call, now=now, before_us=CLAIMED_US + 1, from_ago=second, to_ago=second) == [mine]


def test_in_the_order_of_the_claim_and_no_more_than_asked_for(call: Caller, table: Table) -> None:
    low = table.add_running(priority=2).job_id
    late = table.add_running(scheduled_at=CLAIMED_AT).job_id
    early = table.add_running(scheduled_at=CLAIMED_AT - timedelta(seconds=1)).job_id
    assert lost_ids(call, limit=2) == [early, late]
    assert lost_ids(call) == [early, late, low]


def test_only_the_time_is_changed(call: Caller, table: Table) -> None:
    before = table.get(table.add_running(attempt=3, attempted_by=["other", ME]).job_id)
    runs = lost(call)
    assert table.get(before["id"]) == before
    assert [row.id for row in again(call, runs, now=LATER)] == [before["id"]]
    assert table.get(before["id"]) == {**before, "attempted_at": LATER}


def test_locked_rows_are_passed_over(call: Caller, table: Table, engine: sa.Engine) -> None:
    locked, free = table.add_running(), table.add_running()
    with engine.connect() as other:
        other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {locked.job_id} FOR UPDATE')
        assert [row.id for row in again(call, [locked, free])] == [free.job_id]


def test_a_statement_that_comes_late_takes_nothing_that_is_at_work(call: Caller, table: Table) -> None:
    """What it read is over, at work as another run, cancelled meanwhile, or somebody else's."""
    stale = [table.add_running() for _ in range(5)]
    done, taken, cancelled, stolen, newer = stale
    call(job_complete_many, client_id=ME, runs=[done])
    [row] = again(call, [taken])
    table.sql("UPDATE {job} SET metadata = %s WHERE id = %s", '{"cancel_attempted_at": "x"}', cancelled.job_id)
    table.sql("UPDATE {job} SET attempted_by = %s WHERE id = %s", ["other"], stolen.job_id)
    table.sql("UPDATE {job} SET attempted_at = now() WHERE id = %s", newer.job_id)
    assert again(call, stale) == []
    assert call(job_complete_many, client_id=ME, runs=[Run(row.id, row.attempted_at_us)]) == [taken.job_id]


@pytest.mark.parametrize(
    ("client_id", "incarnation", "seen_ago", "is_left"),
    [
        (ME, MINE, timedelta(0), False),
        ("another", OTHER, timedelta(0), False),
        (ME, OTHER, CLAIMANT.grace, True),
        (ME, OTHER, CLAIMANT.grace + timedelta(microseconds=2), False),
        (ME, OTHER, timedelta(days=-1), True),
        (ME, OTHER, timedelta(days=1), False),
    ],
)
def test_left_where_another_incarnation_of_the_id_may_have_lived(
    call: Caller, table: Table, client_id: str, incarnation: str, seen_ago: timedelta, *, is_left: bool
) -> None:
    mine = table.add_running().job_id
    call(client_register, client_id=client_id, incarnation=incarnation, now=CLAIMED_AT - seen_ago)
    assert lost_ids(call) == ([] if is_left else [mine])


def test_a_twin_of_long_ago_does_not_matter_in_a_long_gap(call: Caller, table: Table) -> None:
    """Nothing was claimed for hours; an earlier process with this id ended badly meanwhile."""
    mine = table.add_running().job_id
    call(client_register, client_id=ME, incarnation=OTHER, now=CLAIMED_AT - timedelta(hours=1))
    second = timedelta(seconds=1)
    gap = {"after_us": CLAIMED_US - 10**11, "from_ago": second, "to_ago": second, "now": CLAIMED_AT + second}
    assert lost_ids(call, **gap) == [mine]
