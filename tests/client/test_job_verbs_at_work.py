"""What the verbs for jobs do to clients at work: a retried job wakes them, a worker's output is seen before it ends."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

import riverq
from tests.client.faces import make_client, open_session, settle
from tests.client.test_queues import until
from tests.client.working import Act, Watch, acting_workers, call, config, working
from tests.fix_database import EngineMaker

NEVER = timedelta(hours=1)
"""As a poll interval: whatever is worked was notified."""


@pytest.mark.listens
async def test_a_retried_job_wakes_an_idle_producer(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine = make_engine(adapter)
    other: Any = make_client(engine, riverq.Config(schema=schema))
    async with working(
        make_client(engine, config(schema, acting_workers("async def"), fetch_poll_interval=NEVER))
    ) as client:
        await until(lambda: client.stats().delivering)
        first, second = [(await settle(other.insert(Act("x"), pending=True))).job for _ in range(2)]
        for job in (first, second):
            await settle(other.job_cancel(job.id))
        await settle(other.job_retry(first.id))
        await watch.state("completed")
        async with open_session(engine, "session") as session:
            await settle(other.job_retry(second.id, session=session))
            await settle(session.commit())
        await watch.state("completed", 2)


async def test_a_job_that_was_cancelled_while_it_ran_runs_again_after_a_retry(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    """The old mark neither cancels the new run nor stays in the row."""
    engine, begun = make_engine(adapter), list[int]()
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        begun.append(job.row.attempt)
        if len(begun) == 1:
            await asyncio.sleep(60)

    other: Any = make_client(engine, riverq.Config(schema=schema))
    async with working(make_client(engine, config(schema, workers))) as client:
        job = (await settle(client.insert(Act("x")))).job
        await until(lambda: bool(begun))
        await settle(other.job_cancel(job.id))
        [cancelled] = await watch.state("cancelled")
        await settle(other.job_retry(job.id))
        [row] = await watch.state("completed")
    assert begun == [1, 2]
    assert ("cancel_attempted_at" in cancelled["metadata"], row["metadata"]) == (True, {})


def updating_workers(kind: str, seen: list[Any], let_end: threading.Event) -> riverq.Workers:
    """A worker that records an output, stores it, tries the same on another job, and waits."""
    workers = riverq.Workers()

    if kind == "def":

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            job.set_metadata("seen", 1)
            seen.append(job.client.job_update(job.id).output)
            job.record_output("half")
            job.client.job_update(int(job.args.how))
            seen.append(job.client.job_update(job.id).output)
            assert let_end.wait(20)
            job.record_output("whole")

    else:

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            job.set_metadata("seen", 1)
            seen.append((await job.async_client.job_update(job.id)).output)
            job.record_output("half")
            await job.async_client.job_update(int(job.args.how))
            seen.append((await job.async_client.job_update(job.id)).output)
            assert await asyncio.to_thread(let_end.wait, 20)
            job.record_output("whole")

    return workers


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_worker_shows_its_output_before_it_ends(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str
) -> None:
    """Its own job's output only: of another job it reads the row."""
    engine, seen, let_end = make_engine(adapter), list[Any](), threading.Event()
    async with working(make_client(engine, config(schema, updating_workers(kind, seen, let_end)))) as client:
        other = (await settle(client.insert(Act("x"), pending=True))).job
        job = (await settle(client.insert(Act(str(other.id))))).job
        rows = await watch.until(lambda rows: any("output" in row["metadata"] for row in rows))
        assert {row["id"]: (row["state"], row["metadata"]) for row in rows} == {
            other.id: ("pending", {}),
            job.id: ("running", {"output": "half"}),
        }
        assert (await call(client.job_update, job_id=job.id)).output == "half"  # called by no worker: a look
        await call(client.job_update, job_id=job.id, output="overwritten")
        let_end.set()
        rows = await watch.state("completed")
    assert seen == [None, "half"]
    assert rows[1]["metadata"] == {"output": "whole", "seen": 1}


def overtaken_workers(kind: str, begun: threading.Event, taken: threading.Event, seen: list[Any]) -> riverq.Workers:
    """A worker that stores its output after somebody else has taken the job from it."""
    workers = riverq.Workers()

    if kind == "def":

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            job.record_output("too late")
            begun.set()
            assert taken.wait(20)
            try:
                job.client.job_update(job.id)
            except riverq.JobRunLostError as error:
                seen.append(error.job_id)

    else:

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            job.record_output("too late")
            begun.set()
            assert await asyncio.to_thread(taken.wait, 20)
            try:
                await job.async_client.job_update(job.id)
            except riverq.JobRunLostError as error:
                seen.append(error.job_id)

    return workers


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_worker_whose_run_was_lost_does_not_replace_the_output_of_the_next(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str
) -> None:
    """It was taken for dead; the job was rescued, claimed and completed by another client."""
    engine, begun, taken, seen = make_engine(adapter), threading.Event(), threading.Event(), list[Any]()
    async with working(make_client(engine, config(schema, overtaken_workers(kind, begun, taken, seen)))) as client:
        job = (await settle(client.insert(Act("x")))).job
        assert await asyncio.to_thread(begun.wait, 20)
        watch.execute(
            """UPDATE {}.river_job SET state = 'completed', finalized_at = now(), attempted_at = now(),
            attempted_by = array_append(attempted_by, 'another'), metadata = '{{"output": "whole"}}'"""
        )
        taken.set()
        await until(lambda: bool(seen))
        assert seen == [job.id]
    [row] = await watch.state("completed")
    assert row["metadata"] == {"output": "whole"}
