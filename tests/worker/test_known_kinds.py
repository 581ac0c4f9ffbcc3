"""Claiming known kinds only: who works what, when it is claimed again, and what is said when it is slow."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from riverq.query.job_fetch import ClaimedRow
from riverq.service.context import ServiceContext
from riverq.testing.fake_clock import FakeClock
from riverq.worker import claim_watch
from riverq.worker.claim_watch import ClaimWatch
from tests.fix_database import EngineMaker
from tests.worker.harness import NEVER, House, Raw, Rows

SHORT = timedelta(milliseconds=1)
SLOWLY = "Claimed slowly"


def knows(house: House, kind: str) -> list[int]:
    """Register a worker of `kind`; the ids that it worked."""
    done: list[int] = []

    @house.workers.work(kind=kind)
    async def work(job: Raw) -> None:
        assert job.row.kind == kind
        done.append(job.id)

    return done


@pytest.fixture
async def other_house(make_engine: EngineMaker, rows: Rows) -> AsyncIterator[House]:
    """A second client on the same tables."""
    house = House(make_engine("psycopg_async", pool_size=8), rows, client_id="c2")
    yield house
    await house.close()


async def test_two_clients_on_one_queue_each_work_the_kind_that_they_know(house: House, other_house: House) -> None:
    ours, theirs = knows(house, "ours"), knows(other_house, "theirs")
    ids = {kind: house.rows.insert(kind=kind, count=40) for kind in ("ours", "theirs")}
    nobodys = house.rows.insert(kind="nobodys", count=5)
    for each in (house, other_house):
        producer = each.producer(fetch_only_known_kinds=True, fetch_cooldown=SHORT, fetch_poll_interval=SHORT)
        await each.start(each.completer, producer)
    for _ in range(40):
        await house.settled.wait()
        await other_house.settled.wait()
    assert (sorted(ours), sorted(theirs)) == (ids["ours"], ids["theirs"])
    columns = "kind, state::text, attempt, attempted_by, errors"
    found = house.rows.sql(f"SELECT {columns}, count(*) FROM JOB GROUP BY 1, 2, 3, 4, 5")
    assert sorted(tuple(row.values()) for row in found) == [
        ("nobodys", "available", 0, None, None, len(nobodys)),
        ("ours", "completed", 1, ["c1"], None, 40),
        ("theirs", "completed", 1, ["c2"], None, 40),
    ]


async def test_by_default_unknown_kinds_are_claimed_and_fail(house: House) -> None:
    knows(house, "ours")
    [job_id] = house.rows.insert(kind="theirs")
    await house.start(house.completer, house.producer())
    await house.settled.wait()
    assert len(house.rows.get(job_id)["errors"]) == 1


async def test_a_worker_registered_later_is_known_from_the_next_claim_on(house: House) -> None:
    knows(house, "ours")
    house.rows.insert(kind="theirs")
    producer = house.producer(fetch_only_known_kinds=True, fetch_cooldown=SHORT, fetch_poll_interval=NEVER)
    await house.start(house.completer, producer)
    assert await producer.claimed.wait() == 0
    knows(house, "theirs")
    producer.trigger()
    await house.settled.wait()
    assert house.rows.states() == {"completed": 1}


async def test_a_full_claim_is_followed_at_once_and_a_queue_of_other_kinds_is_not(house: House) -> None:
    """Nothing is polled and the cooldown is an hour, so only full claims can bring the next one.

    Claims that counted the rows passed over would go on for ever.
    """
    knows(house, "known")
    house.rows.insert(kind="unknown", count=50)
    house.rows.insert(kind="known", count=25)
    producer = house.producer(
        fetch_only_known_kinds=True, max_workers=10, fetch_cooldown=NEVER, fetch_poll_interval=NEVER
    )
    await house.start(house.completer, producer)
    for _ in range(25):
        await house.settled.wait()
    await producer.stop()
    claims = [await producer.claimed.wait() for _ in range(producer.claimed.waiting)]
    assert (sum(claims), max(claims)) == (25, 10)
    assert claims.count(0) <= 1
    assert house.rows.states() == {"completed": 25, "available": 50}


async def test_reconfiguring_a_queue_may_turn_it_on(house: House) -> None:
    knows(house, "ours")
    producer = house.producer(fetch_cooldown=SHORT, fetch_poll_interval=NEVER)
    await house.start(house.completer, producer)
    assert await producer.claimed.wait() == 0
    house.rows.insert(kind="theirs")
    producer.reconfigure(replace(producer.config, fetch_only_known_kinds=True))  # which makes a fetch due
    assert await producer.claimed.wait() == 0
    assert house.rows.states() == {"available": 1}


# -- slow claims


class Slow(FakeClock):
    """A clock that a claim moves while it runs."""

    def spend(self, seconds: float) -> None:
        self._elapsed += seconds


@pytest.fixture
def clock() -> Slow:
    return Slow()


@pytest.fixture
def claim(clock: Slow) -> Callable[[float], None]:
    """Claims through one watch; each takes as long as given."""
    watch = ClaimWatch(ServiceContext(client_id="test", clock=clock), "default", lambda: ["a", "b"])
    calls: list[dict[str, Any]] = []

    def once(seconds: float) -> None:
        def job_get_available(conn: Any, schema: str, **given: Any) -> list[ClaimedRow]:
            calls.append(given)
            clock.spend(seconds)
            return []

        assert watch.around(job_get_available)(cast("Any", None), "s", limit=3) == []
        assert calls[-1] == {"kinds": ["a", "b"], "limit": 3}

    return once


def test_slow_claims_are_said_once_in_a_while(
    claim: Callable[[float], None], clock: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        claim(0.06)
    assert caplog.text == ""
    claim(0.06)
    assert caplog.text.count(SLOWLY) == 1
    assert "a queue of their own" in caplog.text
    assert "(queue=default, duration=0:00:00.060000)" in caplog.text
    for _ in range(20):
        claim(0.06)
    assert caplog.text.count(SLOWLY) == 1
    clock.spend(600)
    claim(0.06)
    assert caplog.text.count(SLOWLY) == 2


def test_claims_that_are_slow_now_and_then_are_not_worth_a_word(
    claim: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        for seconds in (0.06, 5.0, 0.04):
            claim(seconds)
    assert caplog.text == ""


async def test_the_producer_times_filtered_claims_only(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claim_watch, "SLOW", -1.0)
    knows(house, "ours")
    for filtered in (False, True):
        producer = house.producer(fetch_only_known_kinds=filtered, fetch_cooldown=SHORT, fetch_poll_interval=SHORT)
        await house.start(producer)
        for _ in range(4):
            await producer.claimed.wait()
        await producer.stop()
        assert caplog.text.count(SLOWLY) == int(filtered)
