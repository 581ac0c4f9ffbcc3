"""Durable periodic jobs: one leader inserts a run, and what nobody inserted while nobody led is made up for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from riverq.cron import cron
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult
from riverq.periodic import PeriodicJob
from riverq.query.periodic_job import Advance, periodic_job_advance
from riverq.schedule import every, never
from tests.maintenance.periodic import BEGAN, HOUR, MINUTE, SECOND, Setup, job, setup, table

__all__ = ["setup", "table"]

MINUTELY = cron("* * * * *")


def add_run(setup: Setup, seconds: float, **columns: object) -> None:
    """A job that another leader inserted for the run at this second."""
    at = BEGAN + seconds * SECOND
    metadata = {"periodic": True, "river:periodic_job_id": "report"}
    setup.table.add(**{"kind": "other", "scheduled_at": at, "created_at": at, "metadata": metadata, **columns})


async def caught_up(setup: Setup, schedule: object = MINUTELY, *, until: float, **options: object) -> list[float]:
    """The runs that a leader inserts which begins at this second, until it sleeps."""
    await setup.clock.advance(until)
    durable = job("k1", schedule, id="report", durable=True, **options)  # type: ignore[arg-type]  # a schedule
    await setup.started(setup.leader(durable))
    await setup.clock.until_sleeping()
    return setup.seconds("k1")


async def test_a_run_moves_the_row_on(setup: Setup, adapter: str) -> None:
    leader = await setup.started(setup.leader(job("k1", id="report", durable=True), adapter=adapter))
    await setup.clock.until_sleeping()
    assert setup.stored() == {"report": 1}
    await setup.pass_time(leader, 1)
    assert setup.stored() == {"report": 2}
    assert setup.seconds() == [1]


async def test_runs_missed_while_nobody_led_are_made_up_for(setup: Setup) -> None:
    setup.store("report", 60)
    assert await caught_up(setup, until=200) == [60, 120, 180]
    assert setup.stored() == {"report": 240}


async def test_what_another_language_inserted_is_not_inserted_again(setup: Setup) -> None:
    setup.store("report", 60)
    add_run(setup, 60)
    add_run(setup, 120, state="completed")
    assert await caught_up(setup, until=200) == [180]
    assert setup.stored() == {"report": 240}


async def test_nothing_is_made_up_for_where_another_language_led_to_the_end(setup: Setup) -> None:
    setup.store("report", 60)
    add_run(setup, 180)
    assert await caught_up(setup, until=200) == []
    assert setup.stored() == {"report": 60}  # it moves with the next run


async def test_an_older_run_that_is_retried_hides_no_missed_one(setup: Setup) -> None:
    setup.store("report", 60)
    add_run(setup, 90, created_at=BEGAN, state="retryable")
    assert await caught_up(setup, until=100) == [60]


async def test_missed_runs_come_before_the_start(setup: Setup) -> None:
    """The start of a term is later than they are, and would look as if they had been inserted."""
    setup.store("report", 60)
    await setup.clock.advance(130)
    leader = setup.leader(job("k1", MINUTELY, id="report", durable=True, run_on_start=True))
    await setup.started(leader)
    await setup.clock.until_sleeping()
    assert [await leader.inserted.wait() for _ in range(3)] == [
        [BEGAN + 60 * SECOND],
        [BEGAN + 120 * SECOND],
        [BEGAN + 130 * SECOND],
    ]


async def test_a_schedule_that_comes_earlier_takes_effect_at_once(setup: Setup) -> None:
    setup.store("report", 3600)
    await caught_up(setup, until=30)
    leader = setup.enqueuers[0]
    await setup.clock.until_sleeping()
    setup.clock.jumped = 30 * SECOND
    await setup.pass_time(leader, 10)
    assert setup.seconds() == [60]
    assert setup.stored() == {"report": 120}


async def test_an_interval_goes_on_from_what_is_stored(setup: Setup) -> None:
    setup.store("report", 15)
    await caught_up(setup, every(MINUTE), until=10)
    await setup.pass_time(setup.enqueuers[0], 5)
    assert setup.seconds() == [15]
    assert setup.stored() == {"report": 75}


async def test_a_job_that_is_switched_off_is_not_made_up_for(setup: Setup) -> None:
    setup.store("report", 60)
    assert await caught_up(setup, never(), until=100) == []
    assert setup.stored() == {"report": 60}


async def test_the_row_goes_with_the_last_run(setup: Setup) -> None:
    class Once:
        def next(self, after: object, /) -> object:
            return BEGAN + MINUTE if after < BEGAN + MINUTE else None  # type: ignore[operator]  # a datetime

    setup.store("report", 60)
    assert await caught_up(setup, Once(), until=100) == [60]
    assert setup.stored() == {}


async def test_a_run_without_args_moves_the_row_too(setup: Setup) -> None:
    leader = await setup.started(setup.leader(PeriodicJob(every(SECOND), lambda: None, id="report", durable=True)))
    await setup.pass_time(leader, 1)
    assert setup.stored() == {"report": 2}
    assert setup.rows() == []


async def test_middleware_that_inserts_nothing_moves_the_row_too(setup: Setup) -> None:
    class Dropping:
        async def insert(
            self, params: Sequence[InsertParams], call_next: Callable[..., Awaitable[list[InsertResult]]]
        ) -> list[InsertResult]:
            return []

    leader = setup.leader(job("k1", id="report", durable=True), middleware=[Dropping()])
    await setup.started(leader)
    await setup.pass_time(leader, 1)
    assert setup.stored() == {"report": 2}
    assert setup.rows() == []


# -- two leaders, and failures


@pytest.mark.parametrize("adapters", [("psycopg_async", "asyncpg"), ("psycopg", "pg8000")])
async def test_two_leaders_insert_each_run_once(setup: Setup, adapters: tuple[str, str]) -> None:
    jobs = [job("k1", id="report", durable=True), job("k2", id="cleanup", durable=True)]
    leaders = [setup.leader(*jobs[::step], adapter=name) for name, step in zip(adapters, (1, -1), strict=True)]
    for leader in leaders:
        await setup.started(leader)
    for _ in range(20):
        await setup.clock.until_sleeping(2)
        await setup.clock.advance(1)
        for leader in leaders:
            await leader.tried.wait()
    await setup.clock.until_sleeping(2)
    for leader in leaders:
        await leader.stop()
    assert setup.seconds("k1") == setup.seconds("k2") == [float(second) for second in range(1, 21)]


async def test_a_run_that_another_leader_takes_is_left_to_it(
    setup: Setup, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one is in the middle of its transaction: this one waits, loses, reads the row again and goes on."""
    caplog.set_level("INFO", "riverq")
    leader = setup.leader(job("k1", every(2 * SECOND), id="report", durable=True), job("k2", every(2 * SECOND)))
    await setup.started(leader)
    await setup.clock.until_sleeping()
    with engine.connect() as other:
        step = Advance("report", BEGAN + 2 * SECOND, BEGAN + 3 * SECOND)
        assert periodic_job_advance(other, setup.schema, [step]) == set()
        await setup.clock.advance(2)
        await setup.blocked_by(other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        assert setup.rows() == []
        other.commit()
    await leader.inserted.wait()
    assert (setup.seconds("k1"), setup.seconds("k2")) == ([], [2])
    assert "Left a run of 'report' to another leader" in caplog.text
    await setup.pass_time(leader, 1)
    assert setup.seconds("k1") == [3]
    assert setup.stored() == {"report": 5}


@pytest.mark.parametrize("ahead", [1, 8])
async def test_a_leader_whose_clock_is_behind_repeats_no_run(setup: Setup, ahead: int) -> None:
    """The one before it ran the job by a clock that was ahead; by this one's the run is still to come."""
    setup.store("report", 120)
    add_run(setup, 60, created_at=BEGAN + (60 - ahead) * SECOND)
    assert await caught_up(setup, until=60.5 - ahead) == []
    leader = setup.enqueuers[0]
    for _ in range(8):
        await setup.pass_time(leader, 10)
    assert setup.seconds("k1") == [120]
    assert setup.stored() == {"report": 180}


async def test_a_failed_insert_leaves_the_row(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", id="report", durable=True)))
    await setup.clock.until_sleeping()
    setup.table.sql("ALTER TABLE {job} RENAME TO kept")
    try:
        await setup.pass_time(leader, 1)
        await leader.failed.wait()
        assert setup.stored() == {"report": 1}
    finally:
        setup.table.sql('ALTER TABLE {schema}."kept" RENAME TO river_job')
    await setup.pass_time(leader, 2)
    assert setup.seconds()[:1] == [1]


async def test_a_lost_answer_is_told_by_the_row(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", every(2 * SECOND), id="report", durable=True)))
    await setup.clock.until_sleeping()
    setup.db.after = 1
    await setup.pass_time(leader, 2)
    await leader.failed.wait()
    assert setup.stored() == {"report": 4}
    await setup.pass_time(leader, 1.5)
    await setup.pass_time(leader, 1)
    assert setup.seconds() == [2, 4]


async def test_planning_waits_for_the_database_and_holds_up_nobody(setup: Setup) -> None:
    leader = setup.leader(job("k1", id="report", durable=True), job("k2"))
    setup.db.before = 1
    await setup.started(leader)
    await leader.failed.wait()
    await setup.pass_time(leader, 1.2)
    await setup.pass_time(leader, 1.2)
    assert setup.seconds("k2")[0] == 1
    assert setup.seconds("k1")[0] > 1


async def test_a_table_that_is_gone_holds_up_no_other_job(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.table.sql("ALTER TABLE {schema}.riverq_periodic_job RENAME TO hidden")
    try:
        leader = await setup.started(setup.leader(job("k1", id="report", durable=True), job("k2")))
        await setup.pass_time(leader, 1)
        assert "Could not read the row of 'report', trying again in" in caplog.text
        assert setup.seconds() == [1]
    finally:
        setup.table.sql("ALTER TABLE {schema}.hidden RENAME TO riverq_periodic_job")
    while not setup.rows("k1"):
        await setup.pass_time(leader, 10)


# -- the table


async def test_without_the_table_they_are_like_others_and_that_is_said(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    leader = setup.leader(job("k1", id="report", durable=True), has_tables=False)
    await setup.started(leader)
    assert "without which these are like others: report (run: riverq migrate-up)" in caplog.text
    await setup.pass_time(leader, 1)
    assert setup.seconds() == [1]
    assert setup.stored() == {}


async def test_rows_of_jobs_that_nobody_registers_go_after_a_day(setup: Setup) -> None:
    setup.store("old", 60)
    setup.store("recent", 60)
    setup.store("report", 3600)
    table = f'"{setup.schema}".riverq_periodic_job'
    setup.table.sql(f"UPDATE {table} SET updated_at = now() - interval '25 hours' WHERE id <> 'recent'")
    await caught_up(setup, every(HOUR), until=0)
    assert set(setup.stored()) == {"recent", "report"}
    setup.table.sql(f"UPDATE {table} SET updated_at = now() - interval '25 hours'")
    leader = setup.enqueuers[0]
    await setup.clock.until_sleeping()
    setup.clock.jumped = timedelta(0)
    for _ in range(61):
        await setup.pass_time(leader, 10)
    assert set(setup.stored()) == {"report"}
