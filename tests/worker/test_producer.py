from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.notification import insert_payload
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.worker import producer as producer_module
from riverq.worker import remote_control
from riverq.worker.producer_config import ProducerConfig
from tests.service.stress import stress_start_stop
from tests.worker.harness import NEVER, Blocking, House, Raw, run_sql, until


def test_defaults() -> None:
    config = ProducerConfig(queue="default", max_workers=3)
    assert (config.fetch_cooldown, config.fetch_poll_interval) == (timedelta(milliseconds=100), timedelta(seconds=1))
    assert config.fetch_eager
    with pytest.raises(ValueError, match="expected max_workers to be an integer from 1 to 10000, got: 0"):
        ProducerConfig(queue="default", max_workers=0)


async def test_start_stop_stress(house: House) -> None:
    await stress_start_stop(house.producer(), tasks=4, rounds=5)


async def test_jobs_are_worked_on_every_adapter(any_house: House) -> None:
    house = any_house
    done: list[str] = []

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        done.append("loop")

    @house.workers.work(kind="thread")
    def work_in_thread(job: Raw) -> None:
        done.append("thread")

    house.rows.insert(count=30)
    house.rows.insert(count=30, kind="thread")
    producer = house.producer()
    await house.start(house.completer, producer)
    for _ in range(60):
        await house.settled.wait()
    assert house.rows.states() == {"completed": 60}
    assert sorted(done) == ["loop"] * 30 + ["thread"] * 30
    await producer.stop()
    stats = producer.stats
    assert (stats.claimed, stats.ended, stats.running, stats.failed_claims) == (60, 60, 0, 0)


async def test_only_its_queue_and_never_more_than_its_slots(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(count=5)
    house.rows.insert(count=2, queue="other")
    await house.start(house.completer, house.producer(max_workers=3))
    await worker.wait(3)
    assert house.rows.states() == {"running": 3, "available": 4}
    worker.go_on.set()
    await worker.wait(2)
    for _ in range(5):
        await house.settled.wait()
    assert house.rows.states() == {"completed": 5, "available": 2}


async def test_a_full_claim_is_followed_at_once_by_the_next(house: House) -> None:
    """The cooldown and the poll interval are an hour, so only the eager rule can bring the second half."""

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None: ...

    house.rows.insert(count=25)
    producer = house.producer(max_workers=10, fetch_cooldown=NEVER, fetch_poll_interval=NEVER)
    await house.start(house.completer, producer)
    for _ in range(25):
        await house.settled.wait()
    assert house.rows.states() == {"completed": 25}
    claims = [await producer.claimed.wait() for _ in range(producer.claimed.waiting)]
    assert max(claims) == 10
    assert sum(claims) == 25


async def test_without_eagerness_the_cooldown_holds(house: House) -> None:
    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None: ...

    house.rows.insert(count=25)
    config: dict[str, Any] = {"fetch_cooldown": NEVER, "fetch_poll_interval": NEVER, "fetch_eager": False}
    await house.start(house.completer, house.producer(max_workers=10, **config))
    producer = house.services[-1]
    for _ in range(10):
        await house.settled.wait()
    await producer.stop()
    assert house.rows.states() == {"completed": 10, "available": 15}
    assert producer.stats.claims == 1


@pytest.mark.listens
async def test_an_insert_notification_wakes_only_its_queue(house: House) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    notifier = house.notifier()
    notifier.delivering_changed.watch()
    await house.start(house.completer, notifier)
    config: dict[str, Any] = {"fetch_poll_interval": NEVER, "fetch_cooldown": timedelta(milliseconds=1)}
    mine = house.producer(notifier, **config)
    other = house.producer(notifier, queue="other", **config)
    await house.start(mine, other)
    while not await notifier.delivering_changed.wait():
        pass
    await until(lambda: mine.claimed.waiting and other.claimed.waiting)
    before = other.stats.claims
    house.rows.insert()
    house.rows.notify("river_insert", insert_payload("default"))
    await worker.wait()
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1}
    assert other.stats.claims <= before + 1  # the gap at the connect may have asked for one


async def test_a_short_retry_is_fetched_by_a_local_timer(house: House) -> None:
    """Nothing is polled and nobody notifies."""

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        if job.row.attempt == 1:
            raise ValueError("once")

    class Soon:
        def next_retry(self, row: Any, *, rng: Any) -> timedelta:
            return timedelta(milliseconds=30)

    house.executor_config = type(house.executor_config)(retry_policy=Soon())
    [job_id] = house.rows.insert()
    await house.start(
        house.completer, house.producer(fetch_poll_interval=NEVER, fetch_cooldown=timedelta(milliseconds=1))
    )
    for _ in range(2):
        await house.settled.wait()
    row = house.rows.get(job_id)
    assert (row["state"], row["attempt"], len(row["errors"])) == ("completed", 2, 1)


async def test_a_claim_that_fails_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    real = job_get_available
    failures: list[int] = []

    def failing(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        if len(failures) < 2:
            failures.append(1)
            raise UnavailableError("the server went away")
        return real(conn, schema, **given)

    monkeypatch.setattr(producer_module, "job_get_available", failing)
    house.rows.insert()
    short = timedelta(milliseconds=5)
    producer = house.producer(fetch_poll_interval=short, fetch_cooldown=short)
    await house.start(house.completer, producer)
    await house.settled.wait()
    assert producer.stats.failed_claims == 2


async def test_a_stalled_claim_ends(house: House) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    house.rows.insert()
    short = timedelta(milliseconds=30)
    producer = house.producer(fetch_timeout=short, fetch_poll_interval=NEVER, fetch_cooldown=short)
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        await house.start(house.completer, producer)
        assert await producer.claimed.wait() == -1
        other.commit()
    producer.reconfigure(replace(producer.config, fetch_timeout=NEVER))  # which makes a fetch due
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1}


