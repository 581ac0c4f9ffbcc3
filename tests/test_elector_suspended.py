"""A leader that is suspended for longer than its lease, in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.elections import Fleet
from tests.fix_database import SESSION_APPLICATION, EngineMaker
from tests.house.source import ROOT


@pytest.fixture
async def fleet(database_url: str, make_engine: EngineMaker, scratch_schema: str) -> AsyncIterator[Fleet]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:
        fleet = Fleet(conn, make_engine, scratch_schema)
        yield fleet
        await fleet.close()


@pytest.mark.slow  # a lease of 1.5 s has to run out
async def test_suspended_leader_writes_nothing_more_when_it_wakes_after_its_lease(
    fleet: Fleet, database_url: str
) -> None:
    ledger = SQL("{}.ledger").format(Identifier(fleet.schema))
    await fleet.conn.execute(
        SQL("CREATE TABLE {} (term timestamptz, written_at timestamptz DEFAULT clock_timestamp())").format(ledger)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.suspended_leader", database_url, fleet.schema),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"napping\n"
            process.send_signal(signal.SIGSTOP)
            follower = fleet.member("psycopg_async", "follower")
            await follower.start()
            term = await follower.elector.gained.wait()
            process.send_signal(signal.SIGCONT)
            assert (await process.stdout.read()).endswith(b"refused\n")
            assert await process.wait() == 0
        late = await fleet.conn.execute(
            SQL("SELECT count(*) FROM {} WHERE term < %s AND written_at > %s").format(ledger), (term[1], term[1])
        )
        assert await late.fetchone() == (0,)
        assert await fleet.row() == term
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
