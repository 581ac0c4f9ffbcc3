"""The application whose workers are killed: each start and each end of a job goes into a file that no worker shares."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq.driver import load_driver_class

QUEUE = "faults"
ASYNC_ADAPTERS = ("psycopg_async", "asyncpg")


@riverq.job_args("fault_task", queue=QUEUE)
@dataclass
class Task:
    """Take `seconds`; with `fails_first`, fail at the first attempt."""

    number: int
    seconds: float
    fails_first: bool = False


class Ledger:
    """One line for each thing that happened to a job in this process, written before anything else can go wrong."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, job: riverq.Job[Task]) -> None:
        line = {"what": what, "job": job.id, "attempt": job.row.attempt, "at": str(job.row.attempted_at)}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def make_client() -> riverq.Client | riverq.AsyncClient:
    """A client as the environment says: adapter, id, grace, schema."""
    adapter, name = os.environ["FAULTS_ADAPTER"], os.environ["FAULTS_CLIENT_ID"]
    ledger = Ledger(os.environ["FAULTS_LEDGER"])
    driver = "psycopg" if adapter == "psycopg_async" else adapter
    url = sa.make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{driver}")
    engine = load_driver_class(driver).make_engine(
        url, asynchronous=adapter in ASYNC_ADAPTERS, application_name=name, pool_size=2
    )
    config = riverq.Config(
        client_grace=timedelta(seconds=float(os.environ["FAULTS_GRACE"])),
        client_id=name,
        queues={QUEUE: riverq.QueueConfig(max_workers=int(os.environ.get("FAULTS_WORKERS", "15")))},
        schema=os.environ["FAULTS_SCHEMA"],
        soft_stop_timeout=timedelta(seconds=3),
        workers=_async_workers(ledger) if adapter in ASYNC_ADAPTERS else _sync_workers(ledger),
    )
    if adapter in ASYNC_ADAPTERS:
        return riverq.AsyncClient(cast("AsyncEngine", engine), config)
    return riverq.Client(cast("sa.Engine", engine), config)


def _async_workers(ledger: Ledger) -> riverq.Workers:
    workers = riverq.Workers()

    @workers.work
    async def fault_task(job: riverq.Job[Task]) -> None:
        ledger.write("began", job)
        await asyncio.sleep(job.args.seconds)
        _end(ledger, job)

    return workers


def _sync_workers(ledger: Ledger) -> riverq.Workers:
    workers = riverq.Workers()

    @workers.work
    def fault_task(job: riverq.Job[Task]) -> None:
        ledger.write("began", job)
        job.cancelled.wait(job.args.seconds)
        job.cancelled.raise_if_set()
        _end(ledger, job)

    return workers


def _end(ledger: Ledger, job: riverq.Job[Any]) -> None:
    if job.args.fails_first and job.row.attempt == 1:
        ledger.write("failed", job)
        raise OSError("the first attempt fails")
    ledger.write("ended", job)
