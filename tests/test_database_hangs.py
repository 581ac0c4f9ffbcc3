"""A network that swallows an answer costs the call that waits for it, and never the slot that it worked in."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq.database
from riverq.database import Database
from riverq.driver import Notification, load_driver
from riverq.driver.inbox import MOST_WAITING, Inbox
from riverq.driver.line import Line
from riverq.errors import UnavailableError
from riverq.service import OperationTimeoutError, within
from riverq.testing.driver_suite.proxy import SilentProxy
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker

LONG = 20.0


def one(conn: sa.Connection, _schema: str, what: str = "1") -> Any:
    return conn.execute(sa.text(f"SELECT {what}")).scalar()


async def test_a_call_whose_answer_is_swallowed_gives_its_slot_back(
    adapter: str, make_engine: EngineMaker, pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riverq.database, "HANG_LIMIT", 0.05)
    url = sa.make_url(pooled_url)
    async with SilentProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        engine = make_engine(adapter, url=through)
        database = Database(engine, load_driver(engine), schema="any", slots=1, owns_engine=False)
        try:
            assert await within(LONG, "the first call", database.run(one)) == 1
            proxy.silence()
            with pytest.raises(OperationTimeoutError):
                await within(0.2, "the swallowed call", database.run(one))
            proxy.speak()
            assert await within(LONG, "the call after it", database.run(one)) == 1
        finally:
            await database.close()


@pytest.mark.parametrize("adapter", ASYNC_ADAPTERS)
async def test_goodbyes_that_nobody_answers_leave_no_connection_open(
    adapter: str, make_engine: EngineMaker, pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg waits for the server to hang up, one connection after the other."""
    monkeypatch.setattr(riverq.database, "CLOSE_LIMIT", 0.05)
    url = sa.make_url(pooled_url)
    async with SilentProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        engine = make_engine(adapter, url=through, pool_size=3)
        opened: list[Any] = []
        sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        sa.event.listen(sync, "connect", lambda raw, _: opened.append(raw.driver_connection))
        database = Database(engine, load_driver(engine), schema="any", slots=3, owns_engine=True)
        await asyncio.gather(*(database.run(one) for _ in range(3)))
        proxy.silence()
        await within(LONG, "closing", database.close())
        assert [each.is_closed() if hasattr(each, "is_closed") else each.closed for each in opened] == [True] * 3


@pytest.mark.own_session("the server's end of the connection that the client has")
async def test_a_broken_connection_leaves_no_socket_for_the_collector(
    adapter: str, make_engine: EngineMaker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage must not pile up sockets."""
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")  # a goodbye that fails is logged, and kept, with its frames
    engine = make_engine(adapter, pool_size=1, max_overflow=0)
    database = Database(engine, load_driver(engine), schema="any", slots=1, owns_engine=False)
    gc.collect()
    gc.disable()
    try:
        before = open_sockets()
        for _ in range(3):
            pid = await database.run(one, "pg_backend_pid()")
            with psycopg.connect(database_url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            with pytest.raises(UnavailableError):
                await database.run(one)
        assert open_sockets() <= before
    finally:
        gc.enable()
        await database.close()


def open_sockets() -> int:
    """Of this process."""
    return sum(Path(path).is_socket() for path in Path("/proc/self/fd").iterdir())


def test_a_line_that_was_cut_before_the_call_had_its_connection_is_shut_as_soon_as_it_has() -> None:
    ours, theirs = socket.socketpair()
    line = Line()
    line.cut()
    line.hold(ours.fileno())
    assert theirs.recv(1) == b""
    line.let_go()
    ours.close()
    theirs.close()


def test_a_connection_that_was_given_back_is_not_hit() -> None:
    ours, theirs = socket.socketpair()
    line = Line()
    line.hold(ours.fileno())
    line.let_go()
    line.cut()
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    ours.close()
    theirs.close()


async def test_more_notifications_than_a_loop_can_be_late_for_end_the_connection() -> None:
    inbox = Inbox()
    inbox.put([Notification("c", "")] * MOST_WAITING)
    assert len(await inbox.wait(LONG)) == MOST_WAITING
    inbox.put([Notification("c", "")] * (MOST_WAITING + 1))
    inbox.put([Notification("c", "late")])
    with pytest.raises(UnavailableError, match="waited unheard"):
        await inbox.wait(LONG)
