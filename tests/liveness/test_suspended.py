"""A process that the machine suspends: its heartbeats resume, and it does not think itself sure of anything."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import textwrap
from datetime import timedelta

import pytest

from tests.liveness.registry import PATIENCE_SECONDS, Registry, eventually

CHILD = textwrap.dedent("""
    import asyncio, logging, sys
    from dataclasses import replace
    from datetime import timedelta
    import sqlalchemy as sa
    from riverq.driver import load_driver
    from riverq.liveness import Liveness
    from riverq.service import ServiceContext

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    sys.stdout.reconfigure(line_buffering=True)

    async def main(url, schema):
        engine = sa.create_engine(url)
        liveness = Liveness(
            ServiceContext(client_id="child"), engine, load_driver(engine),
            schema=schema, grace=timedelta(seconds=1.2), enabled=True,
        )
        liveness.timing = replace(  # only a suspension is to end a heartbeat here, not a slow machine
            liveness.timing, limit=timedelta(seconds=20), stop_limit=timedelta(seconds=40)
        )
        liveness.beaten.watch()
        await liveness.start()
        while liveness.sure_for() < timedelta(seconds=0.5):
            await liveness.beaten.wait()
        print("sure")
        await asyncio.to_thread(sys.stdin.readline)
        print("stopping")
        await liveness.stop()

    asyncio.run(main(sys.argv[1], sys.argv[2]))
""")

SUSPENDED = timedelta(seconds=1)
GAP = re.compile(rb"Liveness: Was not seen for (\d+):(\d\d):(\d\d(?:\.\d+)?) .*\n")


@pytest.mark.slow  # a suspended process cannot be hurried: it must be late by more than two intervals, half a second
async def test_a_suspended_process_goes_on_and_knows(registry: Registry, database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        url,
        registry.schema,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(3 * PATIENCE_SECONDS):
            while (line := await child.stdout.readline()) != b"sure\n":
                _gap(line)
            os.kill(child.pid, signal.SIGSTOP)
            await eventually(lambda: _age(registry) >= SUSPENDED)
            os.kill(child.pid, signal.SIGCONT)
            while _gap(await child.stdout.readline()) < SUSPENDED:
                pass
            before = registry.seen_at()
            await eventually(lambda: registry.seen_at() > before)
            _, _ = await child.communicate(b"\n")
        assert child.returncode == 0
        assert registry.rows() == []
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _age(registry: Registry) -> timedelta:
    [row] = registry.sql("SELECT clock_timestamp() - seen_at AS age FROM {client}")
    age: timedelta = row["age"]
    return age


def _gap(line: bytes) -> timedelta:
    """What the child says it was not seen for; anything else it may not say. A loaded machine makes short gaps too."""
    said = GAP.fullmatch(line)
    assert said is not None, line
    hours, minutes, seconds = (float(part) for part in said.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)
