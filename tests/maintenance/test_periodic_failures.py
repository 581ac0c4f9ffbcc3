"""Insertions that fail, that take too long, and whose COMMIT is not answered: no run is lost, none spins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import pytest

from riverq.errors import UsageError
from riverq.insert_opts import InsertItem, InsertParams
from riverq.job import InsertResult
from riverq.job_args import RawArgs
from riverq.maintenance.periodic_enqueuer import PeriodicEnqueuer
from riverq.maintenance.periodic_insert import PeriodicInserter
from riverq.periodic import PeriodicJob
from riverq.schedule import every
from riverq.service import OperationTimeoutError, within
from riverq.unique import UniqueOpts
from tests.maintenance.periodic import BEGAN, HOUR, MINUTE, SECOND, Setup, job, setup, table

__all__ = ["setup", "table"]

AsyncNext = Callable[[Sequence[InsertParams]], Awaitable[list[InsertResult]]]
Next = Callable[[Sequence[InsertParams]], list[InsertResult]]


class Refusing:
    """Middleware that fails while `kind` is in the batch."""

    def __init__(self, kind: str) -> None:
        self.kind: str | None = kind
        self.batches: list[list[str]] = []

    async def insert(self, params: Sequence[InsertParams], call_next: AsyncNext) -> list[InsertResult]:
        self.batches.append([each.kind for each in params])
        if self.kind in self.batches[-1]:
            raise RuntimeError("refused")
        return await call_next(params)


async def until_rows(setup: Setup, leader: PeriodicEnqueuer, count: int) -> None:
    """Move the clock until the leader has inserted so many."""
    for _ in range(50):
        if len(setup.rows()) >= count:
            return
        await setup.pass_time(leader, 10)
    raise AssertionError(f"only {setup.rows()}")


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """To be set by what hangs; an insert's limit counts from there, as before it a machine that stalls takes time."""
    hangs = asyncio.Event()

    async def within_once_hanging(seconds: float, what: str, operation: Coroutine[Any, Any, object]) -> object:
        async def rest() -> object:
            return await inserting

        inserting, hanging = asyncio.create_task(operation), asyncio.create_task(hangs.wait())
        try:
            await asyncio.wait({inserting, hanging}, return_when=asyncio.FIRST_COMPLETED)
            return await within(seconds if hangs.is_set() else 60.0, what, rest())
        finally:
            hanging.cancel()
            inserting.cancel()
            hangs.clear()

    monkeypatch.setattr("riverq.maintenance.periodic_insert.within", within_once_hanging)
    return hangs


