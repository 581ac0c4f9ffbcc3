from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.job_insert import job_insert_many
from riverq.query.job_rescue import (
    Refused,
    Rescue,
    Rescued,
    RescueOutcome,
    RunFence,
    StuckRow,
    job_get_runs,
    job_get_stuck,
    job_rescue_many,
)
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, DEFAULT_MASK, ME, Caller, Table, unique

NOW = CLAIMED_AT + timedelta(hours=2)
HORIZON = timedelta(hours=1)
RUNNING_BIT = 64


def running(table: Table, **columns: Any) -> RunFence:
    """The fence of a job that this client claimed two hours ago."""
    return RunFence(table.add_running(**columns).job_id, CLAIMED_US, ME)


def stuck(call: Caller, **options: Any) -> list[StuckRow]:
    return call(job_get_stuck, **{"horizon": HORIZON, "limit": 100, "now": NOW, **options})


def rescue(call: Caller, *rescues: Rescue) -> RescueOutcome:
    return call(job_rescue_many, rescues, now=NOW)


def again(run: RunFence, wait: timedelta = timedelta(seconds=7)) -> Rescue:
    return Rescue(run, JobState.RETRYABLE, scheduled_in=wait)


# -- looking


def test_jobs_past_the_horizon_are_found_with_all_that_judging_needs(call: Caller, table: Table) -> None:
    run = running(table, attempt=3, kind="mail", args={"a": 1}, errors=[{"error": "x"}])
    running(table, attempted_at=NOW - HORIZON)
    for state in set(JobState) - {JobState.RUNNING}:
        table.add(state=state.value, attempted_at=CLAIMED_AT, attempted_by=[ME])
    [found] = stuck(call)
    assert found.run == run
    assert found.running_for == timedelta(hours=2)
    assert (found.is_marked, found.was_rescued) == (False, False)
    assert (found.job.kind, found.job.attempt, found.job.args, found.job.attempted_at) == (
        "mail",
        3,
        {"a": 1},
        CLAIMED_AT,
    )
    assert len(found.job.encoded_errors) == 1


def test_horizon_is_the_databases_time(call: Caller, table: Table) -> None:
    old = running(table, attempted_at=table.now() - HORIZON - timedelta(minutes=1))
    running(table, attempted_at=table.now() - HORIZON + timedelta(minutes=1))
    assert [each.run.job_id for each in stuck(call, now=None)] == [old.job_id]


def test_pages_go_by_id(call: Caller, table: Table) -> None:
    ids = [running(table).job_id for _ in range(5)]
    assert [each.run.job_id for each in stuck(call, limit=2)] == ids[:2]
    assert [each.run.job_id for each in stuck(call, limit=2, after_id=ids[1])] == ids[2:4]
    assert stuck(call, after_id=ids[4]) == []


def test_marks_are_told(call: Caller, table: Table) -> None:
    running(table, metadata={"cancel_attempted_at": "2026-01-01T00:00:00Z"})
    running(table, metadata={"cancel_attempted_at": None, "river:rescue_count": "many"})
    assert [(each.is_marked, each.was_rescued) for each in stuck(call)] == [(True, False), (False, True)]


def test_parts_that_cannot_be_decoded_keep_nobody_from_being_found(call: Caller, table: Table) -> None:
    bad = running(table, metadata='["no object"]', errors=[{"at": "yesterday"}, "no object"], args="[1]")
    nobody = table.add(state="running", attempted_at=CLAIMED_AT)
    far = running(table, scheduled_at="infinity", attempted_at="-infinity")
    good = running(table)
    found = stuck(call)
    assert [each.run.job_id for each in found] == [bad.job_id, nobody, far.job_id, good.job_id]
    assert (found[0].job.metadata, found[0].job.errors) == ({}, ())
    assert found[1].run == RunFence(nobody, CLAIMED_US, None)


def test_runs_are_read_by_their_fence(call: Caller, table: Table) -> None:
    mine, later, done = running(table), running(table), table.add(state="completed")
    elsewhere = running(table)
    asked = [
        mine,
        later._replace(attempted_at_us=CLAIMED_US - 1),
        RunFence(done, CLAIMED_US, ME),
        elsewhere._replace(client_id="other"),
    ]
    assert [each.run for each in call(job_get_runs, asked, now=NOW)] == [mine]
    assert call(job_get_runs, [], now=NOW) == []


