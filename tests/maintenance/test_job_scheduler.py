from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.database import Database
from riverq.driver import load_driver
from riverq.elector import Elector, ElectorTiming
from riverq.errors import DatabaseError, PoolExhaustedError
from riverq.insert import NotifyLimiter, notify_queues
from riverq.job import JobState
from riverq.maintenance.base import MaintenanceTiming
from riverq.maintenance.job_scheduler import JobScheduler
from riverq.maintenance.maintainer import Maintainer
from riverq.query.job_clean import job_delete_finished
from riverq.service import ServiceContext, TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.fix_server import audible
from tests.maintenance.test_base import only_statements_hurry
from tests.query.arrange import Table
from tests.service.stress import stress_start_stop

__all__ = ["only_statements_hurry"]

AT_ONCE = MaintenanceTiming(interval=timedelta(seconds=5), stagger=timedelta(0))
FAR_SIGHTED = MaintenanceTiming(interval=timedelta(minutes=1), stagger=timedelta(0))
SOON = 50
"""Seconds: within the look-ahead of FAR_SIGHTED, and not over if the machine stalls before the first tick."""


class Setup:
    """A scheduler under a clock that stands still; the database's goes on."""

    def __init__(self, engines: EngineMaker, schema: str, table: Table) -> None:
        self.engines = engines
        self.schema = schema
        self.table = table
        self.clock = FakeClock(datetime.now(UTC))
        self.ctx = ServiceContext(client_id="test", clock=self.clock, rng=random.Random(0))
        self.notified: TestSignal[list[str]] = TestSignal[list[str]]().watch()
        self.notify_error: Exception | None = None
        self.notify_hangs = False
        self.databases: list[Database] = []
        self.schedulers: list[JobScheduler] = []

    def database(self, adapter: str) -> Database:
        engine = self.engines(adapter)
        self.databases.append(Database(engine, load_driver(engine), schema=self.schema, owns_engine=False))
        return self.databases[-1]

    def scheduler(self, adapter: str = "psycopg_async", timing: MaintenanceTiming = AT_ONCE) -> JobScheduler:
        async def notify(queues: Collection[str]) -> None:
            self.notified.signal(list(queues))
            if self.notify_hangs:
                await asyncio.Event().wait()
            if self.notify_error is not None:
                raise self.notify_error

        scheduler = JobScheduler(self.ctx, self.database(adapter), notify, timing)
        for signal in (scheduler.ticked, scheduler.tick_failed, scheduler.scheduled, scheduler.discarded):
            signal.watch()
        self.schedulers.append(scheduler)
        return scheduler

    async def next_tick(self, scheduler: JobScheduler) -> None:
        await self.clock.until_sleeping(2)  # the ticker and the timers
        await self.clock.advance(scheduler.timing.interval.total_seconds())
        await scheduler.ticked.wait()

    async def expect_silence_until_due(self, job: int) -> None:
        """Then its queue, `mail`, is notified. For a job that was due in SOON when it was made."""
        await self.clock.until_sleeping(2)
        left = (self.table.get(job)["scheduled_at"] - self.table.now()).total_seconds()  # the scheduler was told more
        await self.clock.advance(left - 0.1)
        assert self.notified.waiting == 0
        await self.clock.advance(SOON + 0.2 - left)
        assert await self.notified.wait() == ["mail"]

    def states(self) -> dict[int, str]:
        return {row["id"]: row["state"] for row in self.table.sql("SELECT id, state::text FROM {job}")}

    def due(self, seconds: float = -1, **columns: object) -> int:
        row = self.table.sql("SELECT now() + make_interval(secs => %s) AS at", seconds)[0]
        return self.table.add(**{"state": "scheduled", "scheduled_at": row["at"], **columns})


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    yield table
    table.conn.close()


@pytest.fixture
async def setup(make_engine: EngineMaker, schema: str, table: Table) -> AsyncIterator[Setup]:
    setup = Setup(make_engine, schema, table)
    yield setup
    for scheduler in setup.schedulers:
        await scheduler.stop()
    for db in setup.databases:
        await db.close()


def test_defaults(ctx: ServiceContext) -> None:
    timing = JobScheduler(ctx, None, None).timing  # type: ignore[arg-type]  # neither is asked here
    assert (timing.interval, timing.batch_size) == (timedelta(seconds=5), 10_000)


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(setup: Setup, adapter: str) -> None:
    await stress_start_stop(setup.scheduler(adapter), rounds=10)


