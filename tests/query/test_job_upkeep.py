from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.job_insert import job_insert_many
from riverq.query.job_upkeep import Scheduled, UniqueScheduled, job_schedule_plain, job_schedule_unique
from tests.query.arrange import CLAIMED_AT, DEFAULT_MASK, Caller, Table, unique

AVAILABLE, CANCELLED, COMPLETED, DISCARDED, PENDING, RETRYABLE, RUNNING, SCHEDULED = (1 << n for n in range(8))
NO_RETRYABLE = DEFAULT_MASK & ~RETRYABLE
POISON = NO_RETRYABLE | DISCARDED
LOOK_AHEAD = timedelta(seconds=5)
NOW = CLAIMED_AT


def plain(call: Caller, limit: int = 100) -> list[Scheduled]:
    return call(job_schedule_plain, limit=limit, look_ahead=LOOK_AHEAD, now=NOW)


def second_pass(call: Caller, **options: Any) -> UniqueScheduled:
    return call(job_schedule_unique, look_ahead=LOOK_AHEAD, now=NOW, **options)


def due(table: Table, key: bytes | None = b"key", mask: int = NO_RETRYABLE, **columns: Any) -> int:
    """A retryable row whose time has come, outside its own mask unless told otherwise."""
    given = {"state": "retryable", "scheduled_at": NOW - timedelta(minutes=1), **columns}
    if key is not None:
        given |= {"unique_key": key, "unique_states": mask}
    return table.add(**given)


# -- the first pass


def test_due_rows_become_available_in_order_and_say_when(call: Caller, table: Table) -> None:
    soon = due(table, None, state="scheduled", scheduled_at=NOW + LOOK_AHEAD, queue="q2")
    now = due(table, None, scheduled_at=NOW)
    due(table, None, scheduled_at=NOW + LOOK_AHEAD + timedelta(microseconds=1))
    for state in set(JobState) - {JobState.RETRYABLE, JobState.SCHEDULED}:
        due(table, None, state=state.value)

    found = sorted(plain(call))
    assert found == [
        Scheduled(soon, "q2", 5_000_000),
        Scheduled(now, "default", 0),
    ]
    assert [each.due_now for each in found] == [False, True]
    assert table.state(soon) is table.state(now) is JobState.AVAILABLE
    assert table.get(soon)["scheduled_at"] == NOW + LOOK_AHEAD


def test_the_limit_takes_the_first_of_the_claims_order(call: Caller, table: Table) -> None:
    low = due(table, None, priority=2)
    late = due(table, None, scheduled_at=NOW)
    early = due(table, None)
    assert [[each.job_id for each in plain(call, limit=1)] for _ in range(4)] == [[early], [late], [low], []]


@pytest.mark.parametrize("mask", [DEFAULT_MASK, RETRYABLE, NO_RETRYABLE & ~AVAILABLE])
def test_unique_rows_that_cannot_conflict_are_plain(call: Caller, table: Table, mask: int) -> None:
    job_id = due(table, mask=mask)
    assert [each.job_id for each in plain(call)] == [job_id]
    assert second_pass(call) == UniqueScheduled([], [], [], 0)


def test_rows_that_come_into_the_index_are_left_to_the_second_pass(call: Caller, table: Table) -> None:
    job_id = due(table)
    assert plain(call) == []
    done = second_pass(call)
    assert ([each.job_id for each in done.scheduled], done.examined) == ([job_id], 1)
    assert table.state(job_id) is JobState.AVAILABLE


def test_a_locked_due_row_does_not_stall_the_others(call: Caller, table: Table, other: sa.Connection) -> None:
    held, free = due(table, None), due(table, None)
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {held} FOR UPDATE')
    assert [each.job_id for each in plain(call)] == [free]


