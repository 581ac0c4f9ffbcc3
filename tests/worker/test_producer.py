from __future__ import annotations

import asyncio
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq import Job
from riverq.errors import UnavailableError
from riverq.notification import insert_payload
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.query.queue import queue_get
from riverq.worker import producer as producer_module
from riverq.worker import remote_control
from riverq.worker.producer import Producer, ProducerConfig
from tests.service.stress import stress_start_stop
from tests.worker.harness import House, run_sql, until

Raw = Job[dict[str, Any]]
NEVER = timedelta(hours=1)


class Blocking:
    """An `async def` worker that waits until it may go on."""

    def __init__(self, house: House) -> None:
        self.began: asyncio.Queue[int] = asyncio.Queue()
        self.go_on = asyncio.Event()
        self.reasons: list[str | None] = []

        @house.workers.work(kind="echo", timeout=NEVER)
        async def work(job: Raw) -> None:
            self.began.put_nowait(job.id)
            try:
                await self.go_on.wait()
            finally:
                self.reasons.append(job.cancelled.reason)

    async def wait(self, count: int = 1) -> list[int]:
        return [await asyncio.wait_for(self.began.get(), 10) for _ in range(count)]


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
    for _ in range(10):
        await house.settled.wait()
    assert house.rows.states() == {"completed": 10, "available": 15}


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
    producer = house.producer(fetch_timeout=short, fetch_poll_interval=short, fetch_cooldown=short)
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        await house.start(house.completer, producer)
        assert await producer.claimed.wait() == -1
        other.commit()
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1}


# -- pause and resume


async def test_a_queue_that_is_paused_at_the_start_is_not_fetched(house: House) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    house.rows.insert()
    house.rows.sql(
        "INSERT INTO QUEUE (name, created_at, updated_at, paused_at) VALUES ('default', now(), now(), now())"
        " RETURNING name"
    )
    short = timedelta(milliseconds=5)
    producer = house.producer(fetch_poll_interval=short, fetch_cooldown=short)
    heard: list[bool] = []
    producer.on_pause = heard.append
    producer.control.interval = short
    await house.start(house.completer, producer)
    for _ in range(5):
        await producer.control.read.wait()
    assert (producer.stats.claims, producer.stats.paused) == (0, True)
    house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
    await house.settled.wait()
    assert heard == [True, False]


@pytest.mark.parametrize("name", ["default", "*"])
async def test_pause_and_resume_by_notification(house: House, name: str) -> None:
    worker = Blocking(house)
    worker.go_on.set()
    notifier = house.notifier()
    notifier.delivering_changed.watch()
    producer = house.producer(notifier, fetch_poll_interval=NEVER, fetch_cooldown=timedelta(milliseconds=1))
    producer.control.interval = NEVER
    await house.start(house.completer, notifier, producer)
    while not await notifier.delivering_changed.wait():
        pass
    await until(lambda: producer.claimed.waiting)
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    house.rows.notify("river_control", json.dumps({"action": "pause", "queue": name}))
    while not await producer.control.read.wait():
        pass
    house.rows.insert()
    producer.trigger()
    house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
    house.rows.notify("river_control", json.dumps({"action": "resume", "queue": name}))
    await house.settled.wait()


async def test_a_pause_missed_while_the_listener_was_away_is_read(house: House) -> None:
    notifier = house.notifier()
    notifier.connected.watch()
    producer = house.producer(notifier, fetch_poll_interval=NEVER)
    producer.control.interval = NEVER
    await house.start(house.completer, notifier, producer)
    await notifier.connected.wait()
    for _ in range(2):  # at the start, and when the topic began to be listened to
        await producer.control.read.wait()
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    house.rows.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE 'LISTEN%%' AND pid <> pg_backend_pid()"
    )
    await notifier.connected.wait()
    while not await producer.control.read.wait():
        pass
    assert producer.control.paused


async def test_a_deleted_queue_row_comes_back(house: House) -> None:
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(producer)
    house.rows.sql("DELETE FROM QUEUE WHERE true RETURNING name")
    await until(lambda: house.rows.sql("SELECT name FROM QUEUE"))


