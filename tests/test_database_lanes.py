"""Lanes beside and inside each other: who may hold how many connections, and the last look before a statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.database import Database, control_engine
from riverq.driver import AnyEngine, load_driver
from riverq.errors import UsageError
from tests.fix_database import EngineMaker
from tests.test_database import LOCK, LONG, holding, statement

BESIDE = "SELECT pg_catalog.pg_advisory_xact_lock(822)"


@pytest.fixture
def app(adapter: str, make_engine: EngineMaker) -> AnyEngine:
    """The application's engine, whose connections are its own."""
    return make_engine(adapter)


@pytest.fixture
async def database(app: AnyEngine) -> AsyncIterator[Database]:
    """Two slots on three connections, as a client's control plane has them."""
    database = Database(control_engine(app, size=3), load_driver(app), schema="my schema", slots=2)
    yield database
    await database.close()


class Blocked:
    """Calls that run into a lock which a test holds; counts how many have begun."""

    def __init__(self, lock: str = LOCK) -> None:
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Condition()
        self.begun = 0

    def __call__(self, conn: sa.Connection, schema: str) -> None:
        asyncio.run_coroutine_threadsafe(self._count(), self._loop)
        statement(conn, schema, self._lock)

    async def _count(self) -> None:
        async with self._begun:
            self.begun += 1
            self._begun.notify_all()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(LONG), self._begun:
            await self._begun.wait_for(lambda: self.begun >= number)


def at_once(lane: Database, call: Any, number: int) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(lane.run(call)) for _ in range(number)]


@pytest.mark.parametrize(("slots", "nested"), [(1, None), (2, 1), (1, 2)])
async def test_share_takes_so_many_slots_at_most_and_leaves_the_others(
    database: Database, app: AnyEngine, slots: int, nested: int | None
) -> None:
    lane = database.share(slots)
    lane = lane if nested is None else lane.share(nested)
    blocked = Blocked()
    async with holding(app, LOCK):
        tasks = at_once(lane, blocked, 4)
        await blocked.until(1)
        async with asyncio.timeout(LONG):  # the second slot is still there, in a transaction and without
            assert await database.run(statement, "SELECT 1") == 1
            assert await database.run_single(statement, "SELECT 1") == 1
            assert await database.share(1).run(statement, "SELECT 1") == 1
        assert blocked.begun == 1
    async with asyncio.timeout(LONG):
        await asyncio.gather(*tasks)
    assert blocked.begun == 4


async def test_a_call_that_was_given_up_keeps_its_slot_of_the_share_until_it_ends(
    database: Database, app: AnyEngine
) -> None:
    """Else one upkeep after the other, each given up by its caller, would take all slots from claims."""
    lane = database.share(1)
    blocked = Blocked()
    async with holding(app, LOCK):
        for begun in range(1, 3):
            task = asyncio.create_task(lane.run(blocked))
            if begun == 1:
                await blocked.until(1)
            else:
                for _ in range(5):
                    await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(LONG):
            assert await database.run(statement, "SELECT 1") == 1
        assert blocked.begun == 1
    async with asyncio.timeout(LONG):
        assert await lane.run(statement, "SELECT 1") == 1


async def test_share_waits_for_the_slots_of_the_lane_it_is_of(database: Database, app: AnyEngine) -> None:
    blocked, inner = Blocked(), Blocked(BESIDE)
    async with holding(app, BESIDE):
        waiting = at_once(database, inner, 2)
        await inner.until(2)
        mine = at_once(database.share(2), blocked, 1)
        async with asyncio.timeout(LONG):
            assert await database.limited(1).run(statement, "SELECT 1") == 1
        assert blocked.begun == 0
    async with asyncio.timeout(LONG):
        await asyncio.gather(*waiting, *mine)


async def test_check_is_asked_when_the_connection_is_in_hand_and_its_error_is_raised(
    database: Database, app: AnyEngine
) -> None:
    leads, calls = True, 0

    def check() -> None:
        if not leads:
            raise LookupError("leads no longer")

    def call(conn: sa.Connection, schema: str) -> None:
        nonlocal calls
        calls += 1
        statement(conn, schema, "SELECT 1")

    outer = database.share(2, check=check)
    others = Blocked()
    for lane in (outer, outer.share(1), database.share(1, check=check)):
        leads = True
        await lane.run(call)
        await lane.run_single(call)
        begun, before = others.begun, calls
        async with holding(app, LOCK):
            tasks = at_once(database, others, 2)
            await others.until(begun + 2)
            waiting = at_once(lane, call, 1)  # for a slot, while it still leads
            await asyncio.sleep(0)
            leads = False
        with pytest.raises(LookupError, match="leads no longer"):
            await waiting[0]
        for refused in (lane.run, lane.run_single, lane.run_outside):
            with pytest.raises(LookupError, match="leads no longer"):
                await refused(call)
        assert calls == before
        await asyncio.gather(*tasks)
    assert await database.run(statement, "SELECT 1") == 1


async def test_no_statement_is_sent_after_a_failed_check(database: Database) -> None:
    await database.run(statement, "SELECT 1")  # the first connection is asked for its isolation level
    sent: list[str] = []
    sync = getattr(database.engine, "sync_engine", database.engine)

    @sa.event.listens_for(sync, "before_cursor_execute")
    def heard(_conn: Any, _cursor: Any, text: str, *_: Any) -> None:
        sent.append(text)

    def check() -> None:
        raise LookupError("leads no longer")

    for run in (database.share(1, check=check).run, database.share(1, check=check).run_single):
        with pytest.raises(LookupError):
            await run(statement, "SELECT 2")
    assert sent == []


async def test_lane_of_its_own_is_never_starved(database: Database, app: AnyEngine) -> None:
    """The elector's: whatever the two general slots, the shares of them and calls that were given up do."""
    elector, upkeep, quick = database.limited(1), database.share(1), database.share(1)
    blocked = Blocked()
    async with holding(app, LOCK):
        for _ in range(3):
            begun = blocked.begun
            tasks = [task for lane in (upkeep, quick, database) for task in at_once(lane, blocked, 3)]
            await blocked.until(begun + 1)
            async with asyncio.timeout(LONG):
                assert await elector.run(statement, "SELECT 1") == 1
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(LONG):
                assert await elector.run_single(statement, "SELECT 1") == 1
                for task in tasks:
                    with suppress(asyncio.CancelledError):
                        await task


async def test_lanes_are_closed_together(database: Database) -> None:
    lanes = [database, database.limited(1), database.share(1), database.share(2).share(1)]
    await database.close()
    for lane in lanes:
        with pytest.raises(UsageError, match="was closed"):
            await lane.run(statement, "SELECT 1")
