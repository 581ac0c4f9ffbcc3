"""A network that swallows packets: nothing is refused, nothing is closed, nothing arrives. On every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from riverq.driver import load_driver
from riverq.notification import Topic, channel
from riverq.notifier import Notifier, NotifierTiming
from riverq.service import ServiceContext
from riverq.testing.driver_suite.proxy import SilentProxy
from tests.fix_database import SESSION_APPLICATION, EngineMaker
from tests.listening import Heard, watch

pytestmark = pytest.mark.slow  # silence has to last before it is one

PATIENT = timedelta(seconds=10)
SHORT = timedelta(milliseconds=700)
TIMING = NotifierTiming(
    operation_timeout=PATIENT,
    ping_interval=timedelta(milliseconds=100),
    first_backoff=timedelta(milliseconds=10),
    busy_cap=timedelta(milliseconds=50),
    idle_cap=timedelta(milliseconds=50),
)
"""The limit is SHORT only where there is silence, because that is what a test waits for; elsewhere a machine that
stalls for a moment would be an outage that the test did not make."""


@dataclass
class Line:
    """A notifier that listens through a proxy, and the connection past it that sends."""

    notifier: Notifier
    proxy: SilentProxy
    conn: psycopg.AsyncConnection
    schema: str

    def limit(self, limit: timedelta) -> None:
        """For what the notifier begins from now on."""
        self.notifier._timing = replace(TIMING, operation_timeout=limit)

    async def notify(self, topic: Topic, payload: str) -> None:
        await self.conn.execute("SELECT pg_notify(%s, %s)", (channel(self.schema, topic), payload))


@pytest.fixture
async def line(
    ctx: ServiceContext, make_engine: EngineMaker, adapter: str, pooled_url: str, schema: str
) -> AsyncIterator[Line]:
    async with _line(ctx, make_engine, adapter, pooled_url, schema) as line:
        yield line


@asynccontextmanager
async def _line(
    ctx: ServiceContext, make_engine: EngineMaker, adapter: str, given_url: str, schema: str
) -> AsyncIterator[Line]:
    url = sa.make_url(given_url)
    async with (
        await psycopg.AsyncConnection.connect(given_url, autocommit=True, application_name=SESSION_APPLICATION) as conn,
        SilentProxy(url.host or "127.0.0.1", url.port or 5432) as proxy,
    ):
        through = url.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string(hide_password=False)
        engine = make_engine(adapter, url=through)
        driver = load_driver(engine)

        async def notify(channel: str, payload: str) -> None:
            await conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))

        notifier = Notifier(
            ctx, make_listener=lambda: driver.listener(engine), schema=schema, notify=notify, timing=TIMING
        )
        yield Line(watch(notifier), proxy, conn, schema)
        await notifier.stop()


@pytest.mark.listens
async def test_silent_connection_is_replaced_and_every_subscriber_reads_anew(line: Line) -> None:
    heard = {topic: Heard() for topic in Topic}
    for topic, subscriber in heard.items():
        subscriber.subscribe(line.notifier, topic)
    await line.notifier.start()
    assert await line.notifier.delivering_changed.wait() is True
    for subscriber in heard.values():
        await subscriber.gaps.wait()

    line.limit(SHORT)
    line.proxy.silence()
    for topic in Topic:
        await line.notify(topic, "swallowed")
    await line.notifier.disconnected.wait(30)  # a ping that was under way has the long limit
    assert await line.notifier.delivering_changed.wait() is False
    made = line.notifier.connections_made
    line.proxy.speak()  # by now it is, or soon will be, in the middle of connecting to nobody
    line.limit(PATIENT)

    for subscriber in heard.values():
        await subscriber.gaps.wait(30)
    assert await line.notifier.delivering_changed.wait() is True
    assert line.notifier.connections_made == made + 1
    for topic, subscriber in heard.items():
        await line.notify(topic, "heard")
        assert await subscriber.payloads.wait() == "heard"


@pytest.mark.listens
async def test_connecting_into_silence_is_given_up_and_tried_again(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.limit(SHORT)
    line.proxy.silence()
    heard = Heard()
    heard.subscribe(line.notifier, Topic.CONTROL)
    await line.notifier.start()
    await line.proxy.until_accepted()  # the connection is made, and the server's first word never comes
    line.proxy.speak()
    line.limit(PATIENT)
    await line.notifier.connected.wait(30)
    await heard.gaps.wait()
    await line.notify(Topic.CONTROL, "heard")
    assert await heard.payloads.wait() == "heard"
    assert caplog.text.count("Not listening, polling until reconnected") == 1
    assert "no connection to listen on within 0.7 s" in caplog.text


async def test_stopping_while_connecting_into_silence_leaves_nothing(line: Line) -> None:
    line.proxy.silence()
    await line.notifier.start()
    await line.proxy.until_accepted()
    await line.notifier.stop()
    assert line.notifier.connections_made == 0