async def test_due_jobs_become_available_and_their_queues_are_notified(setup: Setup, adapter: str) -> None:
    mail, video = setup.due(queue="mail"), setup.due(queue="video", state="retryable")
    later = setup.due(3600, queue="later")
    scheduler = setup.scheduler(adapter)
    await scheduler.start()
    assert await setup.notified.wait() == ["mail", "video"]
    await scheduler.ticked.wait()
    assert setup.states() == {mail: "available", video: "available", later: "scheduled"}
    assert {job.job_id for job in await scheduler.scheduled.wait()} == {mail, video}


async def test_job_within_the_look_ahead_is_notified_when_it_falls_due(setup: Setup) -> None:
    soon = setup.due(SOON, queue="mail")
    scheduler = setup.scheduler(timing=FAR_SIGHTED)
    await scheduler.start()
    await scheduler.ticked.wait()
    assert setup.states() == {soon: "available"}
    assert setup.notified.waiting == 0
    await setup.expect_silence_until_due(soon)


async def test_timers_end_with_the_service(setup: Setup) -> None:
    setup.due(SOON, queue="mail")
    scheduler = setup.scheduler(timing=FAR_SIGHTED)
    await scheduler.start()
    await scheduler.ticked.wait()
    await scheduler.stop()
    await scheduler.start()
    await scheduler.ticked.wait()
    await setup.clock.until_sleeping(2)
    await setup.clock.advance(SOON + 1)
    assert setup.notified.waiting == 0


