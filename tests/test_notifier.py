"""The notifier on real connections."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver import Listener, load_driver
from riverq.errors import ConfigError
from riverq.notification import Topic, channel
from riverq.notifier import Notifier, NotifierTiming
from riverq.service import ServiceContext
from tests.client.faces import settle
from tests.fix_database import SESSION_APPLICATION, EngineMaker
from tests.listening import Heard, watch
from tests.service.stress import stress_start_stop

LISTENERS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'riverq_notifier_test' AND pid <> pg_backend_pid()
"""


class Sender:
    """The second connection: it sends, and can kill the first."""

    def __init__(self, conn: psycopg.AsyncConnection) -> None:
        self._conn = conn

    async def notify(self, channel: str, payload: str) -> None:
        await self._conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    async def listener_pids(self) -> list[int]:
        cursor = await self._conn.execute(LISTENERS)
        return [row[0] for row in await cursor.fetchall()]

    async def kill_listener(self) -> None:
        pids = await self.listener_pids()
        assert len(pids) == 1
        await self._conn.execute("SELECT pg_terminate_backend(%s)", pids)


@pytest.fixture
async def sender(database_url: str) -> AsyncIterator[Sender]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:
        yield Sender(conn)


@pytest.fixture
async def notifier(
    ctx: ServiceContext, make_engine: EngineMaker, adapter: str, sender: Sender, schema: str
) -> AsyncIterator[Notifier]:
    name = "riverq_notifier_test"
    arguments = {"server_settings": {"application_name": name}} if adapter == "asyncpg" else {"application_name": name}
    engine = make_engine(adapter, connect_args=arguments)
    driver = load_driver(engine)
    notifier = watch(Notifier(ctx, make_listener=lambda: driver.listener(engine), schema=schema, notify=sender.notify))
    yield notifier
    await notifier.stop()


async def start(notifier: Notifier) -> None:
    await notifier.start()
    await notifier.connected.wait()
    assert await notifier.delivering_changed.wait() is True


class TestReal:
    async def test_start_stop_stress(self, notifier: Notifier, sender: Sender, adapter: str) -> None:
        Heard().subscribe(notifier, Topic.INSERT)
        await stress_start_stop(notifier, rounds=50 if adapter == "psycopg_async" else 5)
        assert not notifier.is_connected
        assert not notifier.is_delivering

    @pytest.mark.listens
    async def test_fans_out_what_is_subscribed_to(self, notifier: Notifier, sender: Sender, schema: str) -> None:
        first, second, other = Heard(), Heard(), Heard()
        first.subscribe(notifier, Topic.INSERT)
        second.subscribe(notifier, Topic.INSERT)
        other.subscribe(notifier, Topic.CONTROL)
        await start(notifier)
        for heard in (first, second, other):
            await heard.gaps.wait()  # LISTEN is in force from here on
        await sender.notify(channel(schema, Topic.INSERT), '{"queue": "Grüße ☂"}')
        await sender.notify(channel("another_schema", Topic.CONTROL), "not ours")
        await sender.notify(channel(schema, Topic.CONTROL), "ours")
        assert await first.payloads.wait() == '{"queue": "Grüße ☂"}'
        assert await second.payloads.wait() == '{"queue": "Grüße ☂"}'
        assert await other.payloads.wait() == "ours"
        assert (first.payloads.waiting, other.payloads.waiting) == (0, 0)
        assert notifier.is_connected
        assert notifier.is_delivering

    @pytest.mark.listens
    async def test_subscriptions_come_and_go_while_it_runs(
        self, notifier: Notifier, sender: Sender, schema: str
    ) -> None:
        await start(notifier)
        first, second = Heard(), Heard()
        unsubscribe_first = first.subscribe(notifier, Topic.INSERT)
        await first.gaps.wait()
        unsubscribe_second = second.subscribe(notifier, Topic.INSERT)
        unsubscribe_first()
        unsubscribe_first()
        await sender.notify(channel(schema, Topic.INSERT), "one")
        assert await second.payloads.wait() == "one"

        unsubscribe_second()
        again = Heard()
        again.subscribe(notifier, Topic.LEADERSHIP)
        await again.gaps.wait()  # by now INSERT was unlistened
        third = Heard()
        third.subscribe(notifier, Topic.INSERT)
        await third.gaps.wait()
        await sender.notify(channel(schema, Topic.INSERT), "two")
        assert await third.payloads.wait() == "two"
        assert first.payloads.waiting == second.payloads.waiting == 0

    @pytest.mark.listens
    async def test_killed_connections_are_replaced_and_told_as_a_gap(
        self, notifier: Notifier, sender: Sender, schema: str
    ) -> None:
        heard = Heard()
        heard.subscribe(notifier, Topic.CONTROL)
        await start(notifier)
        for number in range(1, 4):
            await heard.gaps.wait()
            await sender.kill_listener()
            await notifier.disconnected.wait()
            assert await notifier.delivering_changed.wait() is False
            await notifier.connected.wait()
            assert await notifier.delivering_changed.wait() is True
            await sender.notify(channel(schema, Topic.CONTROL), f"after {number}")
            assert await heard.payloads.wait() == f"after {number}"
        assert notifier.connections_made == 4
        assert len(await sender.listener_pids()) == 1


