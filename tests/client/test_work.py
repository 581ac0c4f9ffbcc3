"""Working jobs through both clients, on every adapter: from the insert to the row that is left."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

import riverq
from tests.client.faces import Greet, jobs, make_client, settle
from tests.client.working import SECOND, Act, Watch, acting_workers, config, working
from tests.fix_database import EngineMaker
from tests.fix_server import tell


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_every_outcome_is_written_as_river_writes_it(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str
) -> None:
    client = make_client(make_engine(adapter), config(schema, acting_workers(kind), client_id="the-client"))
    hows = ["complete", "output", "error", "cancel", "discard", "snooze", "once"]
    async with working(client):
        await settle(client.insert_many([riverq.InsertItem(Act(how), max_attempts=3) for how in hows]))
        await watch.until(lambda rows: all(row["state"] not in ("available", "running") for row in rows))
    rows = {row["args"]["how"]: row for row in jobs(watch._url, schema)}
    assert {how: (row["state"], row["attempt"]) for how, row in rows.items()} == {
        "complete": ("completed", 1),
        "output": ("completed", 1),
        "error": ("retryable", 2),
        "cancel": ("cancelled", 1),
        "discard": ("discarded", 1),
        "snooze": ("scheduled", 0),
        "once": ("completed", 2),
    }
    assert rows["output"]["metadata"] == {"output": {"answer": 42}, "seen": 1}
    assert rows["snooze"]["metadata"] == {"snoozes": 1}
    assert rows["snooze"]["scheduled_at"] - rows["snooze"]["attempted_at"] > timedelta(minutes=59)
    assert set(rows["error"]["errors"][0]) == {"at", "attempt", "error", "trace"}
    assert "no such thing" in rows["error"]["errors"][0]["error"]
    assert [entry["attempt"] for entry in rows["error"]["errors"]] == [1, 2]
    assert "cannot ever work" in rows["discard"]["errors"][0]["error"]
    assert "not needed any more" in rows["cancel"]["errors"][0]["error"]
    assert rows["complete"]["attempted_by"] == ["the-client"]
    for how in ("complete", "output", "cancel", "discard"):
        assert rows[how]["finalized_at"] is not None


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_job_is_completed_with_what_its_worker_wrote(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, ending: str
) -> None:
    engine = make_engine(adapter)
    workers = riverq.Workers()
    write = sa.text(f"INSERT INTO \"{schema}\".river_queue (name, updated_at) VALUES ('written', now())")

    if isinstance(engine, AsyncEngine):

        @workers.work
        async def act(job: riverq.Job[Act]) -> None:
            async with AsyncSession(engine) as session:
                if job.row.attempt == 1 or ending == "commit":
                    await session.execute(write)
                    await job.complete(session=session)
                await (session.commit() if ending == "commit" else session.rollback())

    else:

        @workers.work
        def act_sync(job: riverq.Job[Act]) -> None:
            with Session(engine) as session:
                if job.row.attempt == 1 or ending == "commit":
                    session.execute(write)
                    job.complete(session=session)
                (session.commit if ending == "commit" else session.rollback)()

    client = make_client(engine, config(schema, workers))
    async with working(client):
        await settle(client.insert(Act("x")))
        (row,) = await watch.state("completed")
    with psycopg.connect(watch._url) as conn:
        written = conn.execute(
            SQL("SELECT count(*) FROM {}.river_queue WHERE name = 'written'").format(Identifier(schema))
        ).fetchone()
    if ending == "commit":
        assert (row["attempt"], row["errors"], written) == (1, None, (1,))
    else:
        assert (row["attempt"], written) == (2, (0,))
        assert "did not commit" in row["errors"][0]["error"]


async def test_a_run_that_was_taken_cannot_complete_in_a_transaction(
    make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine = make_engine("psycopg_async")
    assert isinstance(engine, AsyncEngine)
    workers = riverq.Workers()
    outcome: list[BaseException] = []

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        if job.row.attempt > 1:
            return
        await asyncio.to_thread(watch.execute, "UPDATE {}.river_job SET attempted_at = now()")
        async with AsyncSession(engine) as session:
            try:
                await job.complete(session=session)
            except riverq.JobRunLostError as error:
                outcome.append(error)
                raise

    client = riverq.AsyncClient(engine, config(schema, workers))
    async with working(client):
        await client.insert(Act("x"))
        await watch.until(lambda rows: bool(outcome))
    (row,) = jobs(watch._url, schema)
    assert row["state"] == "running"  # it is somebody else's run now, and nothing of ours touched it
    assert row["errors"] is None


async def test_a_worker_inserts_through_its_own_face(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()
    refused: list[str] = []

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        job.client.insert(Act("from def"))
        try:
            _ = job.async_client
        except riverq.UsageError as error:
            refused.append(str(error))

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        if job.args.how == "from def":
            await job.async_client.insert(Act("from async def"))
            await job.async_client.insert_many_fast([Act("copied")])
        try:
            _ = job.client
        except riverq.UsageError as error:
            refused.append(str(error))

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert(Greet("a")))
        rows = await watch.state("completed", 4)
    assert [row["args"].get("how") for row in rows] == [None, "from def", "from async def", "copied"]
    assert len(refused) == 4


async def test_a_job_cannot_stop_the_client_that_runs_it(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    """Neither through its own face nor through the application's client: it would wait for its own end."""
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        if job.args.name == "own face":
            job.client.stop()
        elif isinstance(client, riverq.Client):
            client.stop()
        else:
            raise riverq.UsageError("a job cannot, without a loop")

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        if job.args.how == "own face":
            await job.async_client.stop()
        elif isinstance(client, riverq.AsyncClient):
            await client.stop()
        else:
            await asyncio.to_thread(client.stop_and_cancel)

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        batch = [kind(which) for kind in (Greet, Act) for which in ("own face", "the client")]
        await settle(client.insert_many([riverq.InsertItem(args, max_attempts=1) for args in batch]))
        rows = await watch.state("discarded", 4)
    for row in rows:
        assert "a job cannot" in row["errors"][0]["error"]


