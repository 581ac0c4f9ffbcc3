"""A process that the machine suspends: its heartbeats resume, and it does not think itself sure of anything."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from datetime import timedelta

import pytest

from tests.liveness.registry import PATIENCE_SECONDS, Registry

CHILD = textwrap.dedent("""
    import asyncio, logging, sys
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
            assert await child.stdout.readline() == b"sure\n"
            os.kill(child.pid, signal.SIGSTOP)
            before = registry.seen_at()
            while _age(registry) < timedelta(seconds=1):
                pass
            os.kill(child.pid, signal.SIGCONT)
            assert (await child.stdout.readline()).startswith(b"Liveness: Was not seen for 0:00:0")
            while registry.seen_at() == before:
                pass
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
