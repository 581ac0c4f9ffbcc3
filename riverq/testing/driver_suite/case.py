"""What the tests of the suite are given: an adapter, an engine made by it, and ways to use both from a test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from riverq.driver import AnyEngine, Driver, Listener
from riverq.testing.driver_suite.proxy import SilentProxy

T = TypeVar("T")


@dataclass(frozen=True)
class DriverCase:
    """Which adapter to test, against which database, and with which kind of engine."""

    driver_class: type[Driver]
    url: URL
    asynchronous: bool


class Steps:
    """An open connection, whichever kind it is."""

    def __init__(self, conn: sa.Connection | AsyncConnection) -> None:
        self._conn = conn

    async def call(self, fn: Callable[[sa.Connection], T]) -> T:
        """Call `fn` with the connection."""
        if isinstance(self._conn, AsyncConnection):
            return await self._conn.run_sync(fn)
        return await asyncio.to_thread(fn, self._conn)


class Conformance:
    """One test's engine and its tools."""

    def __init__(self, case: DriverCase) -> None:
        self.case = case
        self.name = f"riverq_suite_{uuid.uuid4().hex[:12]}"
        self._engines: dict[str, AnyEngine] = {}
        self.engine = self.make_engine(case.url)
        self.driver = case.driver_class(self.engine)

    def make_engine(self, url: URL, **options: Any) -> AnyEngine:
        """Another engine by the adapter, with an application_name of its own; disposed of after the test."""
        name = f"{self.name}_{len(self._engines)}"
        engine = self.case.driver_class.make_engine(
            url, asynchronous=self.case.asynchronous, application_name=name, **options
        )
        self._engines[name] = engine
        return engine

    async def connected(self, fn: Callable[[sa.Connection], T], engine: AnyEngine | None = None) -> T:
        """Call `fn` with a fresh connection; it begins and ends transactions itself."""
        engine = engine or self.engine
        if isinstance(engine, AsyncEngine):
            async with engine.connect() as conn:
                return await conn.run_sync(fn)
        return await asyncio.to_thread(_with_connection, engine, fn)

    async def committed(self, fn: Callable[[sa.Connection], T]) -> T:
        """Call `fn` in a transaction, and commit it."""

        def in_transaction(conn: sa.Connection) -> T:
            with conn.begin():
                return fn(conn)

        return await self.connected(in_transaction)

    @asynccontextmanager
    async def stepping(self) -> AsyncIterator[Steps]:
        """A connection that stays open between the steps of a test."""
        if isinstance(self.engine, AsyncEngine):
            async with self.engine.connect() as async_conn:
                yield Steps(async_conn)
            return
        conn = await asyncio.to_thread(self.engine.connect)
        try:
            yield Steps(conn)
        finally:
            await asyncio.to_thread(conn.close)

    async def notify(self, channel: str, *payloads: str) -> None:
        """NOTIFY from another connection than any listener's, all in one transaction."""

        def send(conn: sa.Connection) -> None:
            for payload in payloads:
                conn.execute(sa.text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload})

        await self.committed(send)

    async def terminate(self, engine: AnyEngine) -> int:
        """End every backend that `engine` opened, the one that is asked excepted; returns how many."""
        name = next(name for name, made in self._engines.items() if made is engine)

        def end(conn: sa.Connection) -> int:
            statement = sa.text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = :name AND pid <> pg_backend_pid()"
            )
            return int(conn.execute(statement, {"name": name}).scalar_one())

        return await self.committed(end)

    @asynccontextmanager
    async def listening(self, engine: AnyEngine | None = None) -> AsyncIterator[Listener]:
        """A connected listener."""
        listener = self.driver.listener(engine or self.engine)
        await listener.connect()
        try:
            yield listener
        finally:
            await listener.close()

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[tuple[SilentProxy, AnyEngine]]:
        """A proxy that can fall silent, and an engine that connects through it."""
        if self.case.url.host is None or self.case.url.host.startswith("/"):
            pytest.skip("a proxy needs a database that is reached by TCP")
        async with SilentProxy(self.case.url.host, self.case.url.port or 5432) as proxy:
            yield proxy, self.make_engine(self.case.url.set(host="127.0.0.1", port=proxy.port))

    async def close(self) -> None:
        """Let go of every engine."""
        for engine in self._engines.values():
            if isinstance(engine, AsyncEngine):
                await engine.dispose()
            else:
                await asyncio.to_thread(engine.dispose)


def _with_connection(engine: sa.Engine, fn: Callable[[sa.Connection], T]) -> T:
    with engine.connect() as conn:
        return fn(conn)


@pytest_asyncio.fixture
async def conformance(driver_case: DriverCase) -> AsyncIterator[Conformance]:
    """The tools of one test; closed after it."""
    tools = Conformance(driver_case)
    yield tools
    await tools.close()
