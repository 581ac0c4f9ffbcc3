"""Every way in which a cancellation by another client can come, each forced: none may be missed, none invented."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.notifier import Notifier
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.query.job_read import RunStatus, job_run_status
from riverq.worker import producer as producer_module
from riverq.worker import remote_control
from riverq.worker.producer import Producer
from tests.worker.harness import NEVER, Blocking, House, run_sql, until

MARK = "2026-01-01T00:00:00Z"


def payload(job_id: int, **options: Any) -> str:
    return json.dumps({"action": "cancel", "job_id": job_id, "queue": "default"}, **options)


async def listening(house: House, **config: Any) -> tuple[Producer, Notifier]:
    """A producer that is told of everything, and looks at nothing by itself any more."""
    notifier = house.notifier()
    notifier.delivering_changed.watch()
    producer = house.producer(notifier, **config)
    producer.control.interval = NEVER
    await house.start(house.completer, notifier, producer)
    while not await notifier.delivering_changed.wait():
        pass
    return producer, notifier


async def cancelled(house: House, job_id: int) -> None:
    settled = await house.settled.wait()
    assert settled.finished.context.claimed.id == job_id
    assert house.rows.get(job_id)["state"] == "cancelled"


def test_without_notifications_it_is_looked_up_every_two_seconds(house: House) -> None:
    assert house.producer().control.interval == timedelta(seconds=2)


# Go writes no spaces, Python's json does; keys may come in any order, with others that nobody knows yet.
PAYLOADS: dict[str, Callable[[int], str]] = {
    "compact": lambda job_id: payload(job_id, separators=(",", ":")),
    "spaced": payload,
    "other order": lambda job_id: f'{{"queue":"default","reason":"x","job_id":{job_id},"action":"cancel"}}',
}


@pytest.mark.listens
@pytest.mark.parametrize("form", PAYLOADS)
async def test_from_a_client_in_any_language(house: House, form: str) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    await listening(house)
    await worker.wait()
    house.rows.cancel_running(job_id)
    house.rows.notify("river_control", PAYLOADS[form](job_id))
    await cancelled(house, job_id)
    assert worker.reasons == ["cancelled"]


@pytest.mark.listens
async def test_on_every_adapter(any_house: House) -> None:
    house = any_house
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    if house.driver.capabilities.listen:
        await listening(house)
    else:
        producer = house.producer()
        producer.control.interval = timedelta(milliseconds=5)
        await house.start(house.completer, producer)
    await worker.wait()
    house.rows.cancel_running(job_id)
    house.rows.notify("river_control", payload(job_id))
    await cancelled(house, job_id)


@pytest.mark.listens
async def test_in_a_transaction_it_counts_from_the_commit(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer, _ = await listening(house)
    await worker.wait()
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, f'UPDATE JOB SET metadata = \'{{"cancel_attempted_at": "{MARK}"}}\'')
        other.execute("SELECT pg_notify(%s, %s)", (f"{house.rows.schema}.river_control", payload(job_id)))
        while producer.control.checked.waiting:
            await producer.control.checked.wait()
        producer.look_at_everything()
        assert await producer.control.checked.wait() == 1
        assert (worker.reasons, house.rows.states()) == ([], {"running": 1})
        other.commit()
    await cancelled(house, job_id)


@pytest.mark.listens
async def test_during_a_stop_that_waits_for_the_job(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer, _ = await listening(house)
    await worker.wait()
    stopping = asyncio.create_task(producer.stop())
    await producer.waiting_for_jobs.wait()
    house.rows.cancel_running(job_id)
    house.rows.notify("river_control", payload(job_id))
    await stopping
    await cancelled(house, job_id)


@pytest.mark.listens
async def test_while_nobody_listened(house: House) -> None:
    """Marked after the listener's connection was gone and before there was another: nobody heard of it."""
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    _, notifier = await listening(house)
    await worker.wait()
    make, gate = house.driver.listener, asyncio.Event()

    class Held:
        """A listener that connects when the gate is open."""

        def __init__(self) -> None:
            self._real = make(house.engine)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        async def connect(self) -> None:
            await gate.wait()
            await self._real.connect()

    notifier._make_listener = Held
    notifier.disconnected.watch()
    house.rows.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE 'LISTEN%%' AND pid <> pg_backend_pid()"
    )
    await notifier.disconnected.wait()
    house.rows.cancel_running(job_id)
    house.rows.notify("river_control", payload(job_id))
    assert worker.reasons == []
    gate.set()
    await cancelled(house, job_id)
    await until(lambda: notifier.is_delivering)


