"""A queue is paused while a claim of it is under way: its jobs are worked, and only then is anybody told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.worker import lost_claims
from riverq.worker import producer as producer_module
from riverq.worker.producer import Producer
from tests.worker.harness import NEVER, Blocking, House, run_sql, until

GATE = 8_150_733


@contextmanager
def claims_held_up(house: House, monkeypatch: pytest.MonkeyPatch, *, failing: bool = False) -> Iterator[None]:
    """Inside, a claim is on its way and reaches the jobs only after this ends; it fails there if told to."""

    def late(conn: sa.Connection, schema: str, **given: Any) -> list[ClaimedRow]:
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({GATE})::text")
        if failing:
            raise UnavailableError("the server went away")
        return job_get_available(conn, schema, **given)

    monkeypatch.setattr(producer_module, "job_get_available", late)
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, f"SELECT pg_advisory_xact_lock({GATE})")
        yield
        other.commit()


async def paused_while_claiming(house: House, producer: Producer) -> None:
    """Start it, and pause its queue while its first claim is held up."""
    producer.control.interval = timedelta(milliseconds=5)
    await house.start(house.completer, producer)
    await until(lambda: held_up(house))
    house.rows.sql("UPDATE QUEUE SET paused_at = now() WHERE true RETURNING name")
    await until(lambda: producer.control.paused)


def held_up(house: House) -> bool:
    """Whether the claim, in this very database, waits for the gate."""
    return bool(
        house.rows.sql(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %(gate)s"
            " AND mode = 'ShareLock' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            gate=GATE,
        )
    )


async def test_it_is_told_when_that_claims_jobs_are_running(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim reaches the database after the pause was read, and finds a job that is younger than the pause."""
    worker = Blocking(house)
    producer = house.producer(fetch_poll_interval=NEVER)
    told: list[tuple[Any, int]] = []
    producer.on_pause = lambda paused: told.append((paused, producer.stats.running))
    producer.control.on_change = lambda queue: told.append((queue.name, producer.stats.running))
    with claims_held_up(house, monkeypatch):
        await paused_while_claiming(house, producer)
        [first] = house.rows.insert()
        assert (told, producer.stats.paused) == ([], False)
    assert await worker.wait() == [first]
    assert (told, producer.stats.paused) == ([(True, 1), ("default", 1)], True)

    [second] = house.rows.insert()
    house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
    assert await worker.wait() == [second]
    assert (told[2:], producer.stats.paused) == ([(False, 1), ("default", 1)], False)
    worker.go_on.set()
    for _ in range(2):
        await house.settled.wait()


async def test_it_is_told_when_that_claim_fails_and_stays_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed claim is looked for again and again, which is no claim that could bring what is younger."""
    monkeypatch.setattr(lost_claims, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(lost_claims, "LONGEST_WAIT", 0.01)
    producer = house.producer(fetch_poll_interval=NEVER, fetch_cooldown=timedelta(milliseconds=1))
    told: list[bool] = []
    producer.on_pause = told.append
    look, during_looks = producer.lost_claims.claim_again, []

    async def looking(limit: int) -> list[ClaimedRow]:
        during_looks.append(producer.stats.paused)
        return await look(limit)

    monkeypatch.setattr(producer.lost_claims, "claim_again", looking)
    with claims_held_up(house, monkeypatch, failing=True):
        await paused_while_claiming(house, producer)
        assert (told, producer.stats.paused) == ([], False)
    assert await producer.claimed.wait() == -1
    assert (told, producer.stats.paused) == ([True], True)
    await until(lambda: len(during_looks) == 3)
    assert (told, during_looks) == ([True], [True, True, True])


async def test_a_pause_that_was_ended_meanwhile_is_not_told_at_all(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Blocking(house)
    producer = house.producer(fetch_poll_interval=NEVER, fetch_cooldown=timedelta(milliseconds=1))
    told: list[bool] = []
    producer.on_pause = told.append
    with claims_held_up(house, monkeypatch):
        await paused_while_claiming(house, producer)
        house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
        await until(lambda: not producer.control.paused)
    assert await producer.claimed.wait() == 0
    house.rows.insert()
    producer.trigger()
    await worker.wait()
    worker.go_on.set()
    await house.settled.wait()
    assert told == []
