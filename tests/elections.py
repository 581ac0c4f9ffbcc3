"""Fleets of electors on one schema, for the tests of leadership."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from riverq.database import Database
from riverq.driver import load_driver
from riverq.elector import Elector, ElectorTiming, Term
from riverq.notification import Topic
from riverq.notifier import Notifier
from riverq.query.notify import notify_raw
from riverq.service import ServiceContext, TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker

FAST = ElectorTiming(
    interval=timedelta(milliseconds=30),
    follower_jitter=timedelta(milliseconds=5),
    wake_jitter=timedelta(milliseconds=2),
    first_backoff=timedelta(milliseconds=10),
    backoff_cap=timedelta(milliseconds=20),
)
PATIENT = replace(FAST, interval=timedelta(hours=1), ttl=timedelta(hours=2))
"""For what must come by notification: polling would come an hour later, long after the test gave up."""


def held(timing: ElectorTiming) -> ElectorTiming:
    """For a clock that the test holds: the wait before a second try, after a slow answer, would not end on it."""
    ten = timedelta(seconds=10)
    return replace(timing, operation_timeout=ten, resign_timeouts=(ten,) * 3)


class Member:
    """One client's elector, and what it was told, in order."""

    def __init__(self, elector: Elector, notifier: Notifier | None) -> None:
        self.elector = elector
        self.notifier = notifier
        self.told: list[str] = []
        for signal in (elector.gained, elector.lost, elector.resigned, elector.renewed):
            signal.watch()
        elector.not_elected.watch()
        elector.failed.watch()
        elector.on_gained = self._on_gained
        elector.on_lost = self._on_lost

    async def _on_gained(self, term: Term) -> None:
        self.told.append("gained")

    async def _on_lost(self) -> None:
        self.told.append("lost")

    async def start(self) -> None:
        """Both services; returns when notifications are heard."""
        if self.notifier is not None:
            listening: TestSignal[None] = TestSignal[None]().watch()
            self.notifier.subscribe(Topic.LEADERSHIP, lambda payload: None, on_gap=lambda: listening.signal(None))
            await self.notifier.start()
            await listening.wait()
        await self.elector.start()

    async def stop(self) -> None:
        await self.elector.stop()
        if self.notifier is not None:
            await self.notifier.stop()


class Disturbed(Database):
    """A database whose queries meet with something before they run or after they have committed."""

    def __init__(
        self,
        real: Database,
        *,
        before: Mapping[Callable[..., Any], Callable[[], None]] | None = None,
        after: Mapping[Callable[..., Any], Callable[[], None]] | None = None,
    ) -> None:
        self.real = real
        self.before, self.after = before or {}, after or {}

    async def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.before.get(fn, _nothing)()
        result = await self.real.run(fn, *args, **kwargs)
        self.after.get(fn, _nothing)()
        return result


def _nothing() -> None:
    pass


class Fleet:
    """Makes members on one schema, and looks at the row from a connection of its own."""

    def __init__(self, conn: psycopg.AsyncConnection, make_engine: EngineMaker, schema: str) -> None:
        self.conn = conn
        self.schema = schema
        self._make_engine = make_engine
        self._members: list[Member] = []
        self._databases: list[Database] = []
        self.table = SQL("{}.river_leader").format(Identifier(schema))

    def member(
        self,
        adapter: str,
        client_id: str,
        *,
        timing: ElectorTiming = FAST,
        listens: bool = False,
        clock: FakeClock | None = None,
    ) -> Member:
        ctx = ServiceContext(client_id=client_id, rng=random.Random(client_id))
        engine = self._make_engine(adapter)
        driver = load_driver(engine)
        db = Database(engine, driver, schema=self.schema, owns_engine=False)
        self._databases.append(db)

        async def notify(channel: str, payload: str) -> None:
            await db.run(notify_raw, channel, payload)

        notifier = None
        if listens:
            notifier = Notifier(ctx, make_listener=lambda: driver.listener(engine), schema=self.schema, notify=notify)
        own = ctx if clock is None else replace(ctx, clock=clock)
        member = Member(Elector(own, db.limited(1), notifier, timing=timing), notifier)
        self._members.append(member)
        return member

    async def close(self) -> None:
        for member in self._members:
            await member.stop()
        for db in self._databases:
            await db.close()

    async def execute(self, statement: str) -> None:
        await self.conn.execute(SQL(statement).format(self.table))

    async def row(self) -> tuple[str, datetime] | None:
        cursor = await self.conn.execute(SQL("SELECT leader_id, elected_at FROM {}").format(self.table))
        return await cursor.fetchone()

    async def request_resign(self) -> None:
        """As River sends it, from anywhere."""
        payload = '{"action":"request_resign","leader_id":""}'
        await self.conn.execute("SELECT pg_notify(%s, %s)", (f"{self.schema}.river_leadership", payload))
