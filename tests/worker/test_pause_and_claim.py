"""A queue is paused while a claim of it is under way: its jobs begin, and only then is anybody told of the pause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.query.job_fetch import ClaimedRow, job_get_available
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
    waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %(gate)s AND NOT granted"
    return bool(house.rows.sql(waiting, gate=GATE))


async def test_it_is_told_when_that_claims_jobs_have_begun(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim reaches the database after the pause was read, and finds a job that is younger than the pause."""
    worker = Blocking(house)
    producer = house.producer(fetch_poll_interval=NEVER)
    told: list[tuple[bool, int]] = []
    producer.on_pause = lambda paused: told.append((paused, producer.stats.running))
    with claims_held_up(house, monkeypatch):
        await paused_while_claiming(house, producer)
        [first] = house.rows.insert()
        assert (told, producer.stats.paused) == ([], False)
    assert await worker.wait() == [first]
    assert (told, producer.stats.paused) == ([(True, 1)], True)

    [second] = house.rows.insert()
    producer.trigger()
    house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
    assert await worker.wait() == [second]
    assert (told, producer.stats.paused) == ([(True, 1), (False, 1)], False)
    worker.go_on.set()
    for _ in range(2):
        await house.settled.wait()


async def test_it_is_told_when_that_claim_fails(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = house.producer(fetch_poll_interval=NEVER)
    with claims_held_up(house, monkeypatch, failing=True):
        await paused_while_claiming(house, producer)
        assert not producer.stats.paused
    assert await producer.claimed.wait() == -1
    assert producer.stats.paused


async def test_a_pause_and_a_resume_meanwhile_are_told_in_their_order(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = house.producer(fetch_poll_interval=NEVER)
    told: list[bool] = []
    producer.on_pause = told.append
    with claims_held_up(house, monkeypatch):
        await paused_while_claiming(house, producer)
        house.rows.sql("UPDATE QUEUE SET paused_at = NULL WHERE true RETURNING name")
        await until(lambda: not producer.control.paused)
        assert told == []
    await until(lambda: told == [True, False])
