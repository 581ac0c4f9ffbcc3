"""What is inserted when, and what happens if that fails. Durable jobs: test_periodic_durable.py."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any

import pytest

from riverq.cron import cron
from riverq.insert_opts import InsertItem, InsertParams
from riverq.job import InsertResult
from riverq.job_args import RawArgs
from riverq.periodic import PeriodicJob
from riverq.schedule import every, never
from riverq.service import within
from riverq.unique import UniqueOpts
from tests.fix_server import audible
from tests.maintenance.periodic import BEGAN, HOUR, MINUTE, SECOND, Setup, job, setup, table
from tests.service.stress import stress_start_stop

__all__ = ["setup", "table"]


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(setup: Setup, adapter: str) -> None:
    await stress_start_stop(setup.leader(job("k1", run_on_start=True), adapter=adapter), rounds=10)


# -- when, and as what


async def test_a_due_job_is_available_at_its_target(setup: Setup, adapter: str) -> None:
    leader = setup.leader(job("k1", id="first"), job("k2", every(HOUR)), adapter=adapter)
    await setup.started(leader)
    await setup.clock.until_sleeping()
    await setup.clock.advance(0.95)
    assert setup.rows() == []
    await setup.pass_time(leader, 0.1)
    [row] = setup.rows()
    assert (row["kind"], row["state"], row["scheduled_at"]) == ("k1", "available", BEGAN + SECOND)
    assert row["metadata"] == {"periodic": True, "river:periodic_job_id": "first"}


async def test_a_job_without_id_has_none_in_its_metadata(setup: Setup) -> None:
    leader = setup.leader(PeriodicJob(every(SECOND), lambda: InsertItem(RawArgs("k1", {}), metadata={"a": 1})))
    await setup.started(leader)
    await setup.pass_time(leader, 1)
    assert setup.rows()[0]["metadata"] == {"a": 1, "periodic": True}


async def test_options_of_the_item_hold(setup: Setup) -> None:
    at = BEGAN + HOUR

    def item(kind: str, **options: object) -> PeriodicJob:
        return PeriodicJob(every(SECOND), lambda: InsertItem(RawArgs(kind, {}), **options))  # type: ignore[arg-type]

    jobs = [item("at", scheduled_at=at), item("in", delay=HOUR), item("parked", pending=True, queue="q", priority=3)]
    leader = await setup.started(setup.leader(*jobs))
    await setup.pass_time(leader, 1)
    found = {row["kind"]: row for row in setup.rows()}
    assert (found["at"]["state"], found["at"]["scheduled_at"]) == ("scheduled", at)
    assert (found["in"]["state"], found["in"]["scheduled_at"] - found["in"]["created_at"]) == ("scheduled", HOUR)
    parked = found["parked"]
    assert (parked["state"], parked["queue"], parked["priority"]) == ("pending", "q", 3)
    assert parked["scheduled_at"] == BEGAN + SECOND


async def test_what_is_due_within_100_ms_goes_together_and_not_before_its_time(setup: Setup) -> None:
    early, late = job("k1", every(SECOND)), job("k2", every(timedelta(seconds=1.09)))
    leader = await setup.started(setup.leader(early, late))
    await setup.clock.until_sleeping()
    await setup.clock.advance(1.05)
    await setup.clock.until_sleeping()
    assert setup.rows() == []
    await setup.clock.advance(0.05)
    assert len(await leader.inserted.wait()) == 2


async def test_nothing_drifts_in_1000_runs(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1")))
    for _ in range(100):
        await setup.clock.until_sleeping()
        await setup.clock.advance(10.3)  # ten runs, the first of them late
        for _ in range(10):
            await leader.inserted.wait()
    assert setup.seconds()[:1000] == [float(second) for second in range(1, 1001)]


async def test_runs_of_a_leader_that_slept_are_inserted_once_each(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1"), job("k2", every(7 * SECOND))))
    await setup.clock.until_sleeping()
    setup.clock.jumped = 20.5 * SECOND
    await setup.pass_time(leader, 10)
    while leader.tried.waiting or len(setup.rows("k1")) < 30:
        await leader.tried.wait()
    assert setup.seconds("k1") == [float(second) for second in range(1, 31)]
    assert setup.seconds("k2") == [7, 14, 21, 28]


async def test_runs_beyond_the_limit_are_skipped_and_said_to_be(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("periodic_plan", "periodic_enqueuer"):
        monkeypatch.setattr(f"riverq.maintenance.{module}.CATCH_UP_LIMIT", 3)
    leader = await setup.started(setup.leader(job("k1", cron("* * * * *"), id="often")))
    await setup.clock.until_sleeping()
    setup.clock.jumped = HOUR + 30 * SECOND
    await setup.pass_time(leader, 10)
    for _ in range(3):
        await leader.inserted.wait()
    await setup.clock.until_sleeping()
    assert setup.seconds() == [60, 120, 180]
    assert "Skipping runs of 'often', which is behind by 3" in caplog.text
    await setup.pass_time(leader, 20)
    assert setup.seconds() == [60, 120, 180, 3660]


async def test_a_clock_that_is_set_back_inserts_nothing_again(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1")))
    await setup.pass_time(leader, 1)
    setup.clock.jumped = -HOUR
    for _ in range(3):
        await setup.pass_time(leader, 10)
    assert setup.seconds() == [1]
    setup.clock.jumped = timedelta(0)
    await setup.pass_time(leader, 10)
    assert setup.seconds()[:2] == [1, 2]


async def test_run_on_start_inserts_at_once_in_every_term(setup: Setup) -> None:
    leader = setup.leader(job("k1", every(HOUR), run_on_start=True), job("k2", never(), run_on_start=True))
    await setup.started(leader)
    await leader.stop()
    await setup.clock.advance(5)
    await setup.started(leader)
    assert setup.seconds("k1") == setup.seconds("k2") == [0, 5]
    await setup.clock.until_sleeping()
    setup.clock.jumped = HOUR
    await setup.pass_time(leader, 10)
    assert setup.seconds("k1") == [0, 5, 3605]
    assert setup.seconds("k2") == [0, 5]


async def test_the_next_leader_begins_after_now(setup: Setup) -> None:
    first = await setup.started(setup.leader(job("k1", cron("* * * * *"))))
    await first.stop()
    await setup.clock.advance(150)
    second = await setup.started(setup.leader(job("k1", cron("* * * * *"))))
    for _ in range(3):
        await setup.pass_time(second, 10)
    assert setup.seconds() == [180]


# -- making a run


async def test_args_are_made_for_each_run_and_none_skips_it(setup: Setup) -> None:
    asked: list[datetime] = []

    def make(at: datetime) -> RawArgs | None:
        asked.append(at)
        return None if len(asked) == 2 else RawArgs("k1", {"n": len(asked)})

    leader = await setup.started(setup.leader(PeriodicJob(every(SECOND), make)))
    for _ in range(3):
        await setup.pass_time(leader, 1)
    assert asked == [BEGAN + n * SECOND for n in (1, 2, 3)]
    assert [row["args"] for row in setup.rows()] == [{"n": 1}, {"n": 3}]
    assert setup.seconds() == [1, 3]


@pytest.mark.parametrize("bad", [RuntimeError("boom"), RawArgs("k1", {"a": object()}), object()])
async def test_a_run_that_cannot_be_made_holds_up_nobody_and_is_not_lost(
    setup: Setup, bad: object, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]

    def make() -> object:
        if not broken[0]:
            return RawArgs("k1", {})
        if isinstance(bad, Exception):
            raise bad
        return bad

    leader = await setup.started(setup.leader(PeriodicJob(every(3 * SECOND), make, id="broken"), job("k2")))
    await setup.pass_time(leader, 3)
    await leader.failed.wait()
    assert "Could not make a run of 'broken', trying again in" in caplog.text
    while len(setup.rows("k2")) < 3:
        await leader.tried.wait()
    assert setup.seconds("k1") == []
    broken[0] = False
    await setup.pass_time(leader, 1.2)
    while not setup.rows("k1"):
        await leader.tried.wait()
    assert setup.seconds("k1") == [3]


async def test_a_failing_run_is_tried_again_with_longer_waits(setup: Setup) -> None:
    def make() -> object:
        raise RuntimeError("boom")

    leader = await setup.started(setup.leader(PeriodicJob(every(SECOND), make)))
    await setup.pass_time(leader, 1)
    waits = []
    for _ in range(8):
        await leader.failed.wait()
        waits.append(leader._plans[0].not_before - setup.clock.monotonic())
        await setup.pass_time(leader, waits[-1])
    assert waits == [pytest.approx(each, rel=0.11) for each in (1, 2, 4, 8, 16, 30, 30, 30)]


async def test_a_make_args_that_hangs_is_left_alone_until_it_ends(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit, patience = 0.03, 30.0
    entered, free, calls = threading.Event(), threading.Event(), []

    def make() -> RawArgs:
        calls.append(1)
        entered.set()
        free.wait(patience)
        return RawArgs("k1", {})

    async def within_once_entered(seconds: float, what: str, operation: Coroutine[Any, Any, object]) -> object:
        if seconds != limit or entered.is_set():
            return await within(patience, what, operation)
        await asyncio.to_thread(entered.wait, patience)  # a machine that stalls may be slow to start the thread
        return await within(seconds, what, operation)

    monkeypatch.setattr("riverq.maintenance.periodic_enqueuer.MAKE_LIMIT", timedelta(seconds=limit))
    monkeypatch.setattr("riverq.maintenance.periodic_enqueuer.within", within_once_entered)
    leader = await setup.started(setup.leader(PeriodicJob(every(SECOND), make), job("k2")))
    await setup.pass_time(leader, 1)
    assert setup.seconds("k2") == [1]
    await setup.pass_time(leader, 1.2)
    assert "still runs since the last time" in caplog.text
    assert len(calls) == 1
    free.set()
    await asyncio.wrap_future(leader._plans[0].making)  # type: ignore[arg-type]  # it was called
    while not setup.rows("k1"):
        await setup.clock.until_sleeping()
        await setup.clock.advance(1)
        await leader.tried.wait()
    assert setup.seconds("k1")[0] == 1


@pytest.mark.parametrize("answer", [BEGAN, BEGAN.replace(tzinfo=None) + HOUR, "soon"])
async def test_a_schedule_that_answers_nonsense_does_not_spin(setup: Setup, answer: object) -> None:
    class Odd:
        asked = 0

        def next(self, _after: datetime, /) -> datetime | None:
            self.asked += 1
            return answer  # type: ignore[return-value]  # on purpose

    odd = Odd()
    leader = await setup.started(setup.leader(job("k1", odd), job("k2")))
    await leader.failed.wait()
    await setup.pass_time(leader, 1)
    assert setup.seconds() == [1]
    assert odd.asked <= 3


# -- what runs are registered


async def test_changes_take_effect_at_once_from_any_thread(setup: Setup) -> None:
    leader = await setup.started(setup.leader())
    jobs = leader._jobs
    await setup.clock.until_sleeping()
    handle = await asyncio.to_thread(jobs.add, job("k1", id="first", run_on_start=True))
    assert await leader.inserted.wait() == [BEGAN]
    await setup.pass_time(leader, 1)
    assert [each.next_run_at for each in jobs.list()] == [BEGAN + 2 * SECOND]
    assert await asyncio.to_thread(jobs.remove, handle)
    await setup.pass_time(leader, 10)
    assert setup.seconds() == [0, 1]
    jobs.add(job("k2", id="first"))
    await leader.planned.wait()
    jobs.clear()
    await leader.tried.wait()
    await setup.pass_time(leader, 10)
    assert setup.rows("k2") == []


async def test_a_job_that_is_removed_while_it_is_due_is_not_inserted(setup: Setup) -> None:
    def make() -> RawArgs:
        leader._jobs.remove_by_id("first")
        return RawArgs("k1", {})

    leader = setup.leader(PeriodicJob(every(SECOND), make, id="first"), job("k2"))
    await setup.started(leader)
    await setup.pass_time(leader, 1)
    assert setup.seconds("k2") == [1]
    assert setup.rows("k1") == []


async def test_next_runs_are_shown_while_leading(setup: Setup) -> None:
    leader = await setup.started(setup.leader(job("k1", every(HOUR))))
    await setup.clock.until_sleeping()
    await setup.clock.advance(10)
    assert [each.next_run_at for each in leader._jobs.list()] == [BEGAN + HOUR]
    await leader.stop()
    assert [each.next_run_at for each in leader._jobs.list()] == [BEGAN + 10 * SECOND + HOUR]


# -- through the client's insert path


class Spy:
    """Middleware that notes what passes, and where."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], str]] = []
        self.results: list[InsertResult] = []

    def insert(self, params: list[InsertParams], call_next: object) -> list[InsertResult]:
        self.seen.append(([each.kind for each in params], threading.current_thread().name))
        self.results = call_next(params)  # type: ignore[operator]  # it is
        return self.results


