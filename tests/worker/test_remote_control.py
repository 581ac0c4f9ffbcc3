from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.query.queue import queue_get
from riverq.service.timeout import within
from riverq.worker import producer as producer_module
from riverq.worker import remote_control
from riverq.worker.producer import Producer
from tests.worker.harness import NEVER, Blocking, House, Raw, run_sql, until


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


@pytest.mark.listens
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


@pytest.mark.listens
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
    await until(lambda: notifier.is_delivering)  # else its probe would be cut off in the middle of connecting


@pytest.mark.listens
async def test_a_pause_between_the_first_read_and_the_listen_is_read(house: House) -> None:
    """The producer has read its queue, and nobody listens yet: the pause is neither in what it read, nor heard."""
    notifier = house.notifier()
    producer = house.producer(notifier, fetch_poll_interval=NEVER)
    producer.control.interval = NEVER
    await house.start(house.completer, producer)
    assert await producer.control.read.wait() is False
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    house.rows.notify("river_control", json.dumps({"action": "pause", "queue": "default"}))
    await house.start(notifier)
    while not await producer.control.read.wait():
        pass
    await until(lambda: producer.stats.paused)  # not before the claim that the same LISTEN brought about is over
    await until(lambda: notifier.is_delivering)


async def test_a_locked_queue_row_holds_up_neither_the_start_nor_cancellations(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has paused the queue in a transaction that stays open; touching its row would wait for that."""

    def touching_briefly(seconds: float, what: str, operation: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        return within(0.1 if what.startswith("touching") else seconds, what, operation)

    monkeypatch.setattr(remote_control, "TOUCH_AGAIN", timedelta(milliseconds=1))
    house.rows.sql("INSERT INTO QUEUE (name, created_at, updated_at) VALUES ('default', now(), now()) RETURNING name")
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer()
    with monkeypatch.context() as while_locked, house.rows.other() as other:
        while_locked.setattr(remote_control, "within", touching_briefly)
        run_sql(other, house.rows.schema, "UPDATE QUEUE SET paused_at = now()")
        await cancelled_by_polling(house, producer, worker, job_id)
        await house.settled.wait()
        assert house.rows.get(job_id)["state"] == "cancelled"
        assert not producer.stats.paused
        await until(lambda: "touching the queue's row took longer than 0.1 s" in caplog.text)
        other.commit()
    await until(lambda: producer.stats.paused)


@pytest.mark.listens
async def test_a_queue_that_cannot_be_touched_is_read_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifications are delivered, and none came: only the failed touch makes that read due."""
    notifier = house.notifier()
    notifier.delivering_changed.watch()
    producer = house.producer(notifier)
    producer.control.interval = NEVER
    await house.start(notifier, producer)
    while not await notifier.delivering_changed.wait():
        pass
    for _ in range(2):  # at the start, and when the topic began to be listened to
        await producer.control.read.wait()

    def failing(conn: sa.Connection, schema: str, name: str) -> Any:
        raise UnavailableError("no right to write")

    monkeypatch.setattr(remote_control, "queue_create_or_touch", failing)
    producer.control._touch_due = 0.0
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    producer.control.interval = timedelta(milliseconds=5)
    producer.control._wake.set()
    await until(lambda: producer.control.paused)


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
    assert "Failed to read its state" in caplog.text


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


@pytest.mark.listens
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


async def test_more_jobs_than_one_look_takes_are_all_looked_at(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_control, "LOOK_BATCH", 2)
    worker = Blocking(house)
    ids = house.rows.insert(count=5)
    producer = house.producer()
    producer.control.interval = NEVER
    await house.start(house.completer, producer)
    await worker.wait(5)
    house.rows.cancel_running(ids[0])
    house.rows.steal(ids[2])
    house.rows.steal(ids[4])
    producer.look_at_everything()
    assert await producer.control.checked.wait() == 5
    await until(lambda: len(producer.running_ids) == 2)
    assert sorted(producer.running_ids) == [ids[1], ids[3]]
    assert sorted(worker.reasons, key=str) == ["cancelled", "lost", "lost"]
    worker.go_on.set()


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