@pytest.mark.listens
async def test_of_a_job_retried_after_an_earlier_cancellation(house: House) -> None:
    """The old mark is in the row when it is claimed, and cancels nothing; a new one does."""
    worker = Blocking(house)
    [job_id] = house.rows.insert(metadata=json.dumps({"cancel_attempted_at": MARK}))
    producer, _ = await listening(house)
    await worker.wait()
    while producer.control.checked.waiting:
        await producer.control.checked.wait()
    house.rows.notify("river_control", payload(job_id))
    assert await producer.control.checked.wait() == 1
    assert worker.reasons == []
    house.rows.cancel_running(job_id, "2026-01-01T00:00:01Z")
    house.rows.notify("river_control", payload(job_id, separators=(",", ":")))
    await cancelled(house, job_id)


@pytest.mark.listens
async def test_ten_thousand_at_once_for_jobs_that_run_elsewhere(house: House) -> None:
    worker = Blocking(house)
    mine = house.rows.insert(count=10)
    producer, _ = await listening(house)
    await worker.wait(10)
    house.rows.cancel_running(mine[7])
    while producer.control.checked.waiting:
        await producer.control.checked.wait()
    text = (
        'SELECT count(pg_notify(%(channel)s, \'{"action":"cancel","queue":"default","job_id":\' || n || \'}\')) '
        "FROM generate_series(1000, 11000) AS n"
    )
    house.rows.sql(text, channel=f"{house.rows.schema}.river_control")
    with psycopg.connect(house.rows.url) as other:  # one transaction: they arrive together, ours in the middle
        for first in (20_000, 30_000):
            more = f"FROM generate_series({first}, {first + 5000}) AS n"
            run_sql(
                other, house.rows.schema, text.split("FROM", 1)[0] + more, channel=f"{house.rows.schema}.river_control"
            )
            if first == 20_000:
                other.execute("SELECT pg_notify(%s, %s)", (f"{house.rows.schema}.river_control", payload(mine[7])))
    await cancelled(house, mine[7])
    assert producer.control._asked <= {mine[7]}  # a look for something else may have found its mark before it was heard
    await until(lambda: not producer.control._asked)
    assert sorted(producer.running_ids) == sorted(set(mine) - {mine[7]})
    worker.go_on.set()
    for _ in range(9):
        await house.settled.wait()


@pytest.mark.listens
async def test_all_of_a_thousand_running_jobs(house: House) -> None:
    worker = Blocking(house)
    mine = house.rows.insert(count=1000)
    producer, _ = await listening(house, max_workers=1000)
    await worker.wait(1000)
    house.rows.sql("UPDATE JOB SET metadata = %(mark)s RETURNING id", mark=json.dumps({"cancel_attempted_at": MARK}))
    for job_id in mine:
        house.rows.notify("river_control", payload(job_id))
    for _ in mine:
        await house.settled.wait()
    assert (house.rows.states(), producer.stats.running) == ({"cancelled": 1000}, 0)


# -- around the claim