# -- writing


def test_a_rescue_counts_as_a_failed_attempt(call: Caller, table: Table) -> None:
    run = running(table, attempt=3, queue="mail", metadata={"other": 1}, errors=[{"error": "before"}])
    outcome = rescue(call, again(run))
    assert outcome == RescueOutcome([Rescued(run.job_id, "mail", JobState.RETRYABLE, ME)], [])
    row = table.get(run.job_id)
    assert (row["state"], row["attempt"], row["finalized_at"]) == ("retryable", 3, None)
    assert row["scheduled_at"] == NOW + timedelta(seconds=7)
    assert row["metadata"] == {"other": 1, "river:rescue_count": 1}
    assert row["errors"] == [
        {"error": "before"},
        {
            "at": NOW.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "attempt": 3,
            "error": "Stuck job rescued by JobRescuer",
            "trace": "",
        },
    ]
    assert row["attempted_by"] == [ME]


def test_the_time_of_the_error_is_utc_in_every_session(call: Caller, table: Table) -> None:
    run = running(table)

    def elsewhere(conn: sa.Connection, schema: str) -> None:
        conn.exec_driver_sql("SET LOCAL timezone = 'Asia/Kathmandu'")
        conn.exec_driver_sql("SET LOCAL datestyle = 'German'")
        job_rescue_many(conn, schema, [again(run)], now=NOW)

    call(elsewhere)
    at = table.get(run.job_id)["errors"][0]["at"]
    assert at.endswith("Z")
    assert datetime.fromisoformat(at) == NOW


@pytest.mark.parametrize("state", [JobState.DISCARDED, JobState.CANCELLED])
def test_final_rescues_keep_the_schedule(call: Caller, table: Table, state: JobState) -> None:
    run = running(table, scheduled_at=CLAIMED_AT)
    [rescued] = rescue(call, Rescue(run, state)).rescued
    row = table.get(run.job_id)
    assert rescued.state == state == row["state"]
    assert (row["finalized_at"], row["scheduled_at"]) == (NOW, CLAIMED_AT)
    assert len(row["errors"]) == 1


def test_absolute_times_are_written_as_they_are(call: Caller, table: Table) -> None:
    at = NOW + timedelta(days=3, microseconds=1)
    run = running(table)
    rescue(call, Rescue(run, JobState.RETRYABLE, scheduled_at=at))
    assert table.get(run.job_id)["scheduled_at"] == at


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1", 2),
        ("41", 42),
        ('"4"', 1),
        ("null", 1),
        ("{}", 1),
        ("1.5", 2.5),
        ("12345678901234567890", 12345678901234567891),
    ],
)
def test_rescues_are_counted(call: Caller, table: Table, before: str, after: float) -> None:
    run = running(table, metadata=f'{{"river:rescue_count": {before}}}')
    rescue(call, again(run))
    assert table.get(run.job_id)["metadata"] == {"river:rescue_count": after}


def test_metadata_that_is_no_object_is_left_alone(call: Caller, table: Table) -> None:
    runs = [running(table, metadata=text) for text in ('["a"]', "null", "7")]
    assert len(rescue(call, *map(again, runs)).rescued) == 3
    assert [table.get(run.job_id)["metadata"] for run in runs] == [["a"], None, 7]


@pytest.mark.parametrize("length", [99, 100, 150])
def test_the_newest_hundred_errors_are_kept(call: Caller, table: Table, length: int) -> None:
    run = running(table, errors=[{"attempt": number} for number in range(length)])
    rescue(call, again(run))
    errors = table.get(run.job_id)["errors"]
    assert len(errors) == 100
    assert errors[0] == {"attempt": length - 99}
    assert errors[-1]["error"] == "Stuck job rescued by JobRescuer"


def test_any_cancel_mark_wins_even_one_set_after_judging(call: Caller, table: Table) -> None:
    run = running(table, scheduled_at=CLAIMED_AT)
    table.sql("UPDATE {job} SET metadata = %s WHERE id = %s", json.dumps({"cancel_attempted_at": "x"}), run.job_id)
    [rescued] = rescue(call, Rescue(run, JobState.AVAILABLE, scheduled_in=timedelta(0))).rescued
    row = table.get(run.job_id)
    assert rescued.state == "cancelled" == row["state"]
    assert (row["finalized_at"], row["scheduled_at"]) == (NOW, CLAIMED_AT)