class AsyncSpy(Spy):
    async def insert(self, params: list[InsertParams], call_next: object) -> list[InsertResult]:  # type: ignore[override]
        self.seen.append(([each.kind for each in params], threading.current_thread().name))
        self.results = await call_next(params)  # type: ignore[operator]  # it is
        return self.results


async def test_middleware_of_a_sync_client_runs_in_a_thread(setup: Setup) -> None:
    spy = Spy()
    leader = setup.leader(job("k1"), job("k2"), adapter="pg8000", middleware=[spy], may_block=True)
    await setup.started(leader)
    await setup.pass_time(leader, 1)
    [(kinds, thread)] = spy.seen
    assert kinds == ["k1", "k2"]
    assert thread.startswith("riverq_periodic")
    assert [result.job.kind for result in spy.results] == ["k1", "k2"]


@pytest.mark.parametrize("spy", [Spy(), AsyncSpy()])
async def test_middleware_of_an_async_client_runs_in_the_loop(setup: Setup, spy: Spy) -> None:
    leader = await setup.started(setup.leader(job("k1"), middleware=[spy]))
    await setup.pass_time(leader, 1)
    assert spy.seen == [(["k1"], threading.current_thread().name)]
    assert setup.seconds() == [1]


async def test_producers_are_told(setup: Setup) -> None:
    setup.table.conn.execute(f'LISTEN "{setup.schema}.river_insert"')
    leader = await setup.started(setup.leader(job("k1")))
    await setup.pass_time(leader, 1)
    told = audible([{"queue": "default"}])
    assert [
        json.loads(note.payload) for note in setup.table.conn.notifies(timeout=20 if told else 0, stop_after=1)
    ] == told


async def test_a_unique_job_is_inserted_once_by_two_leaders(setup: Setup) -> None:
    def make() -> InsertItem:
        return InsertItem(RawArgs("k1", {}), unique_opts=UniqueOpts(by_period=MINUTE))

    leaders = [setup.leader(PeriodicJob(every(MINUTE), make), adapter=name) for name in ("psycopg_async", "asyncpg")]
    for leader in leaders:
        await setup.started(leader)
    await setup.clock.until_sleeping(2)
    setup.clock.jumped = 50 * SECOND  # a leader may be early by as much as it looks ahead: the window is the target's
    await setup.clock.advance(10)
    for leader in leaders:
        await leader.inserted.wait()
    assert setup.seconds() == [60]
