"""`--pgbouncer session|transaction`: the engines of the tests go through the pooler, and it pools as it was asked to.

Both tests hold without the option too, where nothing may go through one.
"""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.driver import AnyEngine
from tests.fix_database import EngineMaker, Transact
from tests.fix_pgbouncer import Pooler


def _pid(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT pg_catalog.pg_backend_pid()")).scalar_one())


async def _linked(engine: AnyEngine, pooler: Pooler | None) -> list[bool]:
    """Whether a client of the pooler is tied to the connection's backend: in a transaction, and after its end."""

    def is_linked(pid: int) -> bool:
        return pooler is not None and pid in pooler.linked_backends()

    def sync() -> list[bool]:
        assert isinstance(engine, sa.Engine)
        with engine.connect() as connection:
            pid = _pid(connection)
            inside = is_linked(pid)
            connection.commit()
            return [inside, is_linked(pid)]

    if not isinstance(engine, AsyncEngine):
        return await asyncio.to_thread(sync)
    async with engine.connect() as connection:
        pid = await connection.run_sync(_pid)
        inside = is_linked(pid)
        await connection.commit()
        return [inside, is_linked(pid)]


async def test_engines_go_through_the_pooler_in_the_mode_that_was_asked_for(
    make_engine: EngineMaker, pooler: Pooler | None, adapter: str
) -> None:
    """In session mode a backend is the client's for as long as that is connected, in transaction mode not."""
    expected = {None: [False, False], "session": [True, True], "transaction": [True, False]}
    assert await _linked(make_engine(adapter), pooler) == expected[None if pooler is None else pooler.mode]


def test_single_transactions_go_through_it_too(transact: Transact, pooler: Pooler | None, adapter: str) -> None:
    linked = transact(adapter, lambda connection: pooler is not None and _pid(connection) in pooler.linked_backends())
    assert linked == (pooler is not None)
