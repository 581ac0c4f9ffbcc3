"""What one client's call does to another client at work: its jobs are cancelled, its leader resigns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import riverq
from tests.client.faces import make_client, open_session, settle
from tests.client.test_queues import until
from tests.client.working import Act, Watch, config, working
from tests.fix_database import EngineMaker


def sleeping_workers(begun: list[int]) -> riverq.Workers:
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        begun.append(job.id)
        await asyncio.sleep(60)

    return workers


@pytest.mark.parametrize("poll_only", [False, True])
async def test_another_client_cancels_a_running_job(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, poll_only: bool
) -> None:
    engine, begun = make_engine(adapter), list[int]()
    other: Any = make_client(engine, riverq.Config(schema=schema))
    async with working(make_client(engine, config(schema, sleeping_workers(begun), poll_only=poll_only))) as client:
        job = (await settle(client.insert(Act("x")))).job
        await until(lambda: bool(begun))
        marked = await settle(other.job_cancel(job.id))
        assert (marked.state, marked.finalized_at) == (riverq.JobState.RUNNING, None)
        (row,) = await watch.state("cancelled")
    assert row["metadata"]["cancel_attempted_at"] == marked.metadata["cancel_attempted_at"]
    assert "job cancelled remotely" in row["errors"][0]["error"]


async def test_a_cancellation_in_a_transaction_is_heard_at_its_commit(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine, begun = make_engine(adapter), list[int]()
    async with working(make_client(engine, config(schema, sleeping_workers(begun)))) as client:
        first = (await settle(client.insert(Act("x")))).job
        await until(lambda: bool(begun))
        async with open_session(engine, "session") as session:
            await settle(client.job_cancel(first.id, session=session))
            await settle(session.rollback())
        second = (await settle(client.insert(Act("y")))).job
        await until(lambda: len(begun) == 2)
        async with open_session(engine, "session") as session:
            await settle(client.job_cancel(second.id, session=session))
            await settle(session.commit())
        rows = await watch.state("cancelled")
    assert {row["id"]: row["state"] for row in rows} == {first.id: "running", second.id: "cancelled"}


@pytest.mark.listens
async def test_the_leader_resigns_when_asked(adapter: str, make_engine: EngineMaker, schema: str, watch: Watch) -> None:
    engine = make_engine(adapter)
    other: Any = make_client(engine, riverq.Config(schema=schema))
    async with working(make_client(engine, config(schema, sleeping_workers([])))) as client:
        await until(lambda: client.stats().leader.is_leader and client.stats().delivering)
        term = client.stats().leader.elected_at
        async with open_session(engine, "session") as session:
            await settle(other.request_resign(session=session))
            await settle(session.rollback())
        await settle(other.request_resign())
        await until(lambda: client.stats().leader.elected_at not in (None, term))
