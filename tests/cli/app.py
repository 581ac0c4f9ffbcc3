"""An application with clients to be worked by `riverq worker`: used by the tests as a user's module would be."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import riverq


@riverq.job_args("hold")
@dataclass
class Hold:
    """Run until told to stop; a deaf job never listens, a blocking one blocks the event loop as well."""

    how: str = "polite"


@riverq.job_args("touch")
@dataclass
class Touch:
    name: str


def _config(workers: riverq.Workers) -> riverq.Config:
    return riverq.Config(
        schema=os.environ["TEST_SCHEMA"],
        workers=workers,
        queues={"default": riverq.QueueConfig(max_workers=5), "other": riverq.QueueConfig(max_workers=1)},
    )


def _url(driver: str) -> sa.URL:
    return sa.make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{driver}")


def sync_client(driver: str = "psycopg") -> riverq.Client:
    workers = riverq.Workers()

    @workers.work(timeout=None)
    def hold(job: riverq.Job[Hold]) -> None:
        print(f"holding {job.id}", flush=True)
        if job.args.how == "polite":
            job.cancelled.wait()
            raise RuntimeError("told to stop")
        while True:
            time.sleep(60)

    @workers.work
    def touch(job: riverq.Job[Touch]) -> None: ...

    return riverq.Client(sa.create_engine(_url(driver)), _config(workers))


def pg8000_client() -> riverq.Client:
    return sync_client("pg8000")


async def async_client(driver: str = "asyncpg") -> riverq.AsyncClient:
    workers = riverq.Workers()

    @workers.work(timeout=None)
    async def hold(job: riverq.Job[Hold]) -> None:
        print(f"holding {job.id}", flush=True)
        if job.args.how == "polite":
            await asyncio.sleep(3600)
        while True:
            time.sleep(60)  # noqa: ASYNC251  # a job that blocks the loop is the point

    @workers.work
    async def touch(job: riverq.Job[Touch]) -> None: ...

    return riverq.AsyncClient(create_async_engine(_url(driver)), _config(workers))


async def psycopg_async_client() -> riverq.AsyncClient:
    return await async_client("psycopg")


def broken() -> Any:
    raise RuntimeError("the settings are missing")


not_a_client = 42