async def test_stop_claims_no_more_and_waits_for_what_runs(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert()
    producer = house.producer()
    await house.start(house.completer, producer)
    await worker.wait()
    stopping = asyncio.create_task(producer.stop())
    assert await producer.waiting_for_jobs.wait() == 1
    house.rows.insert()
    producer.trigger()
    assert not stopping.done()
    worker.go_on.set()
    await stopping
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1, "available": 1}


async def test_a_cancel_during_the_stop_still_arrives(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    await worker.wait()
    stopping = asyncio.create_task(producer.stop())
    await producer.waiting_for_jobs.wait()
    house.rows.cancel_running(job_id)
    await stopping
    await house.settled.wait()
    assert house.rows.get(job_id)["state"] == "cancelled"


SOMEBODY_WAITS = """SELECT 1 FROM pg_locks WHERE NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
"""For a lock on a table of this database: other test processes have their own on the same server."""


async def test_stop_and_cancel_gives_running_jobs_back(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(count=3)
    producer = house.producer()
    await house.start(house.completer, producer)
    await worker.wait(3)
    stopping = asyncio.create_task(producer.stop())
    await producer.waiting_for_jobs.wait()
    producer.cancel_jobs()
    await stopping
    await house.completer.stop()
    found = house.rows.sql("SELECT state::text, attempt, errors, finalized_at FROM JOB")
    assert found == [{"state": "available", "attempt": 0, "errors": None, "finalized_at": None}] * 3


async def test_jobs_of_a_claim_under_way_are_given_back_by_a_hard_stop(house: House) -> None:
    began: list[int] = []

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        began.append(job.id)

    house.rows.insert(count=2)
    producer = house.producer(fetch_timeout=timedelta(seconds=30))
    producer.control.interval = NEVER
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        await house.start(house.completer, producer)
        await until(lambda: house.rows.sql(SOMEBODY_WAITS))
        producer.cancel_jobs()
        stopping = asyncio.create_task(producer.stop())
        await asyncio.sleep(0)
        other.commit()
    await stopping
    await house.completer.stop()
    assert began == []
    assert house.rows.sql("SELECT DISTINCT state::text, attempt FROM JOB") == [{"state": "available", "attempt": 0}]
    assert producer.stats.claimed == 2


async def test_a_claim_under_way_at_a_graceful_stop_is_worked(house: House) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    house.rows.insert(count=2)
    producer = house.producer(fetch_timeout=timedelta(seconds=30))
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        await house.start(house.completer, producer)
        await until(lambda: house.rows.sql(SOMEBODY_WAITS))
        stopping = asyncio.create_task(producer.stop())
        await asyncio.sleep(0)
        other.commit()
    await stopping
    await house.completer.stop()
    assert house.rows.states() == {"completed": 2}


async def test_a_stop_waits_for_the_jobs_of_a_claim_under_way_too(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """All jobs that ran at the stop have ended before the claim brings others."""
    worker = Blocking(house)
    house.rows.insert()
    producer = house.producer(fetch_timeout=timedelta(seconds=30), fetch_poll_interval=NEVER)
    producer.control.interval = NEVER
    await house.start(house.completer, producer)
    await worker.wait()
    house.rows.insert(count=2)
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        producer.trigger()
        await until(lambda: house.rows.sql(SOMEBODY_WAITS))
        stopping = asyncio.create_task(producer.stop())
        await asyncio.sleep(0)
        worker.go_on.set()
        await until(lambda: producer.stats.ended == 1)
        worker.go_on.clear()
        other.commit()
    await worker.wait(2)
    assert await producer.waiting_for_jobs.wait() == 2
    for _ in range(50):
        await asyncio.sleep(0)  # all the turns that ending needs
    assert "Left jobs at work" not in caplog.text
    worker.go_on.set()
    await stopping
    await house.completer.stop()
    assert house.rows.states() == {"completed": 3}


async def test_a_thread_that_does_not_end_is_left_and_named(house: House, caplog: pytest.LogCaptureFixture) -> None:
    began, go_on = threading.Event(), threading.Event()

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        began.set()
        go_on.wait(10)

    [job_id] = house.rows.insert()
    producer = house.producer()
    await house.start(house.completer, producer)
    await asyncio.to_thread(began.wait, 10)
    stopping = asyncio.create_task(producer.stop())
    await producer.waiting_for_jobs.wait()
    producer.cancel_jobs()
    assert producer.leave() == [job_id]
    await stopping
    assert f"job_id=[{job_id}]" in caplog.text
    assert house.rows.get(job_id)["state"] == "running"
    go_on.set()
    await house.settled.wait()


async def test_a_producer_works_again_after_a_stop(house: House) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    producer = house.producer()
    await house.start(house.completer, producer)
    producer.cancel_jobs()
    await producer.stop()
    house.rows.insert()
    await producer.start()
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1}


async def test_a_start_without_a_database_fails_and_can_be_repeated(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = house.notifier()
    subscribed: list[Any] = []
    subscribe = notifier.subscribe

    def counted(*given: Any, **options: Any) -> Any:
        end = subscribe(*given, **options)
        subscribed.append(end)

        def unsubscribe() -> None:
            subscribed.remove(end)
            end()

        return unsubscribe

    monkeypatch.setattr(notifier, "subscribe", counted)
    producer = house.producer(notifier)

    def unavailable(conn: sa.Connection, schema: str, name: str) -> Any:
        raise UnavailableError("no server")

    with monkeypatch.context() as patch:
        patch.setattr(remote_control, "queue_create_or_touch", unavailable)
        with pytest.raises(UnavailableError):
            await producer.start()
    assert (producer.is_running, subscribed) == (False, [])
    await house.start(producer)
