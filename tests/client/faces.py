"""One way to drive both clients and every kind of session, so that a test is written once."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import riverq
from riverq.driver import AnyEngine
from tests.fix_server import hears, tell

SESSION_KINDS = ("session", "scoped_session", "connection")


@riverq.job_args("greet")
@dataclass
class Greet:
    name: str


@riverq.job_args("sync_account", unique_opts=riverq.UniqueOpts(by_args=True))
@dataclass
class SyncAccount:
    account_id: int


async def settle(value: Any) -> Any:
    """Await what the async face returns; pass through what the sync face returns."""
    return await value if inspect.isawaitable(value) else value


def make_client(engine: AnyEngine, config: riverq.Config) -> Any:
    """The client that fits the engine."""
    if isinstance(engine, AsyncEngine):
        return riverq.AsyncClient(engine, config)
    return riverq.Client(engine, config)


@asynccontextmanager
async def open_session(engine: AnyEngine, kind: str, **options: Any) -> AsyncIterator[Any]:
    """A session or connection of `kind` on `engine`, rolled back and closed at the end unless the test committed."""
    if isinstance(engine, AsyncEngine):
        if kind == "connection":
            async with engine.connect() as conn:
                yield conn
        elif kind == "scoped_session":
            scoped = async_scoped_session(async_sessionmaker(engine, **options), scopefunc=lambda: 1)
            try:
                yield scoped
            finally:
                await scoped.remove()
        else:
            async with AsyncSession(engine, **options) as session:
                yield session
        return
    if kind == "connection":
        with engine.connect() as conn:
            yield conn
    elif kind == "scoped_session":
        registry = scoped_session(sessionmaker(engine, **options))
        try:
            yield registry
        finally:
            registry.remove()
    else:
        with Session(engine, **options) as session:
            yield session


class Ear:
    """A plain connection that listens to what a schema's clients are told about inserts."""

    def __init__(self, url: str, schema: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True, application_name="riverq_tests")
        self._channel = f"{schema}.river_insert"
        self._conn.execute(SQL("LISTEN {}").format(Identifier(self._channel)))

    def heard(self) -> list[str]:
        """Every payload so far, oldest first. A marker sent last proves that nothing is still on its way."""
        if not hears():
            return []
        marker = "riverq test marker"
        tell(self._conn, self._channel, marker)
        payloads: list[str] = []
        for note in self._conn.notifies(timeout=10):
            if note.payload == marker:
                return payloads
            payloads.append(note.payload)
        raise TimeoutError("the marker was not heard")

    def close(self) -> None:
        self._conn.close()


def jobs(url: str, schema: str) -> list[dict[str, Any]]:
    """Every row of `river_job`, by id, as a plain connection sees it."""
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute(SQL("SELECT * FROM {}.river_job ORDER BY id").format(Identifier(schema))).fetchall()
