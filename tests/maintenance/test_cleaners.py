"""The job cleaner and the queue cleaner on real rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from riverq.config import KEEP, Config
from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import DatabaseError
from riverq.job import JobState
from riverq.maintenance.base import MaintenanceTiming
from riverq.maintenance.job_cleaner import JobCleaner, Retention
from riverq.maintenance.queue_cleaner import QueueCleaner
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.maintenance.test_base import only_statements_hurry
from tests.query.arrange import Table
from tests.service.stress import stress_start_stop

__all__ = ["only_statements_hurry"]

DAY = timedelta(hours=24)
FINISHED = ("cancelled", "completed", "discarded")


class Setup:
    """Cleaners under a clock that stands still; the database's goes on."""

    def __init__(self, engines: EngineMaker, schema: str, table: Table) -> None:
        self.engines = engines
        self.schema = schema
        self.table = table
        self.clock = FakeClock()
        self.ctx = ServiceContext(client_id="test", clock=self.clock, rng=random.Random(0))
        self.databases: list[Database] = []

    def database(self, adapter: str) -> Database:
        engine = self.engines(adapter)
        self.databases.append(Database(engine, load_driver(engine), schema=self.schema, owns_engine=False))
        return self.databases[-1]

    def cleaner(
        self, adapter: str = "psycopg_async", retention: Retention | None = None, **timing: object
    ) -> JobCleaner:
        given = MaintenanceTiming(**{"stagger": timedelta(0), **timing})  # type: ignore[arg-type]
        cleaner = JobCleaner(self.ctx, self.database(adapter), retention or Retention(), given)
        for signal in (cleaner.ticked, cleaner.tick_failed, cleaner.deleted):
            signal.watch()
        return cleaner

    def finished(self, state: str, age: timedelta) -> int:
        return self.table.add(state=state, finalized_at=self.table.now() - age)

    def ids(self) -> list[int]:
        return [row["id"] for row in self.table.sql("SELECT id FROM {job} ORDER BY id")]


@pytest.fixture
async def setup(make_engine: EngineMaker, database_url: str, schema: str) -> AsyncIterator[Setup]:
    table = Table(database_url, schema)
    setup = Setup(make_engine, schema, table)
    yield setup
    for db in setup.databases:
        await db.close()
    table.conn.close()


def test_defaults_are_rivers(ctx: ServiceContext) -> None:
    cleaner = JobCleaner(ctx, None, Retention())  # type: ignore[arg-type]  # not asked here
    assert (cleaner.timing.interval, cleaner.timing.batch_size) == (timedelta(seconds=30), 10_000)
    assert QueueCleaner(ctx, None).timing.interval == timedelta(hours=1)  # type: ignore[arg-type]
    assert list(Retention()) == [
        (JobState.CANCELLED, DAY),
        (JobState.COMPLETED, DAY),
        (JobState.DISCARDED, 7 * DAY),
    ]
    config = Config()
    assert (
        Retention(
            cancelled=config.cancelled_job_retention_period,
            completed=config.completed_job_retention_period,
            discarded=config.discarded_job_retention_period,
        )
        == Retention()
    )


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(setup: Setup, adapter: str) -> None:
    await stress_start_stop(setup.cleaner(adapter), rounds=10)
    await stress_start_stop(QueueCleaner(setup.ctx, setup.database(adapter)), rounds=10)


async def test_each_state_has_its_retention(setup: Setup, adapter: str) -> None:
    kept = [setup.finished(state, DAY - timedelta(minutes=1)) for state in FINISHED]
    kept.append(setup.finished("discarded", 7 * DAY - timedelta(minutes=1)))
    for state in ("cancelled", "completed"):
        setup.finished(state, DAY + timedelta(minutes=1))
    setup.finished("discarded", 7 * DAY + timedelta(minutes=1))
    cleaner = setup.cleaner(adapter)
    await cleaner.start()
    await cleaner.ticked.wait()
    assert setup.ids() == kept
    assert [await cleaner.deleted.wait() for _ in FINISHED] == [(JobState(state), 1) for state in FINISHED]
    await setup.clock.until_sleeping()
    setup.finished("completed", 2 * DAY)
    await setup.clock.advance(30)
    await cleaner.ticked.wait()
    assert setup.ids() == kept
    await cleaner.stop()


@pytest.mark.parametrize("forever", [None, KEEP])
async def test_no_retention_keeps_for_ever(setup: Setup, forever: timedelta | None) -> None:
    ids = {state: setup.finished(state, 4000 * DAY) for state in FINISHED}
    for state in FINISHED:
        kept = Retention(**{other: forever for other in FINISHED if other != state})
        await setup.cleaner(retention=kept).run_once()
        assert ids.pop(state) not in setup.ids()
        assert setup.ids() == list(ids.values())
    setup.finished("completed", 4000 * DAY)
    await setup.cleaner(retention=Retention(cancelled=forever, completed=forever, discarded=forever)).run_once()
    assert len(setup.ids()) == 1