@pytest.mark.parametrize("name", ["psycopg_async", "pg8000"])
async def test_job_that_falls_due_is_notified_while_the_leaders_lane_is_busy(
    setup: Setup, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane's one slot is in a statement that waits; the other slot of the database is for everybody."""
    monkeypatch.setattr("riverq.maintenance.job_scheduler.NOTIFY_LIMIT", 60.0)  # a stall may take the usual one
    setup.due(SOON, queue="mail")
    general = setup.database(name)
    upkeep = general.share(1)
    limiter = NotifyLimiter(setup.clock, timedelta(milliseconds=100))

    async def notify(queues: Collection[str]) -> None:
        await general.run(notify_queues, queues, limiter.take)

    scheduler = JobScheduler(setup.ctx, upkeep, notify, FAR_SIGHTED)
    setup.schedulers.append(scheduler)
    scheduler.ticked.watch()
    scheduler.notified_on_time.watch()
    setup.table.conn.execute(f'LISTEN "{setup.schema}.river_insert"')
    await scheduler.start()
    await scheduler.ticked.wait()
    with setup.table.conn.transaction():
        setup.table.sql("LOCK TABLE {job} IN ACCESS EXCLUSIVE MODE")
        cleaning = asyncio.create_task(
            upkeep.run(job_delete_finished, state=JobState.COMPLETED, retention=timedelta(0), limit=1)
        )
        while not setup.table.sql("SELECT pid FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"):
            assert not cleaning.done(), cleaning
            await asyncio.sleep(0)  # nothing signals a wait for a lock
        await setup.clock.until_sleeping(2)
        await setup.clock.advance(SOON + 0.1)
        assert await scheduler.notified_on_time.wait() == ["mail"]
    await cleaning
    told = audible([{"queue": "mail"}])
    assert [
        json.loads(note.payload) for note in setup.table.conn.notifies(timeout=20 if told else 0, stop_after=1)
    ] == told


@pytest.mark.parametrize("skew", [timedelta(hours=-1), timedelta(hours=1)])
async def test_timers_follow_the_databases_clock_and_not_this_machines(setup: Setup, skew: timedelta) -> None:
    setup.clock = FakeClock(datetime.now(UTC) + skew)
    setup.ctx = ServiceContext(client_id="test", clock=setup.clock, rng=random.Random(0))
    soon = setup.due(SOON, queue="mail")
    scheduler = setup.scheduler(timing=FAR_SIGHTED)
    await scheduler.start()
    await scheduler.ticked.wait()
    await setup.expect_silence_until_due(soon)


async def test_locked_row_stalls_nobody_else(setup: Setup) -> None:
    locked, free = setup.due(), setup.due()
    scheduler = setup.scheduler()
    with setup.table.conn.transaction():
        setup.table.sql("SELECT FROM {job} WHERE id = %s FOR UPDATE", locked)
        await scheduler.start()
        await scheduler.ticked.wait()
        assert setup.states() == {locked: "scheduled", free: "available"}
    await setup.next_tick(scheduler)
    assert setup.states() == {locked: "available", free: "available"}


async def test_key_held_by_an_open_transaction_waits_and_the_rest_goes_on(setup: Setup, database_url: str) -> None:
    without_retryable = 0b11010101  # the row is outside its index while retryable, and enters it when available
    key: dict[str, Any] = {"unique_key": b"k" * 32, "unique_states": without_retryable}
    waiting, plain = setup.due(state="retryable", **key), setup.due()
    other_key = setup.due(state="retryable", unique_key=b"o" * 32, unique_states=without_retryable)
    scheduler = setup.scheduler()
    application = Table(database_url, setup.schema)
    try:
        with application.conn.transaction():
            twin = application.add(state="available", **key)
            await scheduler.start()
            await scheduler.ticked.wait()
            assert setup.states() == {waiting: "retryable", plain: "available", other_key: "available"}
        await setup.next_tick(scheduler)
        assert await scheduler.discarded.wait() == [waiting]
        assert setup.states()[waiting] == "discarded"
        assert setup.states()[twin] == "available"
    finally:
        application.conn.close()


async def test_batch_full_of_waiting_keys_does_not_keep_the_others_from_their_turn(setup: Setup) -> None:
    outside = 0b11010101
    held = setup.due(-10, state="retryable", unique_key=b"k" * 32, unique_states=outside)
    setup.table.sql(
        "INSERT INTO {job} (args, kind, max_attempts, state, scheduled_at, unique_key, unique_states) "
        "SELECT args, kind, max_attempts, state, scheduled_at, unique_key, unique_states "
        "FROM {job}, generate_series(1, 120) WHERE id = %s",
        held,
    )
    other = setup.due(state="retryable", unique_key=b"o" * 32, unique_states=outside)
    scheduler = setup.scheduler()
    with setup.table.conn.transaction():
        setup.table.sql("SELECT FROM {job} WHERE id = %s FOR UPDATE", held)
        await scheduler.start()
        while not scheduler.ticked.waiting:
            await setup.clock.until_sleeping(2)
            await setup.clock.advance(1)
        assert setup.states()[other] == "available"
        assert setup.states()[held] == "retryable"


async def test_large_backlogs_go_in_batches(setup: Setup) -> None:
    ids = [setup.due() for _ in range(7)]
    timing = MaintenanceTiming(interval=timedelta(seconds=50), stagger=timedelta(0), batch_size=3, reduced_batch_size=1)
    scheduler = setup.scheduler(timing=timing)
    await scheduler.start()
    sizes = []
    for _ in range(3):
        sizes.append(len(await scheduler.scheduled.wait()))
        await setup.clock.until_sleeping(2)
        await setup.clock.advance(1)
    assert sizes == [3, 3, 1]
    assert set(setup.states().values()) == {"available"}
    assert len(ids) == 7


@pytest.mark.usefixtures("only_statements_hurry")
async def test_statements_that_keep_timing_out_shrink_the_batch(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    job = setup.due()
    scheduler = setup.scheduler(timing=replace(AT_ONCE, timeout=timedelta(milliseconds=40)))
    with setup.table.conn.transaction():
        setup.table.sql("LOCK TABLE {job} IN ACCESS EXCLUSIVE MODE")
        await scheduler.start()
        for _ in range(2):
            await scheduler.tick_failed.wait()
            await setup.clock.until_sleeping(2)
            await setup.clock.advance(5)
        await scheduler.tick_failed.wait()
    assert scheduler.batch_size.current == 1_000
    assert "from now on 1000 rows at a time" in caplog.text
    scheduler.timing = AT_ONCE
    await setup.next_tick(scheduler)
    assert setup.states() == {job: "available"}


@pytest.mark.usefixtures("only_statements_hurry")
async def test_a_second_pass_that_succeeds_hides_no_timeouts_of_the_first(setup: Setup, scratch_schema: str) -> None:
    setup.schema = setup.table.schema = scratch_schema
    setup.table.sql(
        "CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_catalog.pg_sleep(10); RETURN NEW; END'"
    )
    setup.table.sql("CREATE TRIGGER slow BEFORE UPDATE ON {job} FOR EACH ROW EXECUTE FUNCTION {schema}.slow()")
    setup.due()
    scheduler = setup.scheduler(timing=MaintenanceTiming(timeout=timedelta(milliseconds=300)))
    for _ in range(3):
        with pytest.raises(DatabaseError):
            await scheduler.run_once()
    assert scheduler.batch_size.current == 1_000


async def test_notification_that_fails_leaves_the_jobs_available(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    job = setup.due()
    setup.notify_error = PoolExhaustedError("no connection became free in 5 s")
    scheduler = setup.scheduler()
    await scheduler.start()
    await scheduler.ticked.wait()
    assert setup.states() == {job: "available"}
    assert "producers will poll" in caplog.text


async def test_notification_without_an_answer_stalls_neither_ticks_nor_timers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a connection whose packets go nowhere."""
    monkeypatch.setattr("riverq.maintenance.job_scheduler.NOTIFY_LIMIT", 0.05)
    setup.due(queue="now")
    setup.due(SOON, queue="soon")
    scheduler = setup.scheduler(timing=FAR_SIGHTED)
    setup.notify_hangs = True
    await scheduler.start()
    assert await setup.notified.wait() == ["now"]
    await scheduler.ticked.wait()
    await setup.clock.until_sleeping(2)
    await setup.clock.advance(SOON + 0.1)
    assert await setup.notified.wait() == ["soon"]
    setup.notify_hangs = False
    setup.due(queue="later")
    await setup.next_tick(scheduler)
    assert await setup.notified.wait() == ["later"]


@pytest.mark.parametrize("error", [PoolExhaustedError("none became free"), RuntimeError("a bug")])
async def test_timers_outlive_a_notification_that_fails(setup: Setup, error: Exception) -> None:
    setup.due(SOON / 2, queue="first")
    setup.due(SOON, queue="second")
    setup.notify_error = error
    scheduler = setup.scheduler(timing=FAR_SIGHTED)
    await scheduler.start()
    await scheduler.ticked.wait()
    for queue in ("first", "second"):
        await setup.clock.until_sleeping(2)
        await setup.clock.advance(SOON / 2 + 0.1)
        assert await setup.notified.wait() == [queue]


async def test_two_leaders_for_a_moment_are_harmless(setup: Setup) -> None:
    ids = {setup.due() for _ in range(50)}
    schedulers = [setup.scheduler("psycopg_async"), setup.scheduler("asyncpg")]
    for scheduler in schedulers:
        await scheduler.start()
    for scheduler in schedulers:
        await scheduler.ticked.wait()
    assert setup.states() == dict.fromkeys(ids, "available")


async def test_leadership_starts_it_and_its_loss_stops_it(setup: Setup) -> None:
    """Elector, maintainer and scheduler together, twice: the second takes over from the first."""
    timing = ElectorTiming(interval=timedelta(milliseconds=30), follower_jitter=timedelta(0))

    def client(client_id: str) -> tuple[Elector, Maintainer, JobScheduler]:
        ctx = ServiceContext(client_id=client_id)
        elector = Elector(ctx, setup.database("psycopg_async").limited(1), None, timing=timing)
        scheduler = setup.scheduler()
        maintainer = Maintainer(ctx, [scheduler], request_resign=elector.resign_soon)
        maintainer.started.watch()
        maintainer.stopped.watch()
        elector.not_elected.watch()
        elector.on_gained, elector.on_lost = maintainer.gained, maintainer.lost
        return elector, maintainer, scheduler

    first, first_services, first_scheduler = client("first")
    second, second_services, second_scheduler = client("second")
    await first.start()
    await first_services.started.wait()
    await first_scheduler.ticked.wait()
    await second.start()
    await second.not_elected.wait()
    assert not second_scheduler.is_running

    await first.stop()
    assert not first_scheduler.is_running
    job = setup.due()
    await second_services.started.wait()
    await second_scheduler.ticked.wait()
    assert setup.states() == {job: "available"}
    await second.stop()
    assert not second_scheduler.is_running
