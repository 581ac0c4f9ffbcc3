"""An application with clients to be worked by `riverq worker`: used by the tests as a user's module would be."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import riverq
from riverq.cli import stopping
from riverq.cron import cron
from riverq.periodic import PeriodicJob
from riverq.schedule import every, never

stopping.HARD_EXIT = float(os.environ.get("TEST_HARD_EXIT", stopping.HARD_EXIT))


@riverq.job_args("hold")
@dataclass
class Hold:
    """Run until told to stop; a deaf job never listens, a blocking one blocks the event loop as well."""

    how: str = "polite"


@riverq.job_args("touch")
@dataclass
class Touch:
    name: str


def _config(workers: riverq.Workers, **settings: Any) -> riverq.Config:
    return riverq.Config(
        schema=os.environ["TEST_SCHEMA"],
        workers=workers,
        queues={"default": riverq.QueueConfig(max_workers=5), "other": riverq.QueueConfig(max_workers=1)},
        **settings,
    )


def _url(driver: str) -> sa.URL:
    return sa.make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{driver}")


def sync_client(driver: str = "psycopg", **settings: Any) -> riverq.Client:
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

    return riverq.Client(sa.create_engine(_url(driver)), _config(workers, **settings))


def _tell_signals() -> None:
    """On the main thread: say that a signal was handled, which a worker whose loop is blocked cannot do."""
    handle: Any = signal.getsignal(signal.SIGTERM)

    def telling(number: int, frame: Any) -> None:
        handle(number, frame)
        os.write(1, b"handled\n")  # `print` may be what the signal interrupts

    signal.signal(signal.SIGTERM, telling)


def named_client() -> riverq.Client:
    """An application that names its clients itself."""
    return sync_client(client_id="named")


def blocking_client() -> riverq.Client:
    """Its worker blocks the runtime's event loop until a file is there."""
    workers = riverq.Workers()

    @workers.work(timeout=None)
    async def hold(job: riverq.Job[Hold]) -> None:
        print(f"holding {job.id}", flush=True)
        while not os.path.exists(job.args.how):  # noqa: ASYNC240  # that it blocks is the point
            time.sleep(0.05)  # noqa: ASYNC251

    return riverq.Client(sa.create_engine(_url("psycopg")), _config(workers))


def _periodic_jobs() -> list[PeriodicJob]:
    return [
        PeriodicJob(cron("0 9 * * *"), lambda: Touch("daily"), id="daily", durable=True),
        PeriodicJob(every(timedelta(hours=1)), lambda: Touch("hourly"), id="hourly"),
        PeriodicJob(never(), lambda: Touch("never"), run_on_start=True),
    ]


def periodic_client() -> riverq.Client:
    """A client with periodic jobs of every sort."""
    return sync_client(periodic_jobs=_periodic_jobs())


async def periodic_async_client() -> riverq.AsyncClient:
    return await async_client(periodic_jobs=_periodic_jobs())


def noisy_client() -> riverq.Client:
    """A client whose module logs odd things and warns."""
    log = logging.getLogger("app")
    log.info("caf\u00e9 \x00 \ud800", extra={"shape": float("nan"), "who": object(), "level": "mine"})
    log.info("two %s %d", "arguments", "wrong")
    warnings.warn("careful", stacklevel=1)
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        log.exception("it failed")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    return sync_client()


def pg8000_client() -> riverq.Client:
    return sync_client("pg8000")


async def async_client(driver: str = "asyncpg", **settings: Any) -> riverq.AsyncClient:
    workers = riverq.Workers()

    @workers.work(timeout=None)
    async def hold(job: riverq.Job[Hold]) -> None:
        if job.args.how == "deaf":
            _tell_signals()
        print(f"holding {job.id}", flush=True)
        if job.args.how == "polite":
            await asyncio.sleep(3600)
        while True:
            time.sleep(60)  # noqa: ASYNC251  # a job that blocks the loop is the point

    @workers.work
    async def touch(job: riverq.Job[Touch]) -> None: ...

    return riverq.AsyncClient(create_async_engine(_url(driver)), _config(workers, **settings))


async def psycopg_async_client() -> riverq.AsyncClient:
    return await async_client("psycopg")


def broken() -> Any:
    raise RuntimeError("the settings are missing")


not_a_client = 42