async def test_backlogs_go_in_batches_and_a_locked_row_stays(setup: Setup) -> None:
    ids = [setup.finished("completed", 2 * DAY) for _ in range(7)]
    cleaner = setup.cleaner(batch_size=2, reduced_batch_size=1)
    with setup.table.conn.transaction():
        setup.table.sql("SELECT FROM {job} WHERE id = %s FOR UPDATE", ids[0])
        running = asyncio.create_task(cleaner.run_once())
        while not running.done():
            await setup.clock.advance(1)
            await asyncio.sleep(0)
        await running
        assert setup.ids() == [ids[0]]
        assert await cleaner.deleted.wait() == (JobState.COMPLETED, 6)
    await cleaner.run_once()
    assert setup.ids() == []


@pytest.mark.usefixtures("only_statements_hurry")
async def test_timeout_is_the_configured_one_and_nothing_is_deleted(setup: Setup, adapter: str) -> None:
    job = setup.finished("completed", 2 * DAY)
    cleaner = setup.cleaner(adapter, timeout=timedelta(milliseconds=50))
    with setup.table.conn.transaction():
        setup.table.sql("LOCK TABLE {job} IN ACCESS EXCLUSIVE MODE")
        await cleaner.start()
        error = await cleaner.tick_failed.wait()
        assert getattr(error, "sqlstate", None) == "57014"
        assert setup.ids() == [job]
    cleaner.timing = MaintenanceTiming()
    await setup.clock.until_sleeping()
    await setup.clock.advance(30)
    await cleaner.ticked.wait()
    assert setup.ids() == []
    await cleaner.stop()


@pytest.mark.usefixtures("only_statements_hurry")
async def test_a_state_that_keeps_timing_out_shrinks_its_own_batches(setup: Setup, scratch_schema: str) -> None:
    """The statements of the other states succeed in between, and say nothing about its own."""
    setup.schema = setup.table.schema = scratch_schema
    setup.table.sql(
        "CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_catalog.pg_sleep(10); RETURN OLD; END'"
    )
    setup.table.sql(
        "CREATE TRIGGER slow BEFORE DELETE ON {job} FOR EACH ROW WHEN (OLD.state = 'completed') "
        "EXECUTE FUNCTION {schema}.slow()"
    )
    job = setup.finished("completed", 2 * DAY)
    cleaner = setup.cleaner(timeout=timedelta(milliseconds=300))
    for _ in range(3):
        with pytest.raises(DatabaseError):
            await cleaner.run_once()
    assert {state: size.current for state, size in cleaner.batch_sizes.items()} == {
        JobState.CANCELLED: 10_000,
        JobState.COMPLETED: 1_000,
        JobState.DISCARDED: 10_000,
    }
    assert setup.ids() == [job]


async def test_what_fails_for_one_state_does_not_keep_the_others(
    setup: Setup, database_url: str, scratch_schema: str
) -> None:
    setup.schema = scratch_schema
    setup.table.schema = scratch_schema
    setup.table.sql("CREATE TABLE {schema}.mine (job bigint REFERENCES {job} (id))")
    held, _ = setup.finished("cancelled", 2 * DAY), setup.finished("completed", 2 * DAY)
    setup.table.sql("INSERT INTO {schema}.mine VALUES (%s)", held)
    cleaner = setup.cleaner()
    await cleaner.start()
    error = await cleaner.tick_failed.wait()
    assert getattr(error, "sqlstate", None) == "23503"
    assert setup.ids() == [held]
    await cleaner.stop()


async def test_two_leaders_at_once_are_harmless(setup: Setup) -> None:
    for _ in range(50):
        setup.finished("completed", 2 * DAY)
    cleaners = [setup.cleaner("psycopg_async"), setup.cleaner("asyncpg")]
    await asyncio.gather(*(cleaner.run_once() for cleaner in cleaners))
    assert setup.ids() == []
    counts = [(await cleaner.deleted.wait())[1] for cleaner in cleaners if cleaner.deleted.waiting]
    assert sum(counts) == 50


async def test_queues_go_after_a_day_but_not_a_pause_and_not_metadata(setup: Setup, adapter: str) -> None:
    for name, paused, metadata, hours in (
        ("gone", None, "{}", 25),
        ("fresh", None, "{}", 23),
        ("paused", "yesterday", "{}", 25),
        ("described", None, '{"limit": 1}', 25),
    ):
        setup.table.sql(
            "INSERT INTO {queue} (name, paused_at, metadata, updated_at) "
            "VALUES (%s, %s::timestamptz, %s, now() - make_interval(hours => %s))",
            name,
            paused,
            metadata,
            hours,
        )
    cleaner = QueueCleaner(setup.ctx, setup.database(adapter))
    cleaner.deleted.watch()
    await cleaner.run_once()
    assert await cleaner.deleted.wait() == ["gone"]
    rows = setup.table.sql("SELECT name FROM {queue} ORDER BY name")
    assert [row["name"] for row in rows] == ["described", "fresh", "paused"]
