"""Pauses with an end, ended by whichever client gets there first. Here its clock is held, and Postgres' is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
import sqlalchemy as sa

from riverq import pause_ender
from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import UnavailableError
from riverq.notification import Topic
from riverq.notifier import Notifier
from riverq.pause_ender import PauseEnder
from riverq.query.queue import queue_create_or_touch, queue_next_pause_end, queue_pause
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.fix_server import audible
from tests.query.arrange import Table, payloads
from tests.service.stress import stress_start_stop

HOUR = timedelta(hours=1)


class Wire:
    """Stands in for a notifier that nothing is heard through but what the test says."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[Callable[[str], None], Callable[[], None] | None]] = []

    def subscribe(
        self, topic: Topic, on_payload: Callable[[str], None], *, on_gap: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        assert topic is Topic.CONTROL
        entry = (on_payload, on_gap)
        self.subscriptions.append(entry)
        return lambda: self.subscriptions.remove(entry)


class Enders:
    """Pause enders on one schema, whose signals are watched."""

    def __init__(self, ctx: ServiceContext, engines: EngineMaker, schema: str) -> None:
        self._ctx, self._engines, self._schema = ctx, engines, schema
        self._made: list[tuple[PauseEnder, Database]] = []

    def make(self, adapter: str, wire: Wire | None = None) -> PauseEnder:
        engine = self._engines(adapter)
        db = Database(engine, load_driver(engine), schema=self._schema, owns_engine=False)
        ender = PauseEnder(self._ctx, db, cast("Notifier | None", wire))
        for signal in (ender.looked, ender.resumed, ender.failed):
            signal.watch()
        self._made.append((ender, db))
        return ender

    async def close(self) -> None:
        for ender, db in self._made:
            await ender.stop()
            await db.close()


@pytest.fixture
async def enders(held_ctx: ServiceContext, make_engine: EngineMaker, schema: str) -> AsyncIterator[Enders]:
    enders = Enders(held_ctx, make_engine, schema)
    yield enders
    await enders.close()


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    table.conn.execute(f'LISTEN "{schema}.river_control"')
    yield table
    table.conn.close()


@pytest.fixture
def pause(engine: sa.Engine, schema: str) -> Callable[..., None]:
    def pause(name: str = "mail", until: timedelta = HOUR) -> None:
        with engine.begin() as conn:
            queue_create_or_touch(conn, schema, name)
            queue_pause(conn, schema, name, until=until, own_tables=True)

    return pause


def make_due(table: Table) -> None:
    table.sql("UPDATE {schema}.riverq_queue SET until = now()")


def paused(table: Table) -> list[str]:
    return [row["name"] for row in table.sql("SELECT name FROM {queue} WHERE paused_at IS NOT NULL")]


def resumes(table: Table) -> list[str]:
    return [payload for payload in payloads(table) if "resume" in payload]


async def test_a_pause_is_ended_when_its_time_has_come(
    enders: Enders, held_clock: FakeClock, table: Table, pause: Callable[..., None], adapter: str
) -> None:
    pause()
    ender = enders.make(adapter)
    await ender.start()
    left = await ender.looked.wait()
    assert left is not None
    assert timedelta(0) < left <= HOUR
    make_due(table)
    await held_clock.until_sleeping()
    await held_clock.advance(11)
    assert await ender.resumed.wait() == ["mail"]
    assert await ender.looked.wait() is None
    assert (paused(table), resumes(table)) == ([], audible(['{"action":"resume","queue":"mail"}']))


async def test_it_sleeps_no_longer_than_to_the_first_end(
    enders: Enders, held_clock: FakeClock, table: Table, pause: Callable[..., None]
) -> None:
    pause("mail", HOUR)
    pause("soon", timedelta(seconds=4))
    ender = enders.make("psycopg_async")
    await ender.start()
    await ender.looked.wait()
    make_due(table)
    await held_clock.until_sleeping()
    await held_clock.advance(5)  # less than its interval
    assert await ender.resumed.wait() == ["mail", "soon"]


async def test_of_several_who_wake_for_the_same_end_one_resumes(
    enders: Enders, table: Table, pause: Callable[..., None]
) -> None:
    pause()
    make_due(table)
    many = [enders.make(adapter) for adapter in ("psycopg", "asyncpg", "psycopg_async", "pg8000")]
    await asyncio.gather(*(ender.start() for ender in many))
    for ender in many:
        await ender.looked.wait()
    assert resumes(table) == audible(['{"action":"resume","queue":"mail"}'])
    assert paused(table) == []


async def test_a_queue_that_is_locked_is_tried_again_shortly(
    enders: Enders, held_clock: FakeClock, table: Table, engine: sa.Engine, schema: str, pause: Callable[..., None]
) -> None:
    pause()
    make_due(table)
    ender = enders.make("psycopg_async")
    with engine.connect() as other:
        other.exec_driver_sql(f'SELECT name FROM "{schema}".river_queue FOR UPDATE')
        await ender.start()
        assert await ender.resumed.wait() == []
        await ender.looked.wait()
    await held_clock.until_sleeping()
    await held_clock.advance(1)
    assert await ender.resumed.wait() == ["mail"]


@pytest.mark.parametrize("what", ["pause", "gap"])
async def test_it_looks_when_a_pause_is_heard_of_or_may_have_been_missed(
    enders: Enders, held_clock: FakeClock, table: Table, pause: Callable[..., None], what: str
) -> None:
    wire = Wire()
    ender = enders.make("psycopg_async", wire)
    await ender.start()
    assert await ender.looked.wait() is None
    pause()
    make_due(table)
    [(on_payload, on_gap)] = wire.subscriptions
    on_payload('{"action":"resume","queue":"mail"}')
    on_payload("{")
    await held_clock.until_sleeping()
    assert ender.looked.waiting == 0
    if what == "gap":
        assert on_gap is not None
        on_gap()
    else:
        on_payload('{"action":"pause","queue":"mail"}')
    assert await ender.resumed.wait() == ["mail"]
    await ender.stop()
    assert wire.subscriptions == []


async def test_an_outage_is_waited_out(
    enders: Enders,
    held_clock: FakeClock,
    table: Table,
    pause: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pause()
    make_due(table)

    def failing(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(pause_ender, "queue_next_pause_end", queue_next_pause_end)
        raise UnavailableError("the server went away")

    monkeypatch.setattr(pause_ender, "queue_next_pause_end", failing)
    ender = enders.make("psycopg_async")
    await ender.start()
    await ender.failed.wait()
    assert "Could not look for pauses that are over: the server went away" in caplog.text
    await held_clock.until_sleeping()
    await held_clock.advance(11)
    assert await ender.resumed.wait() == ["mail"]


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(ctx: ServiceContext, make_engine: EngineMaker, schema: str, adapter: str) -> None:
    enders, wire = Enders(ctx, make_engine, schema), Wire()
    await stress_start_stop(enders.make(adapter, wire), rounds=10)
    await enders.close()
    assert wire.subscriptions == []