def hooked_claim(monkeypatch: pytest.MonkeyPatch, after: Callable[[list[ClaimedRow]], None]) -> None:
    """Have `after(rows)` called between a claim's commit and the moment the producer knows its rows."""
    real = job_get_available

    def claim(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        rows = real(conn, schema, **given)
        after(rows)
        return rows

    monkeypatch.setattr(producer_module, "job_get_available", claim)


async def test_of_a_newer_run_of_a_job_that_runs_here_already(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id is known here, as that of the older run; the cancellation is the newer one's all the same."""
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer(fetch_poll_interval=NEVER, fetch_cooldown=timedelta(milliseconds=1))
    producer.control.interval = NEVER
    await house.start(house.completer, producer)
    await worker.wait()
    loop = asyncio.get_running_loop()

    def cancel(rows: list[ClaimedRow]) -> None:
        if rows:
            house.rows.cancel_running(job_id)
            asyncio.run_coroutine_threadsafe(heard(), loop)

    async def heard() -> None:
        producer.control._heard(payload(job_id))
        producer.control._asked.clear()  # as if the look at the older run was over before the claim came back

    hooked_claim(monkeypatch, cancel)
    house.rows.sql("UPDATE JOB SET state = 'available' WHERE id = %(id)s RETURNING id", id=job_id)
    producer.trigger()
    for _ in range(2):
        await house.settled.wait()
    assert (house.rows.states(), worker.reasons, worker.began.empty()) == ({"cancelled": 1}, ["lost"], True)


async def test_whose_look_up_fails_is_looked_up_again(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer = house.producer()
    producer.control.interval = timedelta(hours=1)
    failures: list[int] = []

    def failing(conn: sa.Connection, schema: str, **given: Any) -> dict[int, RunStatus]:
        if not failures:
            failures.append(1)
            raise UnavailableError("the server went away")
        return job_run_status(conn, schema, **given)

    monkeypatch.setattr(remote_control, "job_run_status", failing)
    loop = asyncio.get_running_loop()

    def cancel(rows: list[ClaimedRow]) -> None:
        if rows:
            house.rows.cancel_running(job_id)
            loop.call_soon_threadsafe(producer.control._heard, payload(job_id))

    hooked_claim(monkeypatch, cancel)
    await house.start(house.completer, producer)
    await cancelled(house, job_id)
    assert "Could not look up cancelled jobs" in caplog.text
    assert len(worker.reasons) <= 1  # it may have begun


async def test_a_claim_that_failed_keeps_nothing_of_what_was_heard(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = house.producer(fetch_poll_interval=NEVER)

    def failing(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        raise UnavailableError("the server went away")

    monkeypatch.setattr(producer_module, "job_get_available", failing)
    await house.start(producer)
    assert await producer.claimed.wait() == -1
    producer.control._heard(payload(1))
    assert producer.control._during_claim is None


# -- runs that others took


@pytest.mark.listens
async def test_a_lost_run_is_found_after_a_standstill(house: House) -> None:
    """The listener is well and nobody notifies: only the look at everything can find it."""
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer, notifier = await listening(house)
    await worker.wait()
    house.rows.steal(job_id)
    before = house.rows.get(job_id)
    while producer.control.checked.waiting:
        await producer.control.checked.wait()
    assert notifier.is_delivering
    producer.look_at_everything()
    assert (await house.settled.wait()).lost
    assert (worker.reasons, house.rows.get(job_id)) == (["lost"], before)


@pytest.mark.listens
async def test_a_lost_run_is_found_within_a_minute_anyway(house: House) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    producer, _ = await listening(house)
    await worker.wait()
    control = producer.control
    while control.checked.waiting:
        await control.checked.wait()
    house.rows.steal(job_id)
    assert 0 < control._look_due - house.ctx.clock.monotonic() <= 60
    control._look_due = 0.0
    control._wake.set()  # as it wakes every `interval`
    assert (await house.settled.wait()).lost
    assert worker.reasons == ["lost"]
    assert 0 < control._look_due - house.ctx.clock.monotonic() <= 60
