"""Cancelling whoever waits for a connection must not leave one open: psycopg's async connect would, for the collector.

Each test cancels at every stage of connecting, with the collector off, and then asks the server.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from riverq.database import Database
from riverq.driver import load_driver
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker
from tests.fix_pgbouncer import Pooler

STEP = 0.0002
NAME = "riverq_cancelled"
PATIENCE_SECONDS = 30.0

pytestmark = pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def cancel_at_every_stage(connect: Callable[[], Awaitable[object]]) -> None:
    for stage in range(120):
        task = asyncio.ensure_future(connect())
        await asyncio.sleep(stage * STEP)
        task.cancel()
        await asyncio.wait([task])
    await connect()


def named_engine(adapter: str, make_engine: EngineMaker) -> Any:
    named: dict[str, Any] = {"application_name": NAME}
    return make_engine(
        adapter, poolclass=NullPool, connect_args={"server_settings": named} if adapter == "asyncpg" else named
    )


async def count_open(url: str, pooler: Pooler | None) -> int:
    if pooler is not None:  # which keeps the server's connections, and their name
        return len(pooler.clients_named(NAME))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        cursor = await conn.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (NAME,))
        return len(await cursor.fetchall())


async def expect_none_open(url: str, pooler: Pooler | None) -> None:
    """The other side sees a closed connection a moment later; the limit only bounds a failure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    late = False
    while left := await count_open(url, pooler):
        if late:
            pytest.fail(f"{left} connections are still open")
        await asyncio.sleep(0.02)
        late = time.monotonic() > deadline  # before the look: what was seen before a stall may be gone after it


async def test_a_run_cancelled_while_it_connects_leaves_no_connection(
    adapter: str, make_engine: EngineMaker, database_url: str, pooler: Pooler | None
) -> None:
    engine = named_engine(adapter, make_engine)
    database = Database(engine, load_driver(engine), schema="any")

    def query(conn: sa.Connection, _schema: str) -> Any:
        return conn.exec_driver_sql("SELECT 1").scalar()

    await cancel_at_every_stage(lambda: database.run(query))
    await expect_none_open(database_url, pooler)
    await database.close()


async def test_a_listener_cancelled_while_it_connects_leaves_no_connection(
    adapter: str, make_engine: EngineMaker, database_url: str, pooler: Pooler | None
) -> None:
    engine = named_engine(adapter, make_engine)
    driver = load_driver(engine)

    async def connect() -> None:
        listener = driver.listener(engine)
        try:
            await listener.connect()
        finally:
            await listener.close()

    await cancel_at_every_stage(connect)
    await expect_none_open(database_url, pooler)