# -- races


def test_a_job_that_ended_meanwhile_is_left_alone(call: Caller, table: Table) -> None:
    done, taken, stolen, gone, kept = (running(table) for _ in range(5))
    table.sql("UPDATE {job} SET state = 'completed', finalized_at = now() WHERE id = %s", done.job_id)
    table.sql("UPDATE {job} SET attempted_at = attempted_at + interval '1us' WHERE id = %s", taken.job_id)
    table.sql("UPDATE {job} SET attempted_by = attempted_by || 'another'::text WHERE id = %s", stolen.job_id)
    table.sql("DELETE FROM {job} WHERE id = %s", gone.job_id)
    before = [table.get(each.job_id) for each in (done, taken, stolen)]
    outcome = rescue(call, *map(again, (done, taken, stolen, gone, kept)))
    assert [each.job_id for each in outcome.rescued] == [kept.job_id]
    assert outcome.refused == []
    assert [table.get(each.job_id) for each in (done, taken, stolen)] == before


def test_a_locked_job_is_passed_over(call: Caller, table: Table, other: sa.Connection) -> None:
    held, free = running(table), running(table)
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {held.job_id} FOR UPDATE')
    outcome = rescue(call, again(held), again(free))
    assert ([each.job_id for each in outcome.rescued], outcome.refused) == ([free.job_id], [])
    assert table.state(held.job_id) is JobState.RUNNING


def test_two_leaders_rescue_a_job_once(call: Caller, table: Table) -> None:
    run = running(table)
    first, second = rescue(call, again(run)), rescue(call, again(run))
    assert (len(first.rescued), second) == (1, RescueOutcome([], []))
    assert table.get(run.job_id)["metadata"] == {"river:rescue_count": 1}


def test_runs_of_nobody_are_rescued(call: Caller, table: Table) -> None:
    nobody: list[list[str] | None] = [None, []]
    ids = [table.add(state="running", attempted_at=CLAIMED_AT, attempted_by=by) for by in nobody]
    outcome = rescue(call, *(again(RunFence(job_id, CLAIMED_US, None)) for job_id in ids))
    assert [each.client_id for each in outcome.rescued] == [None, None]


def test_a_row_that_cannot_be_written_is_refused_alone(call: Caller, table: Table) -> None:
    """Its mask, which nobody should have made, lacks running: its twin has the key."""
    table.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    bad = running(table, unique_key=b"key", unique_states=DEFAULT_MASK & ~RUNNING_BIT)
    good = [running(table) for _ in range(6)]
    runs = [*good[:3], bad, *good[3:]]
    outcome = rescue(call, *(Rescue(run, JobState.AVAILABLE, timedelta(0)) for run in runs))
    assert sorted(each.job_id for each in outcome.rescued) == [each.job_id for each in good]
    assert outcome.refused == [Refused(bad.job_id, "23505")]
    assert table.state(bad.job_id) is JobState.RUNNING


def test_an_open_insert_of_the_same_key_holds_up_one_row_only(call: Caller, table: Table, other: sa.Connection) -> None:
    bad = running(table, unique_key=b"key", unique_states=DEFAULT_MASK & ~RUNNING_BIT)
    good = running(table, unique_key=b"other", unique_states=DEFAULT_MASK)
    job_insert_many(other, call.schema, [unique()])
    outcome = rescue(call, again(bad), again(good))
    assert ([each.job_id for each in outcome.rescued], outcome.refused) == (
        [good.job_id],
        [Refused(bad.job_id, "55P03")],
    )


def test_other_errors_are_raised(call: Caller, table: Table) -> None:
    run = running(table)

    def cancelled(conn: sa.Connection, schema: str) -> None:
        conn.exec_driver_sql("SET TRANSACTION READ ONLY")
        job_rescue_many(conn, schema, [again(run)], now=NOW)

    with pytest.raises(sa.exc.DBAPIError):
        call(cancelled)


def test_nothing_to_rescue_is_nothing_done(call: Caller) -> None:
    assert (rescue(call), stuck(call)) == (RescueOutcome([], []), [])
