"""A claim that was committed, and whose answer never came: its jobs are worked all the same, none of them twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

import riverq.database
from riverq.errors import UnavailableError
from riverq.query.job_fetch import ClaimedRow, ClaimGap, job_claim_again, job_get_available, job_lost
from riverq.state import Run
from riverq.testing.driver_suite.proxy import SilentProxy
from riverq.worker import lost_claims
from riverq.worker import producer as producer_module
from riverq.worker.producer import Producer
from tests.fix_database import EngineMaker
from tests.worker.harness import INCARNATION, NEVER, SHORT, Blocking, House, Raw, Rows, until

OTHER = "00000000-0000-4000-8000-000000000002"


class Losing:
    """Claims whose rows are committed and not returned, while `is_on`."""

    def __init__(self) -> None:
        self.is_on = True
        self.lost = 0
        self.after: Callable[[], None] = lambda: None

    def __call__(self, conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        rows = job_get_available(conn, schema, **given)
        if self.is_on and rows:
            self.lost += 1
            self.after()
            raise UnavailableError("the connection died under the answer")
        return rows


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Losing:
    losing = Losing()
    monkeypatch.setattr(producer_module, "job_get_available", losing)
    monkeypatch.setattr(lost_claims, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(lost_claims, "LONGEST_WAIT", 0.01)
    return losing


def quick(house: House, **config: Any) -> Producer:
    producer = house.producer(**{"fetch_poll_interval": NEVER, "fetch_cooldown": timedelta(milliseconds=1), **config})
    producer.control.interval = NEVER
    return producer


async def looks(producer: Producer, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
    """Until so many looks have begun and ended after this."""
    ended = asyncio.Semaphore(0)
    look = producer.lost_claims.claim_again

    async def counted(limit: int) -> list[ClaimedRow]:
        try:
            return await look(limit)
        finally:
            ended.release()

    with monkeypatch.context() as patch:
        patch.setattr(producer.lost_claims, "claim_again", counted)
        async with asyncio.timeout(10):
            for _ in range(count):
                await ended.acquire()


def register(rows: Rows, incarnation: str, seen_ago: timedelta) -> None:
    rows.sql(
        f'INSERT INTO "{rows.schema}".riverq_client (client_id, incarnation, started_at, seen_at, lock_taken) '
        "VALUES ('c1', %(incarnation)s::uuid, now() - interval '1 day', now() - %(ago)s, false)",
        incarnation=incarnation,
        ago=seen_ago,
    )


async def test_an_answer_that_the_network_lost(
    adapter: str, make_engine: EngineMaker, pooled_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has claimed the job, and its answer is kept from the client until that has given up."""
    monkeypatch.setattr(riverq.database, "HANG_LIMIT", 0.05)
    url = sa.make_url(pooled_url)
    async with SilentProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        house = House(make_engine(adapter, url=through, pool_size=1, max_overflow=0), rows)
        worker = Blocking(house)
        worker.go_on.set()
        try:
            producer = quick(house)
            await house.start(house.completer, producer)
            assert await producer.claimed.wait() == 0
            proxy.hold()
            [job_id] = house.rows.insert()
            producer.reconfigure(replace(producer.config, fetch_timeout=timedelta(milliseconds=500)))
            assert await producer.claimed.wait() == -1
            proxy.release()
            await house.settled.wait()
            row = house.rows.get(job_id)
            assert (row["state"], row["attempt"], row["attempted_by"]) == ("completed", 1, ["c1"])
            assert worker.began.qsize() == 1
        finally:
            await house.close()


