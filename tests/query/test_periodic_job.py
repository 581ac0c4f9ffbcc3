from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from riverq.query.periodic_job import (
    SKEW,
    Advance,
    PeriodicRow,
    StoredRun,
    limit_transaction,
    periodic_job_advance,
    periodic_job_create,
    periodic_job_done,
    periodic_job_keep,
    periodic_job_list,
    periodic_job_read,
)
from riverq.query.statement import sqlstate
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import Caller, Table

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)


def create(call: Caller, **runs: object) -> None:
    call(periodic_job_create, runs, now=NOW)  # type: ignore[arg-type]  # the times are datetimes


def run_of(job_id: str, **columns: object) -> dict[str, object]:
    """The columns of a job that some leader inserted for `job_id`."""
    return {"metadata": {"periodic": True, "river:periodic_job_id": job_id}, "created_at": NOW, **columns}


def test_rows_are_made_once_and_listed_to_the_microsecond(call: Caller) -> None:
    call(periodic_job_create, {})
    create(call, report=NOW + MICROSECOND, cleanup=NOW)
    create(call, report=NOW + HOUR)
    assert call(periodic_job_list) == [
        PeriodicRow("cleanup", NOW, NOW),
        PeriodicRow("report", NOW + MICROSECOND, NOW),
    ]


def test_the_databases_clock_is_used_by_default(call: Caller, table: Table) -> None:
    before = table.now()
    call(periodic_job_create, {"report": NOW})
    assert call(periodic_job_advance, [Advance("report", NOW, NOW + HOUR)]) == set()
    [row] = call(periodic_job_list)
    assert before <= row.updated_at <= table.now()


def test_a_row_moves_only_from_the_time_that_it_holds(call: Caller) -> None:
    create(call, a1=NOW, b1=NOW, c1=NOW)
    steps = [Advance("c1", NOW, NOW + HOUR), Advance("a1", NOW + MICROSECOND, NOW + HOUR), Advance("gone", NOW, NOW)]
    assert call(periodic_job_advance, steps, now=NOW + SECOND) == {"a1", "gone"}
    assert call(periodic_job_list) == [
        PeriodicRow("a1", NOW, NOW),
        PeriodicRow("b1", NOW, NOW),
        PeriodicRow("c1", NOW + HOUR, NOW + SECOND),
    ]


def test_a_row_without_a_following_run_goes(call: Caller) -> None:
    create(call, a1=NOW, b1=NOW)
    assert call(periodic_job_advance, [Advance("a1", NOW, None), Advance("b1", NOW + SECOND, None)]) == {"b1"}
    assert [row.id for row in call(periodic_job_list)] == ["b1"]


def test_of_two_leaders_one_moves_the_row_and_the_other_waits_and_loses(call: Caller, engine: sa.Engine) -> None:
    create(call, report=NOW)
    step = [Advance("report", NOW, NOW + HOUR)]
    with engine.connect() as other:
        assert periodic_job_advance(other, call.schema, step) == set()

        def impatiently(conn: sa.Connection, schema: str) -> set[str]:
            conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            return periodic_job_advance(conn, schema, step)

        with pytest.raises(sa.exc.DBAPIError) as caught:
            call(impatiently)
        assert sqlstate(caught.value) == "55P03"
        other.commit()
    assert call(impatiently) == {"report"}


def test_a_leader_that_waited_sees_what_the_other_has_made_of_the_row(
    call: Caller, table: Table, engine: sa.Engine
) -> None:
    create(call, report=NOW)
    step = [Advance("report", NOW, NOW + HOUR)]
    with engine.connect() as other, ThreadPoolExecutor(1) as threads:
        assert periodic_job_advance(other, call.schema, step) == set()
        pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        waiting = threads.submit(call, periodic_job_advance, step)
        while not table.sql("SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", pid):
            assert not waiting.done()
        other.commit()
        assert waiting.result() == {"report"}


def test_a_transaction_that_is_rolled_back_leaves_the_run_to_the_other(call: Caller, engine: sa.Engine) -> None:
    create(call, report=NOW)
    step = [Advance("report", NOW, NOW + HOUR)]
    with engine.connect() as other:
        assert periodic_job_advance(other, call.schema, step) == set()
    assert call(periodic_job_advance, step) == set()


def test_reads_what_is_stored_and_what_others_inserted_since(call: Caller, table: Table) -> None:
    create(call, report=NOW, cleanup=NOW, quiet=NOW)
    table.add(**run_of("report", scheduled_at=NOW))
    table.add(**run_of("report", scheduled_at=NOW + HOUR, created_at=NOW + HOUR, state="completed"))
    table.add(**run_of("cleanup", scheduled_at=NOW - MICROSECOND))
    table.add(scheduled_at=NOW + HOUR)
    assert call(periodic_job_read, ["report", "cleanup", "missing"]) == {
        "report": StoredRun(NOW, NOW + HOUR),
        "cleanup": StoredRun(NOW, None),
    }


def test_a_job_counts_only_up_to_the_time_when_it_was_made(call: Caller, table: Table) -> None:
    """A retry moves scheduled_at: an old run that is retried later is no sign of a newer one."""
    create(call, report=NOW)
    table.add(**run_of("report", scheduled_at=NOW + HOUR, created_at=NOW - SKEW - MICROSECOND, state="retryable"))
    assert call(periodic_job_read, ["report"]) == {"report": StoredRun(NOW, None)}
    table.add(**run_of("report", scheduled_at=NOW + HOUR, created_at=NOW + SECOND, state="retryable"))
    assert call(periodic_job_read, ["report"]) == {"report": StoredRun(NOW, NOW + SECOND + SKEW)}


def test_says_which_runs_are_done_without_the_table(call: Caller, table: Table) -> None:
    table.add(**run_of("report", scheduled_at=NOW))
    runs = {"report": NOW, "later": NOW}
    assert call(periodic_job_done, runs) == {"report": NOW}
    assert call(periodic_job_done, {"report": NOW + MICROSECOND}) == {}


def test_rows_that_no_leader_knows_go_after_a_while(call: Caller) -> None:
    create(call, known=NOW, old=NOW, older=NOW)
    assert call(periodic_job_keep, ["known"], HOUR, now=NOW + HOUR) == []
    assert call(periodic_job_keep, ["known", "old"], HOUR, now=NOW + HOUR + MICROSECOND) == ["older"]
    assert call(periodic_job_list) == [
        PeriodicRow("known", NOW, NOW + HOUR + MICROSECOND),
        PeriodicRow("old", NOW, NOW + HOUR + MICROSECOND),
    ]


def test_keeping_waits_for_nobody(call: Caller, engine: sa.Engine) -> None:
    create(call, known=NOW, old=NOW)
    with engine.connect() as other:
        steps = [Advance("known", NOW, NOW + HOUR), Advance("old", NOW, NOW + HOUR)]
        assert periodic_job_advance(other, call.schema, steps, now=NOW) == set()
        assert call(periodic_job_keep, ["known"], HOUR, now=NOW + 2 * HOUR) == []
        other.commit()
    assert call(periodic_job_keep, ["known"], HOUR, now=NOW + 2 * HOUR) == ["old"]


def test_the_limits_end_with_the_transaction(call: Caller) -> None:
    def shown(conn: sa.Connection, schema: str, *, limited: bool) -> list[str]:
        if limited:
            limit_transaction(conn, schema, limit=timedelta(seconds=20), lock_limit=timedelta(milliseconds=1500))
        names = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
        return [str(conn.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in names]

    assert call(shown, limited=True) == ["20s", "20s", "1500ms"]
    assert call(shown, limited=False)[:2] == ["0", "0"]
