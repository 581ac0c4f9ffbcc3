from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa

from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import ConfigError, DatabaseError, PoolExhaustedError, UnavailableError
from riverq.maintenance import base
from riverq.maintenance.base import (
    FULL_BATCHES_BEFORE_GROWTH,
    MOST_FULL_BATCHES,
    BatchSize,
    MaintenanceService,
    MaintenanceTiming,
)
from riverq.query.limits import statement_timeout_set
from riverq.service import OperationTimeoutError, ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.service.stress import stress_start_stop

UNHURRIED = MaintenanceTiming()
HURRIED = MaintenanceTiming(timeout=timedelta(milliseconds=200))


class Unused:
    """Stands where a Database would: these services run no statement."""


class Ticking(MaintenanceService):
    def __init__(self, ctx: ServiceContext, timing: MaintenanceTiming) -> None:
        super().__init__(ctx, Unused(), timing)  # type: ignore[arg-type]  # never asked
        self.ticks = 0
        self.errors: list[Exception] = []

    async def run_once(self) -> None:
        self.ticks += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fake_ctx(clock: FakeClock) -> ServiceContext:
    return ServiceContext(client_id="test", clock=clock, rng=random.Random(0))


@pytest.fixture
def only_statements_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls between two statements, or before an answer is read, runs into no other short limit."""
    monkeypatch.setattr(base, "transaction_limit_set", statement_timeout_set)
    monkeypatch.setattr(base, "ANSWER_LIMIT", 20.0)


def test_defaults() -> None:
    timing = MaintenanceTiming()
    assert (timing.batch_size, timing.reduced_batch_size) == (10_000, 1_000)
    assert timing.timeout == timedelta(seconds=30)
    with pytest.raises(ConfigError, match="expected reduced_batch_size to be an integer from 1 to 10, got: 1000"):
        MaintenanceTiming(batch_size=10)


async def test_start_stop_stress(fake_ctx: ServiceContext) -> None:
    await stress_start_stop(Ticking(fake_ctx, MaintenanceTiming()))


async def test_errors_are_logged_and_wait_for_the_next_tick(
    fake_ctx: ServiceContext, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = Ticking(fake_ctx, MaintenanceTiming(interval=timedelta(seconds=30), stagger=timedelta(0)))
    service.errors = [DatabaseError("no such luck", "XX000"), ValueError("a bug")]
    service.tick_failed.watch()
    service.ticked.watch()
    await service.start()
    await service.tick_failed.wait()
    await clock.until_sleeping()
    assert service.ticks == 1
    await clock.advance(30)
    await service.tick_failed.wait()
    await clock.advance(30)
    await service.ticked.wait()
    assert service.ticks == 3
    assert "no such luck" in caplog.text
    assert "a bug" in caplog.text
    await service.stop()


async def test_services_that_start_together_do_not_tick_together(clock: FakeClock) -> None:
    firsts = []
    for seed in range(3):
        ctx = ServiceContext(client_id="test", clock=FakeClock(), rng=random.Random(seed))
        held = ctx.clock
        assert isinstance(held, FakeClock)
        service = Ticking(ctx, MaintenanceTiming())
        service.ticked.watch()
        await service.start()
        await held.until_sleeping()
        assert service.ticks == 0
        while not service.ticks:
            await held.advance(0.01)
        firsts.append(round(held.monotonic(), 2))
        await service.stop()
    assert len(set(firsts)) == 3
    assert max(firsts) <= 1.01


async def test_batches_go_on_until_one_is_not_full(fake_ctx: ServiceContext, clock: FakeClock) -> None:
    service = Ticking(fake_ctx, MaintenanceTiming(batch_size=10, reduced_batch_size=1))
    left = [10, 10, 3]

    async def run_batch(limit: int) -> int:
        assert limit == 10
        return left.pop(0)

    running = asyncio.create_task(service.batches(run_batch))
    while not running.done():
        await clock.advance(0.05)
    assert await running == 23
    assert clock.monotonic() >= 0.1  # two pauses


async def test_batches_shrink_and_recover(
    fake_ctx: ServiceContext, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    service = Ticking(fake_ctx, MaintenanceTiming(batch_size=10, reduced_batch_size=4))
    limits: list[int] = []

    async def run_batch(limit: int) -> int:
        limits.append(limit)
        return limit if len(limits) < 30 else 0

    async def run_out(limit: int) -> int:
        raise DatabaseError("canceling statement due to statement timeout", "57014")

    for _ in range(3):
        with pytest.raises(DatabaseError):
            await service.batches(run_out)
    running = asyncio.create_task(service.batches(run_batch))
    while not running.done():
        await clock.advance(0.05)
    assert limits == [4] * 10 + [8] * 10 + [10] * 10
    assert caplog.messages == [
        "Ticking: Statements keep timing out, from now on 4 rows at a time",
        "Ticking: Takes larger batches again, 8 rows at a time",
        "Ticking: Takes larger batches again, 10 rows at a time",
    ]


class TestQuery:
    """The time limit, on a real server."""

    @pytest.fixture
    async def service(
        self, ctx: ServiceContext, adapter: str, make_engine: EngineMaker, schema: str
    ) -> AsyncIterator[Ticking]:
        engine = make_engine(adapter, pool_size=1, max_overflow=0)
        db = Database(engine, load_driver(engine), schema=schema, slots=1, owns_engine=False)
        service = Ticking(ctx, HURRIED)
        service._db = db
        yield service
        await db.close()

    @pytest.mark.usefixtures("only_statements_hurry")
    async def test_statement_that_takes_too_long_ends_on_the_server(
        self, service: Ticking, database_url: str, schema: str
    ) -> None:
        """With its only connection in a statement that went on, the next one would get none."""
        with psycopg.connect(database_url) as other:
            other.execute(f"LOCK TABLE {schema}.river_job IN ACCESS EXCLUSIVE MODE")
            for number in range(1, 4):
                with pytest.raises(DatabaseError) as caught:
                    await service.batches(lambda _: service.query(count_jobs))
                assert caught.value.sqlstate == "57014"
                assert service.batch_size.is_reduced is (number == 3)
                service.timing = UNHURRIED
                assert await service.query(statement, "SELECT 7") == 7  # no batch, so it does not count
                service.timing = HURRIED
        service.timing = UNHURRIED
        assert await service.query(count_jobs) == 0

    @pytest.mark.parametrize("setting", ["statement_timeout", "idle_in_transaction_session_timeout"])
    async def test_limit_ends_with_the_transaction(self, service: Ticking, setting: str) -> None:
        service.timing = MaintenanceTiming(timeout=timedelta(seconds=29))
        assert await service.query(statement, f"SELECT current_setting('{setting}')") == "29s"
        assert await service._db.run(statement, f"SELECT current_setting('{setting}')") == "0"

    async def test_transaction_whose_client_falls_silent_is_ended_by_the_server(
        self, service: Ticking, database_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its locks go, long before the client is heard of again; then it starts anew."""
        monkeypatch.setattr(base, "ANSWER_LIMIT", 20.0)
        began, leave = threading.Event(), threading.Event()

        def fall_silent(conn: sa.Connection, schema: str) -> object:
            conn.exec_driver_sql(f"LOCK TABLE {schema}.river_job IN ACCESS EXCLUSIVE MODE")
            began.set()
            leave.wait(30)
            return conn.exec_driver_sql("SELECT 1").scalar_one()

        def use_the_table() -> None:
            began.wait(30)
            with psycopg.connect(database_url) as other:
                other.execute(f"SELECT count(*) FROM {schema}.river_job")
            leave.set()

        using = asyncio.get_running_loop().run_in_executor(None, use_the_table)
        while not began.is_set():  # on a machine that stalls the limit may come before the lock
            with pytest.raises(DatabaseError) as caught:
                await service.query(fall_silent)
            assert not isinstance(caught.value, OperationTimeoutError)
        await using
        service.timing = UNHURRIED
        assert await service.query(count_jobs) == 0

    async def test_waiting_for_a_connection_is_not_the_batches_fault(
        self, service: Ticking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "ANSWER_LIMIT", 0.0)
        entered, leave = threading.Event(), threading.Event()

        def occupy(conn: sa.Connection, _schema: str) -> None:
            entered.set()
            while not leave.is_set():
                conn.exec_driver_sql("SELECT pg_sleep(0.01)")

        occupying = asyncio.create_task(service._db.run(occupy))
        await asyncio.to_thread(entered.wait)
        for _ in range(3):
            with pytest.raises(PoolExhaustedError, match="no connection became free for Ticking"):
                await service.batches(lambda _: service.query(count_jobs))
        assert not service.batch_size.is_reduced
        leave.set()
        await occupying

    async def test_server_that_does_not_answer_is_not_waited_for(
        self, service: Ticking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Statement after statement within the limit, without end, stands for a network that swallows the answer."""
        service.timing = UNHURRIED  # the server's limit: a stall must not have it come before the client's
        monkeypatch.setattr(base, "ANSWER_LIMIT", 0.2 - UNHURRIED.timeout.total_seconds())

        def endless(conn: sa.Connection, _schema: str, leave: threading.Event) -> None:
            while not leave.is_set():
                conn.exec_driver_sql("SELECT pg_sleep(0.01)")

        async def hear_nothing(leave: threading.Event, _limit: int) -> int:
            await service.query(endless, leave)
            return 0

        while not service.batch_size._timeouts:  # on a slow machine the limit may come before the first statement
            leave = threading.Event()
            with pytest.raises(UnavailableError):
                await service.batches(partial(hear_nothing, leave))
            leave.set()
        assert await service._db.run(statement, "SELECT 7") == 7


def count_jobs(conn: sa.Connection, schema: str) -> int:
    """A query function."""
    number: int = conn.exec_driver_sql(f"SELECT count(*) FROM {schema}.river_job").scalar_one()
    return number


def statement(conn: sa.Connection, schema: str, text: str) -> object:
    """A query function: run `text`, return its first value."""
    return conn.exec_driver_sql(text.format(schema=schema)).scalar_one()


class TestBatchSize:
    @pytest.fixture
    def size(self, fake_ctx: ServiceContext) -> BatchSize:
        return BatchSize(fake_ctx, MaintenanceTiming())

    def shrink(self, size: BatchSize) -> None:
        for _ in range(3):
            size.timed_out()

    def fill(self, size: BatchSize, number: int) -> None:
        for _ in range(number):
            size.succeeded()
            size.filled()

    def test_shrinks_after_three_timeouts_in_a_row(self, size: BatchSize) -> None:
        assert [size.timed_out() for _ in range(2)] == [False, False]
        assert (size.current, size.is_reduced) == (10_000, False)
        assert size.timed_out()
        assert (size.current, size.is_reduced) == (1_000, True)
        assert not size.timed_out()
        assert size.current == 1_000

    def test_recovers_step_by_step_with_full_batches(self, size: BatchSize) -> None:
        self.shrink(size)
        seen = []
        while size.is_reduced:
            seen.append(size.current)
            self.fill(size, FULL_BATCHES_BEFORE_GROWTH - 1)
            assert size.current == seen[-1]
            assert size.filled()
        assert (seen, size.current) == ([1_000, 2_000, 4_000, 8_000], 10_000)
        self.fill(size, 100)
        assert size.current == 10_000

    def test_batches_that_are_not_full_prove_nothing(self, size: BatchSize) -> None:
        self.shrink(size)
        for _ in range(1_000):
            size.succeeded()
        assert size.current == 1_000

    def test_one_timeout_on_trial_takes_the_size_back_and_doubles_the_patience(self, size: BatchSize) -> None:
        self.shrink(size)
        for patience in (10, 20, 40, 80, 160, 320, MOST_FULL_BATCHES, MOST_FULL_BATCHES):
            self.fill(size, patience - 1)
            assert size.current == 1_000
            assert size.filled()
            assert size.current == 2_000
            assert size.timed_out()
            assert size.current == 1_000

    def test_a_size_that_has_proved_itself_takes_three_timeouts(self, size: BatchSize) -> None:
        self.shrink(size)
        self.fill(size, 11)
        assert [size.timed_out() for _ in range(3)] == [False, False, True]
        assert size.current == 1_000

    def test_a_timeout_starts_the_row_anew(self, size: BatchSize) -> None:
        self.shrink(size)
        self.fill(size, 9)
        size.timed_out()
        self.fill(size, 9)
        assert size.current == 1_000
        self.fill(size, 1)
        assert size.current == 2_000

    def test_patience_is_forgotten_once_the_full_size_works_again(self, size: BatchSize) -> None:
        self.shrink(size)
        self.fill(size, 10)
        size.timed_out()
        self.fill(size, 4 * 20)
        assert size.current == 10_000
        self.fill(size, 20)
        self.shrink(size)
        self.fill(size, 10)
        assert size.current == 2_000

    def test_a_success_between_them_starts_the_count_anew(self, size: BatchSize) -> None:
        for _ in range(5):
            size.timed_out()
            size.timed_out()
            size.succeeded()
        assert size.current == 10_000

    async def test_timeouts_further_apart_than_ten_minutes_do_not_add_up(
        self, size: BatchSize, clock: FakeClock
    ) -> None:
        for _ in range(10):
            size.timed_out()
            await clock.advance(301)
        assert size.current == 10_000
        size.timed_out()
        size.timed_out()
        assert size.current == 1_000