def test_an_uncommitted_insert_of_a_key_does_not_stop_the_first_pass(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    waits, free = due(table), due(table, None)
    job_insert_many(other, call.schema, [unique()])
    assert [each.job_id for each in plain(call)] == [free]
    assert table.state(waits) is JobState.RETRYABLE


# -- the second pass


def test_poison_rows_are_discarded_and_leave_the_index(call: Caller, table: Table) -> None:
    """The mask has discarded and lacks retryable, and the key is taken: no state in the mask is free."""
    holder = table.add(unique_key=b"key", unique_states=DEFAULT_MASK)
    poison, free = due(table, mask=POISON), due(table, b"free")
    done = second_pass(call)
    assert ([each.job_id for each in done.scheduled], done.discarded) == ([free], [poison])
    row = table.get(poison)
    assert (row["state"], row["finalized_at"]) == ("discarded", NOW)
    assert row["metadata"] == {"unique_key_conflict": "scheduler_discarded"}
    assert (row["unique_key"], row["mask"]) == (b"key", None)
    assert table.state(holder) is JobState.AVAILABLE


def test_a_loser_that_stays_outside_keeps_its_mask(call: Caller, table: Table) -> None:
    table.add(state="running", unique_key=b"key", unique_states=DEFAULT_MASK)
    loser = due(table)
    assert second_pass(call).discarded == [loser]
    assert table.get(loser)["mask"] == f"{NO_RETRYABLE:08b}"


def test_of_a_scheduled_and_a_retryable_row_one_runs(call: Caller, table: Table) -> None:
    scheduled, retryable = due(table, state="scheduled"), due(table, scheduled_at=NOW - timedelta(hours=1))
    assert [each.job_id for each in plain(call)] == [scheduled]
    assert second_pass(call).discarded == [retryable]


def test_the_first_row_of_a_key_wins(call: Caller, table: Table) -> None:
    low = due(table, priority=2, scheduled_at=NOW - timedelta(hours=9))
    late = due(table, scheduled_at=NOW)
    first = due(table)
    done = second_pass(call)
    assert [each.job_id for each in done.scheduled] == [first]
    assert sorted(done.discarded) == [low, late]
    assert done.deferred == []


def test_a_key_whose_first_row_is_locked_waits(call: Caller, table: Table, other: sa.Connection) -> None:
    first = due(table)
    second = due(table, scheduled_at=NOW)
    free = due(table, b"free")
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {first} FOR UPDATE')
    done = second_pass(call)
    assert [each.job_id for each in done.scheduled] == [free]
    assert (done.discarded, done.deferred) == ([], [first, second])
    assert second_pass(call, passed_over=done.deferred).examined == 0
    other.rollback()
    done = second_pass(call)
    assert ([each.job_id for each in done.scheduled], done.discarded) == ([first], [second])


def test_a_locked_later_row_is_not_touched(call: Caller, table: Table, other: sa.Connection) -> None:
    first = due(table)
    second = due(table, scheduled_at=NOW)
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {second} FOR UPDATE')
    done = second_pass(call)
    assert ([each.job_id for each in done.scheduled], done.deferred) == ([first], [second])
    other.rollback()
    assert second_pass(call).discarded == [second]


def test_a_key_that_an_open_insert_holds_waits_and_the_others_do_not(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    waits = due(table)
    rest = due(table, scheduled_at=NOW)
    free = [due(table, bytes([number])) for number in range(3)]
    job_insert_many(other, call.schema, [unique()])
    done = second_pass(call)
    assert sorted(each.job_id for each in done.scheduled) == free
    assert (done.discarded, sorted(done.deferred)) == ([], [waits, rest])
    assert table.state(waits) is JobState.RETRYABLE
    other.commit()
    assert sorted(second_pass(call).discarded) == [waits, rest]


def test_a_key_taken_between_looking_and_writing_is_lost(
    call: Caller, table: Table, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody inserts and commits after the rows were locked: the update itself meets 23505."""
    from riverq.query import job_upkeep

    loser, free = due(table, mask=POISON), due(table, b"free")
    original = job_upkeep._schedule_firsts

    def insert_first(*args: Any) -> Any:
        with engine.begin() as conn:
            job_insert_many(conn, call.schema, [unique()])
        return original(*args)

    monkeypatch.setattr(job_upkeep, "_schedule_firsts", insert_first)
    done = second_pass(call)
    assert ([each.job_id for each in done.scheduled], done.discarded) == ([free], [loser])
    assert table.get(loser)["mask"] is None


def test_batches_are_small_and_passed_over_keys_do_not_fill_them(
    call: Caller, table: Table, other: sa.Connection
) -> None:
    held = [due(table, b"held" + bytes([number]), scheduled_at=NOW - timedelta(hours=1)) for number in range(3)]
    free = due(table)
    ids = ",".join(map(str, held))
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id IN ({ids}) FOR UPDATE')
    done = second_pass(call, limit=3)
    assert (done.deferred, done.examined) == (held, 3)
    done = second_pass(call, limit=3, passed_over=done.deferred)
    assert [each.job_id for each in done.scheduled] == [free]


def test_nothing_due_is_nothing_done(call: Caller, table: Table) -> None:
    due(table, scheduled_at=NOW + timedelta(hours=1))
    assert (plain(call), second_pass(call)) == ([], UniqueScheduled([], [], [], 0))
