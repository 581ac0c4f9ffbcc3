"""Clients at work, and how a test waits for what they leave in the tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

import riverq
from tests.client.faces import jobs

SECOND = timedelta(seconds=1)


@riverq.job_args("act")
@dataclass
class Act:
    """A job whose worker does what `how` says."""

    how: str


class Watch:
    """Looks at the rows until they are as the test waits for; the limit only bounds a failure."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self._schema = url, schema

    async def until(self, check: Callable[[list[dict[str, Any]]], bool], limit: float = 20) -> list[dict[str, Any]]:
        async with asyncio.timeout(limit):
            # The rows change in another process's hands, so there is no event to wait for.
            while not check(rows := await asyncio.to_thread(jobs, self._url, self._schema)):  # noqa: ASYNC110  # see above
                await asyncio.sleep(0.02)
        return rows

    async def state(self, state: str, count: int = 1) -> list[dict[str, Any]]:
        return await self.until(lambda rows: [row["state"] for row in rows].count(state) == count)

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute(SQL(statement).format(Identifier(self._schema)), values)


@asynccontextmanager
async def working(client: Any) -> AsyncIterator[Any]:
    """The client, started, and stopped with its jobs cancelled."""
    start, stop = client.start, client.stop_and_cancel
    if isinstance(client, riverq.AsyncClient):
        await start()
    else:
        await asyncio.to_thread(start)
    try:
        yield client
    finally:
        if isinstance(client, riverq.AsyncClient):
            await stop()
        else:
            await asyncio.to_thread(stop)


def config(schema: str | None, workers: riverq.Workers, **settings: Any) -> riverq.Config:
    queues = settings.pop("queues", {"default": riverq.QueueConfig(max_workers=10)})
    return riverq.Config(schema=schema, workers=workers, queues=queues, **settings)


def decide(job: riverq.Job[Act]) -> None:
    match job.args.how:
        case "output":
            job.record_output({"answer": 42})
            job.set_metadata("seen", job.row.attempt)
        case "error":
            raise ValueError("no such thing\0 here")
        case "cancel":
            raise riverq.JobCancel("not needed any more")
        case "discard":
            raise riverq.JobDiscard("cannot ever work")
        case "snooze":
            raise riverq.JobSnooze(timedelta(hours=1))
        case "once" if job.row.attempt == 1:
            raise OSError("the first time")


def acting_workers(kind: str) -> riverq.Workers:
    """One worker for every outcome, `def` or `async def`."""
    workers = riverq.Workers()

    if kind == "def":

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            decide(job)

    else:

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            await asyncio.sleep(0)
            decide(job)

    return workers


async def call(method: Any, **arguments: Any) -> Any:
    """Call a client's method without holding up this loop."""
    if asyncio.iscoroutinefunction(method):
        return await method(**arguments)
    return await asyncio.to_thread(method, **arguments)