async def test_runs_during_an_outage_are_inserted_after_it(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    leader = await setup.started(setup.leader(job("k1")))
    setup.db.before = 3
    await setup.pass_time(leader, 1)
    assert setup.rows() == []
    await until_rows(setup, leader, 4)
    assert setup.seconds()[:4] == [1, 2, 3, 4]
    assert "Could not insert what is due, trying again in" in caplog.text
    assert leader.failed.waiting == 3


@pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg", "pg8000"])
async def test_a_backend_that_is_terminated_costs_no_run(setup: Setup, adapter: str) -> None:
    leader = await setup.started(setup.leader(job("k1"), adapter=adapter))
    await setup.pass_time(leader, 1)
    with setup.table.conn.transaction():
        setup.table.sql("LOCK TABLE {job} IN ACCESS EXCLUSIVE MODE")
        await setup.clock.until_sleeping()
        await setup.clock.advance(1)
        blocked = await setup.blocked_by(setup.table.conn.info.backend_pid)
        setup.table.sql("SELECT pg_terminate_backend(%s)", blocked)
        await leader.failed.wait()
    await until_rows(setup, leader, 2)
    assert setup.seconds()[:2] == [1, 2]


async def test_one_job_that_fails_a_batch_is_singled_out(setup: Setup) -> None:
    refusing = Refusing("bad")
    leader = await setup.started(setup.leader(job("k1"), job("bad"), job("k2"), middleware=[refusing]))
    await setup.pass_time(leader, 1)
    assert (setup.seconds("k1"), setup.seconds("k2"), setup.seconds("bad")) == ([1], [1], [])
    assert refusing.batches == [["k1", "bad", "k2"], ["k1"], ["bad"], ["k2"]]
    refusing.kind = None
    await until_rows(setup, leader, 5)
    assert setup.seconds("bad")[0] == 1


async def test_middleware_that_fails_after_the_commit_costs_no_second_job(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    class Late:
        async def insert(self, params: Sequence[InsertParams], call_next: AsyncNext) -> list[InsertResult]:
            await call_next(params)
            raise RuntimeError("too late")

    leader = await setup.started(setup.leader(job("k1"), job("k2", id="report", durable=True), middleware=[Late()]))
    await setup.pass_time(leader, 1)
    assert "after which a middleware failed: RuntimeError('too late')" in caplog.text
    await setup.pass_time(leader, 1)
    assert setup.seconds("k1") == setup.seconds("k2") == [1, 2]


async def test_middleware_may_write_in_parts_and_change_errors(setup: Setup) -> None:
    class Parts:
        async def insert(self, params: Sequence[InsertParams], call_next: AsyncNext) -> list[InsertResult]:
            try:
                return [result for each in params for result in await call_next([each])]
            except Exception as error:
                raise LookupError("something went wrong") from error

    jobs = [job("k1", id="first", durable=True), job("k2", id="second", durable=True)]
    leader = await setup.started(setup.leader(*jobs, middleware=[Parts()]))
    await setup.pass_time(leader, 1)
    assert setup.seconds("k1") == setup.seconds("k2") == [1]
    setup.table.sql(f'UPDATE "{setup.schema}".riverq_periodic_job SET next_run_at = %s', BEGAN + 3 * SECOND)
    await setup.pass_time(leader, 1)  # as if another leader had inserted the second run
    assert leader.failed.waiting == 0
    await setup.pass_time(leader, 1)
    assert setup.seconds("k1") == setup.seconds("k2") == [1, 3]


# -- COMMIT without an answer


async def test_a_lost_answer_is_looked_up_by_id(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", id="first"), job("k2", id="second", run_on_start=True)))
    await leader.inserted.wait()
    setup.db.after = 1
    await setup.pass_time(leader, 1)
    await leader.failed.wait()
    await until_rows(setup, leader, 5)
    assert setup.seconds("k1")[:2] == [1, 2]
    assert setup.seconds("k2")[:3] == [0, 1, 2]


async def test_a_lost_answer_to_a_start_is_looked_up_too(setup: Setup) -> None:
    leader = setup.leader(job("k1", every(HOUR), id="first", run_on_start=True))
    setup.db.after = 1
    await setup.started(leader)
    await leader.failed.wait()
    await setup.pass_time(leader, 2)
    await setup.pass_time(leader, 10)
    assert setup.seconds() == [0]


async def test_a_run_whose_commit_did_not_happen_is_inserted_again(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", every(MINUTE), id="first")))
    await setup.clock.until_sleeping()
    setup.db.after = 1
    setup.clock.jumped = 50 * SECOND
    await setup.pass_time(leader, 10)
    await leader.failed.wait()
    setup.table.sql("DELETE FROM {job}")
    await until_rows(setup, leader, 1)
    assert setup.seconds() == [60]


async def test_without_an_id_a_lost_answer_means_a_second_job(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1")))
    setup.db.after = 1
    await setup.pass_time(leader, 1)
    await until_rows(setup, leader, 3)
    assert setup.seconds()[:3] == [1, 1, 2]


async def test_a_lookup_that_fails_is_made_again(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", id="first")))
    setup.db.after = 1
    await setup.pass_time(leader, 1)
    setup.db.before = 2
    await until_rows(setup, leader, 3)
    assert setup.seconds()[:3] == [1, 2, 3]


# -- taking too long


async def test_a_batch_that_takes_too_long_is_tried_one_by_one(setup: Setup, hangs: asyncio.Event) -> None:
    class Hanging(Refusing):
        async def insert(self, params: Sequence[InsertParams], call_next: AsyncNext) -> list[InsertResult]:
            self.batches.append([each.kind for each in params])
            if self.kind in self.batches[-1]:
                hangs.set()
                await asyncio.Event().wait()
            return await call_next(params)

    hanging = Hanging("bad")
    leader = setup.leader(job("k1"), job("bad"), job("k2"), middleware=[hanging])
    leader._inserter = PeriodicInserter(setup.db, leader._path, limit=timedelta(milliseconds=500))
    await setup.started(leader)
    await setup.pass_time(leader, 1)
    assert isinstance(await leader.failed.wait(), OperationTimeoutError)
    await until_rows(setup, leader, 2)
    assert {"k1", "k2"} == {row["kind"] for row in setup.rows()}
    hanging.kind = None
    while not setup.rows("bad"):
        await setup.pass_time(leader, 10)
    assert setup.seconds("bad")[0] == 1


async def test_an_insert_that_was_given_up_writes_nothing_later(setup: Setup, hangs: asyncio.Event) -> None:
    """Middleware in a thread cannot be ended; what it writes when nobody waits any more is refused."""
    free, ended = threading.Event(), threading.Event()
    raised: list[BaseException] = []
    loop = asyncio.get_running_loop()

    class Slow:
        def insert(self, params: Sequence[InsertParams], call_next: Next) -> list[InsertResult]:
            loop.call_soon_threadsafe(hangs.set)
            free.wait(30)
            try:
                return call_next(params)
            except BaseException as error:
                raised.append(error)
                ended.set()
                raise

    leader = setup.leader(job("k1", every(HOUR), run_on_start=True), middleware=[Slow()], may_block=True)
    leader._inserter = PeriodicInserter(setup.db, leader._path, limit=timedelta(milliseconds=50))
    await leader.start()
    await leader.failed.wait()
    free.set()
    assert await asyncio.to_thread(ended.wait, 10)
    assert isinstance(raised[0], UsageError)
    assert setup.rows() == []


async def test_stopping_does_not_wait_for_middleware_in_a_thread(setup: Setup) -> None:
    free, reached = threading.Event(), threading.Event()

    class Slow:
        def insert(self, params: Sequence[InsertParams], call_next: Next) -> list[InsertResult]:
            reached.set()
            free.wait(10)
            return call_next(params)

    leader = setup.leader(job("k1", every(HOUR), run_on_start=True), middleware=[Slow()], may_block=True)
    await leader.start()
    await asyncio.to_thread(reached.wait, 10)
    await leader.stop()
    free.set()
    assert setup.rows() == []


async def test_a_unique_key_that_somebody_holds_does_not_hold_up_others(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for once, then that job is tried alone."""
    monkeypatch.setattr("riverq.maintenance.periodic_insert.LOCK_LIMIT", timedelta(milliseconds=50))

    def make() -> InsertItem:
        return InsertItem(RawArgs("bad", {}), unique_opts=UniqueOpts(by_args=True))

    leader = await setup.started(setup.leader(job("k1"), PeriodicJob(every(SECOND), make)))
    await setup.pass_time(leader, 1)
    [held] = setup.rows("bad")
    with setup.table.conn.transaction():
        setup.table.sql("SELECT id FROM {job} WHERE id = %s FOR UPDATE", held["id"])
        await setup.pass_time(leader, 1)
        assert setup.seconds("k1") == [1, 2]
        assert leader.failed.waiting == 1
        setup.clock.jumped = 2 * SECOND  # both are due again
        await setup.pass_time(leader, 1.2)
        while leader.failed.waiting < 2 or len(setup.seconds("k1")) < 5:
            await leader.tried.wait()
        assert [plan.is_alone for plan in leader._plans] == [False, True]
    assert held["scheduled_at"] == BEGAN + SECOND