@pytest.mark.listens
@pytest.mark.listens
async def test_pool_that_is_disposed_of_or_recycled_does_not_end_it(
    ctx: ServiceContext, make_engine: EngineMaker, adapter: str, sender: Sender, schema: str
) -> None:
    """Its connection is none of the pool's any more, however old the pool lets its own become."""
    engine: Any = make_engine(adapter, pool_recycle=0, pool_size=1, max_overflow=0)
    driver = load_driver(engine)
    notifier = watch(Notifier(ctx, make_listener=lambda: driver.listener(engine), schema=schema, notify=sender.notify))
    heard = Heard()
    heard.subscribe(notifier, Topic.INSERT)
    await start(notifier)
    await heard.gaps.wait()
    for _ in range(2):  # each time the pool finds its connection too old
        conn: Any = engine.connect()
        if isinstance(engine, AsyncEngine):
            await conn.start()
        await settle(conn.close())
    await settle(engine.dispose())
    await sender.notify(channel(schema, Topic.INSERT), "heard")
    assert await heard.payloads.wait() == "heard"
    assert notifier.connections_made == 1
    await notifier.stop()


@pytest.mark.listens
async def test_outage_and_recovery_are_each_told_once(
    ctx: ServiceContext, make_engine: EngineMaker, sender: Sender, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine("psycopg_async")
    nowhere = make_engine("psycopg_async", url="postgresql://127.0.0.1:1/nowhere")
    driver, dead = load_driver(engine), load_driver(nowhere)
    attempts = iter([dead, dead, dead, driver])

    def make() -> Listener:
        chosen = next(attempts)
        return chosen.listener(chosen.engine)

    timing = NotifierTiming(first_backoff=timedelta(milliseconds=1))
    notifier = watch(Notifier(ctx, make_listener=make, schema=schema, notify=sender.notify, timing=timing))
    with caplog.at_level(logging.INFO, logger="riverq"):
        await start(notifier)
        await notifier.stop()
    texts = [record.getMessage() for record in caplog.records]
    assert sum("Not listening, polling until reconnected" in text for text in texts) == 1
    assert sum("Listening again" in text for text in texts) == 1


async def test_poll_only_opens_nothing_and_says_it_does_not_deliver(ctx: ServiceContext) -> None:
    def make() -> Listener:
        raise AssertionError("no connection was wanted")

    async def notify(channel: str, payload: str) -> None:
        raise AssertionError("no probe was wanted")

    notifier = watch(Notifier(ctx, make_listener=make, schema="x", notify=notify, poll_only=True))
    Heard().subscribe(notifier, Topic.INSERT)
    await stress_start_stop(notifier)
    await notifier.start()
    assert notifier.is_running
    assert not notifier.is_connected
    assert not notifier.is_delivering
    await notifier.stop()


def test_timing_is_checked() -> None:
    with pytest.raises(ConfigError, match="expected ping_interval to be a timedelta, got: 5"):
        NotifierTiming(ping_interval=5)  # type: ignore[arg-type]