async def test_lost_jobs_are_worked_once_and_with_their_first_attempt(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    ids = house.rows.insert(count=4, args='{"a": 1}', tags=["t"])
    producer = quick(house)
    await house.start(house.completer, producer)
    assert sorted(await worker.wait(4)) == ids
    losing.is_on = False
    await looks(producer, monkeypatch)
    assert len(producer.running_ids) == 4
    assert worker.began.empty()
    worker.go_on.set()
    for _ in ids:
        await house.settled.wait()
    assert house.rows.states() == {"completed": 4}
    assert {row["attempt"] for row in house.rows.sql("SELECT attempt FROM JOB")} == {1}


async def test_what_was_returned_before_and_after_is_not_worked_again(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    losing.is_on = False
    before = house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    assert await worker.wait() == before
    losing.is_on = True
    losing.after = lambda: after.extend(house.rows.insert())
    after: list[int] = []
    lost = house.rows.insert()
    producer.trigger()
    await until(lambda: losing.lost)
    losing.is_on = False
    assert sorted(await worker.wait(2)) == sorted(lost + after)
    await looks(producer, monkeypatch)
    assert worker.began.empty()
    assert sorted(producer.running_ids) == sorted(before + lost + after)


async def test_two_losses_with_an_answer_in_between(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    producer = quick(house)
    await house.start(house.completer, producer)
    ids: list[int] = []
    for losses in range(1, 3):
        losing.is_on = True
        ids += house.rows.insert()
        producer.trigger()
        await until(lambda losses=losses: losing.lost == losses)  # type: ignore[misc]  # bound now
        losing.is_on = False
        ids += house.rows.insert()
        producer.trigger()
        await worker.wait(2)
    await looks(producer, monkeypatch)
    assert worker.began.empty()
    assert sorted(producer.running_ids) == ids


async def test_only_as_many_as_there_are_free_slots(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)

    def look(conn: sa.Connection, schema: str, *given: Any, **named: Any) -> list[Run]:
        return job_lost(conn, schema, *given, **named) if losing.lost == 2 else []

    monkeypatch.setattr(lost_claims, "job_lost", look)
    house.rows.insert(count=4)
    producer = quick(house, max_workers=2)
    await house.start(house.completer, producer)
    await worker.wait(2)
    assert house.rows.states()["running"] == 4
    assert len(producer.running_ids) == 2
    worker.go_on.set()
    for _ in range(4):
        await house.settled.wait()
    assert house.rows.states() == {"completed": 4}


async def test_a_paused_queue_works_what_was_claimed_before(house: House, losing: Losing) -> None:
    worker = Blocking(house)
    producer = quick(house)
    await house.start(house.completer, producer)
    ids = house.rows.insert()
    losing.after = lambda: setattr(producer.control, "paused", True)
    producer.trigger()
    assert await worker.wait() == ids
    assert producer.control.paused


async def test_a_cancellation_that_is_heard_during_the_look(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was read without a mark; the cancellation came before its job was known here."""
    worker = Blocking(house)

    def cancelled_meanwhile(conn: sa.Connection, schema: str, *given: Any, **named: Any) -> list[ClaimedRow]:
        found = job_claim_again(conn, schema, *given, **named)
        for row in found:
            house.rows.cancel_running(row.id)
            producer.control._heard(f'{{"action":"cancel","job_id":{row.id},"queue":"default"}}')
        return found

    monkeypatch.setattr(lost_claims, "job_claim_again", cancelled_meanwhile)
    [job_id] = house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    await house.settled.wait()
    assert house.rows.get(job_id)["state"] == "cancelled"
    assert worker.began.qsize() == len(worker.reasons)


async def test_a_job_that_somebody_cancelled_meanwhile_is_left(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    [job_id] = house.rows.insert()
    losing.after = lambda: house.rows.cancel_running(job_id)
    producer = quick(house)
    await house.start(house.completer, producer)
    await looks(producer, monkeypatch)
    assert worker.began.empty()
    assert house.rows.get(job_id)["state"] == "running"


@pytest.mark.parametrize(
    ("seen_ago", "found"), [(timedelta(0), False), (timedelta(seconds=20), False), (timedelta(minutes=5), True)]
)
async def test_where_another_client_with_this_id_lives_the_rows_may_be_its_own(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch, *, seen_ago: timedelta, found: bool
) -> None:
    worker = Blocking(house)
    register(house.rows, INCARNATION, timedelta(0))
    register(house.rows, OTHER, seen_ago)
    house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    await looks(producer, monkeypatch)
    assert len(producer.running_ids) == int(found)
    assert house.rows.states() == {"running": 1}
    worker.go_on.set()


async def test_runs_from_before_the_start_are_left(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier process with this id may yet be at work on them."""
    worker = Blocking(house)
    [earlier] = house.rows.insert(state="running", attempt=1, attempted_by=["c1"])
    house.rows.sql("UPDATE JOB SET attempted_at = now()")
    lost = house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    assert await worker.wait() == lost
    await looks(producer, monkeypatch)
    assert worker.began.empty()
    assert house.rows.get(earlier)["state"] == "running"


async def test_the_second_claim_may_be_lost_like_the_first(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    losses: list[int] = []

    def look(conn: sa.Connection, schema: str, who: Any, gap: ClaimGap, **named: Any) -> list[Run]:
        if not losses and gap.before_us is None:  # wait for an answered claim, which ends the first gap
            return []
        return job_lost(conn, schema, who, gap, **named)

    def lost_again(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        rows = job_claim_again(conn, schema, **given)
        if rows and len(losses) < 2:
            losses.append(len(rows))
            raise UnavailableError("the connection died under the answer again")
        return rows

    monkeypatch.setattr(lost_claims, "job_lost", look)
    monkeypatch.setattr(lost_claims, "job_claim_again", lost_again)
    ids = house.rows.insert(count=3)

    def another_that_is_answered() -> None:
        losing.is_on = False
        ids.extend(house.rows.insert())

    losing.after = another_that_is_answered
    producer = quick(house, fetch_poll_interval=SHORT)
    await house.start(house.completer, producer)
    assert sorted(await worker.wait(4)) == ids
    assert losses == [3, 3]
    await looks(producer, monkeypatch)
    assert worker.began.empty()


async def test_without_riverqs_own_tables_nothing_is_looked_for_any_more(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    looked: list[str] = []

    def no_table(conn: sa.Connection, schema: str, *_: Any, **__: Any) -> list[Run]:
        looked.append(schema)
        conn.exec_driver_sql(f'SELECT FROM "{schema}".riverq_client_that_was_dropped')
        raise AssertionError("there is no such table")

    monkeypatch.setattr(lost_claims, "job_lost", no_table)
    house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    await until(lambda: looked)
    await until(lambda: not producer.lost_claims.may_be)
    assert worker.began.empty()


async def test_in_a_long_gap_only_what_was_claimed_when_the_claim_was_made(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was claimed here for long; meanwhile a client that has this id by mistake has claimed."""
    worker = Blocking(house)
    [theirs] = house.rows.insert(state="running", attempt=1, attempted_by=["c1"])
    house.rows.sql("UPDATE JOB SET attempted_at = now() - interval '1 minute'")
    producer = quick(house)
    await house.start(house.completer, producer)
    producer.lost_claims.begin(datetime(2020, 1, 1, tzinfo=UTC))
    lost = house.rows.insert()
    producer.trigger()
    assert await worker.wait() == lost
    await looks(producer, monkeypatch)
    assert worker.began.empty()
    assert house.rows.get(theirs)["state"] == "running"


async def test_a_stop_that_comes_before_the_look_says_that_rows_may_be_left(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    Blocking(house)
    monkeypatch.setattr(lost_claims, "FIRST_WAIT", 3600.0)
    house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    await until(lambda: losing.lost)
    await producer.stop()
    assert producer.claim_was_cut


async def test_the_watch_ends(house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_claims, "WATCH", 0.0)

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None: ...

    house.rows.insert()
    producer = quick(house)
    await house.start(house.completer, producer)
    await house.settled.wait()
    await until(lambda: not producer.lost_claims.may_be)
    await producer.stop()
    assert not producer.claim_was_cut


async def test_a_look_that_fails_is_made_again_and_claims_go_on(
    house: House, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    failures: list[int] = []

    def failing(conn: sa.Connection, schema: str, *given: Any, **named: Any) -> list[Run]:
        if len(failures) < 3:
            failures.append(1)
            losing.is_on = False
            raise UnavailableError("away again")
        return job_lost(conn, schema, *given, **named)

    monkeypatch.setattr(lost_claims, "job_lost", failing)
    lost = house.rows.insert()
    losing.after = lambda: after.extend(house.rows.insert())
    after: list[int] = []
    await house.start(house.completer, quick(house))
    assert await worker.wait() == after
    assert await worker.wait() == lost
    assert len(failures) == 3
