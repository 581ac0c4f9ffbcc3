"""Starting and stopping clients, and what stopping does to the jobs that run."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from tests.client.faces import Greet, jobs, make_client, settle
from tests.client.working import Act, Watch, acting_workers, call, config, working
from tests.fix_database import EngineMaker


async def test_stopping_gives_running_jobs_back_and_counts_no_attempt(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()
    begun = threading.Event()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        await asyncio.sleep(60)

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        begun.set()
        job.cancelled.wait(60)
        raise RuntimeError("interrupted")

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert_many([Act("x"), Greet("y")]))
        await watch.state("running", 2)
        assert await asyncio.to_thread(begun.wait, 20)  # else it is told to end before it began, and does not count
    for row in jobs(watch._url, schema):
        if row["kind"] == "act":
            assert (row["state"], row["attempt"], row["errors"]) == ("available", 0, None)
        else:  # it raised an error of its own, which counts
            assert (row["state"], row["attempt"]) == ("available", 1)


async def test_stop_waits_for_running_jobs_and_its_timeout_only_limits_the_wait(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()
    go_on = threading.Event()

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        go_on.wait(20)

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert(Act("x")))
        await watch.state("running")
        with pytest.raises(TimeoutError):
            await call(client.stop, timeout=timedelta(milliseconds=50))
        assert jobs(watch._url, schema)[0]["state"] == "running"
        go_on.set()
        await call(client.stop)
        assert jobs(watch._url, schema)[0]["state"] == "completed"
        await call(client.stop)
        await call(client.start)
        await settle(client.insert(Act("again")))
        await watch.state("completed", 2)


async def test_a_start_that_fails_leaves_nothing_and_may_be_tried_again(
    adapter: str, make_engine: EngineMaker, scratch_schema: str, engine: sa.Engine
) -> None:
    client = make_client(make_engine(adapter), config(scratch_schema, acting_workers("def")))
    rename = f'ALTER TABLE "{scratch_schema}".%s RENAME TO %s'
    with engine.begin() as conn:
        conn.exec_driver_sql(rename % ("river_queue", "hidden"))
    with pytest.raises(riverq.SchemaError):
        await call(client.start)
    with engine.begin() as conn:
        conn.exec_driver_sql(rename % ("hidden", "river_queue"))
    await call(client.start)
    await call(client.stop)


async def test_a_client_without_queues_cannot_start(adapter: str, make_engine: EngineMaker, schema: str) -> None:
    client = make_client(make_engine(adapter), riverq.Config(schema=schema))
    with pytest.raises(riverq.ConfigError, match="only inserts"):
        await call(client.start)


async def test_works_while_the_applications_pool_is_drained(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine = make_engine(adapter, pool_size=1, max_overflow=0, pool_timeout=1)
    inserter = make_client(make_engine(adapter), riverq.Config(schema=schema))
    if isinstance(engine, AsyncEngine):
        taken: Any = await engine.connect()
    else:
        taken = engine.connect()
    try:
        async with working(make_client(engine, config(schema, acting_workers("async def")))):
            await settle(inserter.insert(Act("once")))
            await watch.state("completed")
    finally:
        await settle(taken.close())


async def test_can_share_the_applications_pool(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine = make_engine(adapter)
    settings = config(schema, acting_workers("async def"))
    client = (
        riverq.AsyncClient(engine, settings, share_pool=True)
        if isinstance(engine, AsyncEngine)
        else riverq.Client(engine, settings, share_pool=True)
    )
    async with working(client):
        await settle(client.insert(Act("once")))
        await watch.state("completed")


async def test_a_client_without_workers_cannot_start(adapter: str, make_engine: EngineMaker, schema: str) -> None:
    client = make_client(make_engine(adapter), config(schema, riverq.Workers()))
    with pytest.raises(riverq.ConfigError, match="no worker"):
        await call(client.start)


async def test_a_database_without_riverqs_own_tables_works_and_says_so(
    adapter: str,
    make_engine: EngineMaker,
    scratch_schema: str,
    engine: sa.Engine,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    riverq.migrate.down(engine, line="riverq", schema=scratch_schema)
    client = make_client(make_engine(adapter), config(scratch_schema, acting_workers("def")))
    async with working(client):
        await settle(client.insert(Act("complete")))
        await Watch(database_url, scratch_schema).state("completed")
    assert caplog.text.count("no tables of riverq's own") == 1
