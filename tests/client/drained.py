"""Four clients, one an adapter, whose applications have used up their pools and sit in an open transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq.elector import Elector, Term
from tests.client.faces import make_client, settle
from tests.client.working import acting_workers, call, config
from tests.fix_database import ADAPTERS, EngineMaker
from tests.fix_schema import SchemaPool


@dataclass
class Drained:
    """A client that leads its own schema while nothing of its application's pool is left."""

    client: Any
    elector: Elector
    term: Term

    async def renewals(self, count: int) -> None:
        """Wait for so many more renewals. Raises TimeoutError, AssertionError if one failed or the term changed."""
        for _ in range(count):
            assert await self.in_loop(self.elector.renewed.wait(10)) == self.term
        assert self.elector.failed.waiting == 0
        assert self.elector.lost.waiting == 0
        assert self.elector.is_leader
        assert self.elector.term == self.term

    async def in_loop(self, work: Any) -> Any:
        """A sync client lives in the loop of a thread of its own, and so do its signals."""
        if isinstance(self.client, riverq.AsyncClient):
            return await work
        return await asyncio.to_thread(self.client._thread.call, work)


async def watched(client: Any) -> Drained:
    """Start it, and return it when it leads."""
    await call(client.start)
    elector = client._runtime.services.leading.elector

    async def watch() -> Term:
        for signal in (elector.renewed, elector.failed, elector.lost, elector.gained):
            signal.watch()
        term: Term = elector.term or await elector.gained.wait()
        return term

    drained = Drained(client, elector, elector.term)
    drained.term = await drained.in_loop(watch())
    return drained


@asynccontextmanager
async def four_drained(make_engine: EngineMaker, schema_pool: SchemaPool) -> AsyncIterator[list[Drained]]:
    """One client on each adapter, each in a schema of its own, so that all four lead at once."""
    schemas = [schema_pool.take() for _ in ADAPTERS]
    engines = [make_engine(adapter, pool_size=1, max_overflow=0, pool_timeout=1) for adapter in ADAPTERS]
    taken: list[Any] = []
    clients = [
        make_client(engine, config(schema, acting_workers("async def")))
        for engine, schema in zip(engines, schemas, strict=True)
    ]
    try:
        for engine in engines:
            conn: Any = engine.connect()
            if isinstance(engine, AsyncEngine):
                await conn.start()
            taken.append(conn)
            await settle(conn.exec_driver_sql("SELECT 1"))  # which opens the transaction
        yield await asyncio.gather(*(watched(client) for client in clients))
    finally:
        await asyncio.gather(*(call(client.stop) for client in clients))
        for conn in taken:
            await settle(conn.close())
        for schema in schemas:
            schema_pool.give_back(schema)