async def test_reading_the_state_survives_an_outage(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(producer)
    real = queue_get
    failures: list[int] = []

    def failing(conn: sa.Connection, schema: str, name: str) -> Any:
        if not failures:
            failures.append(1)
            raise UnavailableError("the server went away")
        return real(conn, schema, name)

    monkeypatch.setattr(remote_control, "queue_get", failing)
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    await until(lambda: producer.control.paused)
    assert "Could not read the state of queue default" in caplog.text


# -- cancelled and lost


async def cancelled_by_polling(house: House, producer: Producer, worker: Blocking, job_id: int) -> None:
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    assert await worker.wait() == [job_id]
    house.rows.cancel_running(job_id)


async def test_a_remote_cancel_is_found_without_notifications(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    await cancelled_by_polling(house, house.producer(), worker, job_id)
    await house.settled.wait()
    row = house.rows.get(job_id)
    assert (row["state"], row["errors"][0]["error"]) == ("cancelled", "JobCancelError: job cancelled remotely")
    assert worker.reasons == ["cancelled"]


async def test_a_mark_from_before_the_claim_does_not_cancel(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(metadata='{"cancel_attempted_at": "2026-01-01T00:00:00Z"}')
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    await worker.wait()
    for _ in range(3):
        assert await producer.control.checked.wait() == 1
    worker.go_on.set()
    await house.settled.wait()
    assert (house.rows.states(), worker.reasons) == ({"completed": 1}, [None])


async def test_a_remote_cancel_by_notification(house: House) -> None:
    worker = Blocking(house)
    [first, second] = house.rows.insert(count=2)
    notifier = house.notifier()
    notifier.delivering_changed.watch()
    producer = house.producer(notifier)
    producer.control.interval = NEVER
    await house.start(house.completer, notifier, producer)
    await worker.wait(2)
    while not await notifier.delivering_changed.wait():
        pass
    payload = {"action": "cancel", "job_id": first, "queue": "default"}
    house.rows.notify("river_control", json.dumps(payload))  # nothing was cancelled: a notification is only a hint
    assert await producer.control.checked.wait() > 0
    house.rows.cancel_running(first)
    house.rows.notify("river_control", json.dumps({**payload, "queue": "*"}))  # not this queue's business
    house.rows.notify("river_control", json.dumps(payload))
    await house.settled.wait()
    assert house.rows.get(first)["state"] == "cancelled"
    assert producer.running_ids == [second]
    worker.go_on.set()
    await house.settled.wait()


async def test_a_cancel_that_arrives_during_the_claim(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was heard after the claim's commit and before its rows were known here: the job does not begin."""
    worker = Blocking(house)
    worker.go_on.set()
    [first, second] = house.rows.insert(count=2)
    loop = asyncio.get_running_loop()
    real = job_get_available
    producer = house.producer()
    producer.control.interval = NEVER

    def heard_meanwhile(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        rows = real(conn, schema, **given)
        if rows:
            house.rows.cancel_running(first)
            payload = json.dumps({"action": "cancel", "job_id": first, "queue": "default"})
            loop.call_soon_threadsafe(producer.control._heard, payload)
        return rows

    monkeypatch.setattr(producer_module, "job_get_available", heard_meanwhile)
    await house.start(house.completer, producer)
    for _ in range(2):
        await house.settled.wait()
    assert (house.rows.get(first)["state"], house.rows.get(second)["state"]) == ("cancelled", "completed")
    assert await worker.wait() == [second]
    assert worker.began.empty()


async def test_a_run_that_was_taken_is_ended_as_lost(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    await worker.wait()
    house.rows.steal(job_id)
    before = house.rows.get(job_id)
    assert (await house.settled.wait()).lost
    assert (house.rows.get(job_id), worker.reasons) == (before, ["lost"])


async def test_a_job_rescued_and_claimed_again_by_the_same_client(house: House) -> None:
    """The older run is told that it is lost; the newer one completes."""
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer(fetch_cooldown=timedelta(milliseconds=1))
    producer.control.interval = NEVER
    await house.start(house.completer, producer)
    await worker.wait()
    house.rows.sql("UPDATE JOB SET state = 'available' WHERE id = %(id)s RETURNING id", id=job_id)
    producer.trigger()
    await worker.wait()
    assert (await house.settled.wait()).lost
    assert producer.stats.running == 1
    worker.go_on.set()
    assert not (await house.settled.wait()).lost
    assert (house.rows.states(), worker.reasons) == ({"completed": 1}, ["lost", None])


async def test_a_run_that_its_own_transaction_completed_is_not_called_lost(house: House) -> None:
    committed, go_on = threading.Event(), threading.Event()
    engine = sa.create_engine(sa.make_url(house.rows.url).set(drivername="postgresql+psycopg"))
    reasons: list[Any] = []

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        with engine.connect() as conn:
            job.complete(session=conn)
            conn.commit()
        committed.set()
        go_on.wait(10)
        reasons.append(job.cancelled.reason)

    house.rows.insert()
    producer = house.producer()
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    await asyncio.to_thread(committed.wait, 10)
    for _ in range(producer.control.checked.waiting + 2):
        await producer.control.checked.wait()
    go_on.set()
    assert not (await house.settled.wait()).lost
    engine.dispose()
    assert reasons == [None]


# -- stopping


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
        await until(lambda: house.rows.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))
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
        await until(lambda: house.rows.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))
        stopping = asyncio.create_task(producer.stop())
        await asyncio.sleep(0)
        other.commit()
    await stopping
    await house.completer.stop()
    assert house.rows.states() == {"completed": 2}


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
    assert f"their rows stay running and will be rescued: [{job_id}]" in caplog.text
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
    producer = house.producer(notifier)

    def unavailable(conn: sa.Connection, schema: str, name: str) -> Any:
        raise UnavailableError("no server")

    with monkeypatch.context() as patch:
        patch.setattr(remote_control, "queue_create_or_touch", unavailable)
        with pytest.raises(UnavailableError):
            await producer.start()
    assert (producer.is_running, notifier._subscriptions) == (False, [])
    await house.start(producer)