async def test_a_job_may_have_another_task_stop_its_client(make_engine: EngineMaker, schema: str, watch: Watch) -> None:
    workers = riverq.Workers()
    stopping: list[asyncio.Task[None]] = []

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        stopping.append(asyncio.create_task(client.stop()))

    engine: Any = make_engine("asyncpg")
    client = riverq.AsyncClient(engine, config(schema, workers))
    async with working(client):
        await client.insert(Act("x"))
        await watch.state("completed")
        await stopping[0]


async def test_middleware_wraps_inserting_and_working(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    heard: list[str] = []

    class Both:
        def insert(self, params: Any, call_next: Any) -> Any:
            heard.append(f"insert {params[0].kind}")
            return call_next(params)

        def work(self, job: Any, call_next: Any) -> None:
            heard.append(f"work {job.row.kind}")
            call_next(job)

    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        job.client.insert(Act("x"))

    @workers.work
    async def act(job: riverq.Job[Act]) -> None: ...

    client = make_client(make_engine(adapter), config(schema, workers, middleware=[Both()]))
    async with working(client):
        await settle(client.insert(Greet("a")))
        await watch.state("completed", 2)
    assert heard == ["insert greet", "work greet", "insert act", "work act"]


async def test_a_scheduled_job_runs_when_it_is_due(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    client = make_client(make_engine(adapter), config(schema, acting_workers("def")))
    async with working(client):
        result = await settle(client.insert(Act("complete"), delay=SECOND))
        assert result.job.state is riverq.JobState.SCHEDULED
        (row,) = await watch.state("completed")
    assert row["attempted_at"] >= row["scheduled_at"]


async def test_a_paused_queue_is_not_worked_until_it_is_resumed(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    watch.execute("INSERT INTO {}.river_queue (name, paused_at, updated_at) VALUES ('default', now(), now())")
    queues = {name: riverq.QueueConfig(max_workers=2) for name in ("default", "other")}
    client = make_client(make_engine(adapter), config(schema, acting_workers("def"), queues=queues))
    async with working(client):
        await settle(client.insert(Act("complete")))
        await settle(client.insert(Act("output"), queue="other"))
        rows = await watch.state("completed")
        assert {row["queue"]: row["state"] for row in rows} == {"default": "available", "other": "completed"}
        watch.execute("UPDATE {}.river_queue SET paused_at = NULL WHERE name = 'default'")
        payload = '{"action":"resume","queue":"default"}'
        with psycopg.connect(watch._url, autocommit=True) as conn:
            tell(conn, f"{schema}.river_control", payload)
        await watch.state("completed", 2)


@pytest.mark.parametrize("poll_only", [False, True])
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_running_job_hears_that_it_was_cancelled(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str, poll_only: bool
) -> None:
    workers = riverq.Workers()
    reasons: list[str | None] = []

    if kind == "def":

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            assert job.cancelled.wait(20)
            reasons.append(job.cancelled.reason)
            raise RuntimeError("I was told to end")

    else:

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            try:
                await asyncio.sleep(20)
            finally:
                reasons.append(job.cancelled.reason)

    client = make_client(make_engine(adapter), config(schema, workers, poll_only=poll_only))
    async with working(client):
        job_id = (await settle(client.insert(Act("x")))).job.id
        await watch.state("running")
        with psycopg.connect(watch._url) as conn:  # what every River client writes to cancel a running job
            mark = SQL(
                "UPDATE {}.river_job SET metadata = jsonb_set(metadata, '{{cancel_attempted_at}}', to_jsonb(now()))"
            )
            conn.execute(mark.format(Identifier(schema)))
            payload = f'{{"action" : "cancel", "job_id" : {job_id}, "queue" : "default"}}'
            tell(conn, f"{schema}.river_control", payload)
        (row,) = await watch.state("cancelled")
    assert reasons == ["cancelled"]
    assert row["errors"][0]["error"] == "JobCancelError: job cancelled remotely"


async def test_two_clients_share_the_work_and_one_leads(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    one = make_client(make_engine(adapter), config(schema, acting_workers("async def"), client_id="one"))
    two = make_client(make_engine("psycopg_async"), config(schema, acting_workers("async def"), client_id="two"))

    def leaders() -> list[Any]:
        with psycopg.connect(watch._url) as conn:
            return conn.execute(SQL("SELECT leader_id FROM {}.river_leader").format(Identifier(schema))).fetchall()

    async with working(one), working(two):
        await settle(one.insert_many([Act("complete") for _ in range(200)]))
        rows = await watch.state("completed", 200)
        await watch.until(lambda _: bool(leaders()))  # a bid may take longer than all of the jobs
        led = leaders()
    assert all(row["attempt"] == 1 and len(row["attempted_by"]) == 1 for row in rows)
    assert led in ([("one",)], [("two",)])
    assert leaders() == []


async def test_jobs_in_front_are_claimed_by_priority_then_time_then_id(
    make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()
    order: list[str] = []

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        order.append(job.args.how)

    engine: Any = make_engine("asyncpg")
    inserter = riverq.AsyncClient(engine, riverq.Config(schema=schema))
    for priority, how in ((4, "last"), (2, "second"), (2, "third"), (1, "first")):
        await inserter.insert(Act(how), priority=priority)
    queues = {"default": riverq.QueueConfig(max_workers=1)}
    async with working(riverq.AsyncClient(engine, config(schema, workers, queues=queues))):
        await watch.state("completed", 4)
    assert order == ["first", "second", "third", "last"]
