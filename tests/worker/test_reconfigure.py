from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from riverq.errors import ConfigError
from riverq.worker.producer_config import ProducerConfig
from tests.worker.harness import NEVER, Blocking, House

ONE = timedelta(milliseconds=1)


def config(**settings: Any) -> ProducerConfig:
    """Nothing happens by itself: no poll, and no fetch because jobs are waiting."""
    quiet = {"fetch_cooldown": ONE, "fetch_poll_interval": NEVER, "fetch_eager": False}
    return ProducerConfig(**{"queue": "default", **quiet, **settings})


def given(of: ProducerConfig) -> dict[str, Any]:
    return dict(vars(of))


async def test_more_workers_are_used_at_once(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(count=5)
    producer = house.producer(**given(config(max_workers=1)))
    await house.start(house.completer, producer)
    await worker.wait(1)
    producer.reconfigure(config(max_workers=4))
    await worker.wait(3)
    assert (producer.stats.max_workers, producer.stats.running) == (4, 4)
    assert house.rows.states() == {"running": 4, "available": 1}
    worker.go_on.set()
    for _ in range(5):
        await house.settled.wait()


async def test_fewer_workers_end_no_job_and_claim_none_until_enough_have_ended(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(count=6)
    producer = house.producer(**given(config(max_workers=4)))
    await house.start(house.completer, producer)
    await worker.wait(4)
    producer.reconfigure(config(max_workers=1))
    assert producer._slots.free == -3
    worker.go_on.set()
    for _ in range(6):
        await house.settled.wait()
    claims = [await producer.claimed.wait() for _ in range(producer.claimed.waiting)]
    assert claims[0] == 4
    assert max(claims[1:]) == 1
    assert worker.reasons == [None] * 6


async def test_a_shorter_poll_interval_and_cooldown_hold_at_once(house: House) -> None:
    """Both are an hour when the change comes, and a fetch waits for the cooldown's end."""
    worker = Blocking(house)
    worker.go_on.set()
    producer = house.producer(**given(config(max_workers=1, fetch_cooldown=NEVER)))
    await house.start(house.completer, producer)
    assert await producer.claimed.wait() == 0
    house.rows.insert()
    producer.trigger()
    producer.reconfigure(config(max_workers=1, fetch_poll_interval=timedelta(milliseconds=5)))
    await house.settled.wait()
    house.rows.insert()
    await house.settled.wait()
    assert producer.config.fetch_poll_interval == timedelta(milliseconds=5)


async def test_another_queue_is_refused(house: House) -> None:
    with pytest.raises(ConfigError, match="expected queue to stay 'default', got: 'other'"):
        house.producer().reconfigure(config(max_workers=1, queue="other"))


async def test_a_producer_at_rest_takes_its_new_configuration(house: House) -> None:
    worker = Blocking(house)
    house.rows.insert(count=3)
    producer = house.producer(**given(config(max_workers=1)))
    producer.reconfigure(config(max_workers=2))
    await house.start(house.completer, producer)
    await worker.wait(2)
    assert house.rows.states() == {"running": 2, "available": 1}
    worker.go_on.set()
    for _ in range(3):
        await house.settled.wait()
