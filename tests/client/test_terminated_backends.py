"""Every connection of a working client is cut, again and again: no job is lost and none runs twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import psycopg

import riverq
from tests.client.faces import jobs, make_client, settle
from tests.client.working import Act, Watch, config, working
from tests.fix_database import SESSION_APPLICATION, EngineMaker

COUNT = 1000
CUTS = 6


async def test_nothing_is_lost_or_doubled_when_backends_are_terminated(
    adapter: str, make_engine: EngineMaker, database_url: str, schema: str, watch: Watch
) -> None:
    ran: Counter[str] = Counter()
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        ran[job.args.how] += 1

    engine: Any = make_engine(adapter)
    client = make_client(engine, config(schema, workers, queues={"default": riverq.QueueConfig(max_workers=20)}))
    await settle(client.insert_many_fast([Act(str(number)) for number in range(COUNT)]))
    async with working(client):
        for cut in range(CUTS):
            await watch.until(lambda _, so_far=cut * COUNT // (CUTS + 1): ran.total() >= so_far)  # type: ignore[misc]
            await asyncio.to_thread(terminate_backends, database_url)
        # A claim whose answer was lost leaves rows that nobody runs, until the client looks for them.
        rows = await watch.until(lambda rows: all(row["state"] == "completed" for row in rows), limit=60)
    assert len(rows) == COUNT
    assert jobs(database_url, schema) == rows
    assert [(ran[row["args"]["how"]], row["attempt"], row["errors"]) for row in rows] == [(1, 1, None)] * COUNT


def terminate_backends(url: str) -> None:
    with psycopg.connect(url, autocommit=True, application_name=SESSION_APPLICATION) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name <> %s AND pid <> pg_backend_pid()",
            (SESSION_APPLICATION,),
        )
