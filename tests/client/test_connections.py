"""How many connections a client holds, as the log line at its start says: made by itself, or out of shared pools."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from tests.client.faces import settle
from tests.client.unhurried import be_patient
from tests.client.working import Act, Watch, acting_workers, call, config
from tests.fix_database import EngineMaker
from tests.fix_server import hears

NAME = "riverq_budget"
BY_NAME = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


def held(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(BY_NAME, (NAME,)).fetchone()
    assert row is not None
    return int(row[0])


def make(engine: Any, settings: riverq.Config, **options: Any) -> Any:
    return (riverq.AsyncClient if isinstance(engine, AsyncEngine) else riverq.Client)(engine, settings, **options)


async def elected(client: Any) -> None:
    async with asyncio.timeout(20):
        while not client.stats().leader.is_leader:  # noqa: ASYNC110  # in another thread's loop, for half of the clients
            await asyncio.sleep(0.02)


def as_listening(words: str) -> str:
    """The same for this run's server: where nothing can be heard, nothing listens."""
    if hears():
        return words
    return re.sub(
        r"(\d) connections \((.*)1 to listen, ", lambda found: f"{int(found[1]) - 1} connections ({found[2]}", words
    )


@pytest.fixture
def named_engine(adapter: str, make_engine: EngineMaker) -> Any:
    """An engine whose connections, and those made like them, can be counted."""
    name = {"server_settings": {"application_name": NAME}} if adapter == "asyncpg" else {"application_name": NAME}
    return make_engine(adapter, connect_args=name)


@pytest.mark.own_session("as many backends as clients, with their names")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "holds up to 5 connections (3 control, 1 to listen, 1 heartbeat); 1 more once rows are locked, 1 while"),
        ({"poll_only": True}, "holds up to 4 connections (3 control, 1 heartbeat); 1 more once rows"),
        ({"leader_election": False}, "holds up to 5 connections (3 control, 1 to listen, 1 heartbeat); 1 more once"),
    ],
)
async def test_the_log_line_says_how_many_connections_there_are(
    named_engine: Any, schema: str, watch: Watch, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], words: str
) -> None:
    client = make(named_engine, config(schema, acting_workers("async def"), **settings))
    with caplog.at_level("INFO", "riverq"):
        await call(client.start)
    try:
        await settle(client.insert(Act("complete")))
        await watch.state("completed")
        if "leader_election" not in settings:
            await elected(client)
        ours = await asyncio.to_thread(held, watch._url) - 1  # less that of the application, for the insert
    finally:
        await call(client.stop)
    line = next(record.message for record in caplog.records if "Client: Started" in record.message)
    assert as_listening(words) in line
    assert ("indexes" in line) is ("leader_election" not in settings)
    assert 1 < ours <= int(line.split("holds up to ")[1][0])


async def test_a_shared_pool_of_one_is_enough_to_start_work_lead_and_stop(
    adapter: str,
    make_engine: EngineMaker,
    schema: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    be_patient(monkeypatch)
    engine = make_engine(adapter, pool_size=1, max_overflow=0)
    client = make(engine, config(schema, acting_workers("async def")), share_pool=True)
    for number in (1, 2):
        caplog.clear()
        with caplog.at_level("INFO", "riverq"):
            await call(client.start)
        await settle(client.insert_many([Act("complete")] * 20))
        await watch.state("completed", 20 * number)
        await elected(client)
        await call(client.stop)
        said = [record.message for record in caplog.records]
        assert not [message for message in said if re.search("no connection became free|Could not", message)]
    line = next(message for message in said if "Client: Started" in message)
    words = "shares the application's pool for 3 connections and holds up to 2 connections (1 to listen, 1 hea"
    assert as_listening(words) in line


async def test_a_shared_pool_that_is_drained_stops_the_start_and_nothing_is_left(
    adapter: str, make_engine: EngineMaker, schema: str
) -> None:
    engine: Any = make_engine(adapter, pool_size=1, max_overflow=0, pool_timeout=0.1)
    client = make(engine, config(schema, acting_workers("async def")), share_pool=True)
    if isinstance(engine, AsyncEngine):
        async with engine.connect():
            with pytest.raises(riverq.PoolExhaustedError):
                await client.start()
    else:
        with engine.connect(), pytest.raises(riverq.PoolExhaustedError):
            await call(client.start)
    engine.pool._timeout = 30  # what starts together now waits for each other's turn, however long that takes
    await call(client.start)
    await call(client.stop)
