"""Working jobs through both clients, on every adapter: from the insert to the row that is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from tests.fix_database import EngineMaker

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
            conn.execute(SQL(statement).format(Identifier(self._schema)), values)  # type: ignore[arg-type]


@pytest.fixture
def watch(database_url: str, schema: str) -> Watch:
    return Watch(database_url, schema)


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


def config(schema: str, workers: riverq.Workers, **settings: Any) -> riverq.Config:
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
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        job.client.stop()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        await job.async_client.stop()

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert_many([riverq.InsertItem(args, max_attempts=1) for args in (Greet("a"), Act("b"))]))
        rows = await watch.state("discarded", 2)
    for row in rows:
        assert "a job cannot" in row["errors"][0]["error"]


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
            conn.execute("SELECT pg_notify(%s, %s)", (f"{schema}.river_control", payload))
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
            conn.execute("SELECT pg_notify(%s, %s)", (f"{schema}.river_control", payload))
        (row,) = await watch.state("cancelled")
    assert reasons == ["cancelled"]
    assert row["errors"][0]["error"] == "JobCancelError: job cancelled remotely"


async def test_stopping_gives_running_jobs_back_and_counts_no_attempt(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        await asyncio.sleep(60)

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        job.cancelled.wait(60)
        raise RuntimeError("interrupted")

    client = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert_many([Act("x"), Greet("y")]))
        await watch.state("running", 2)
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


async def call(method: Any, **arguments: Any) -> Any:
    """Call a client's method without holding up this loop."""
    if asyncio.iscoroutinefunction(method):
        return await method(**arguments)
    return await asyncio.to_thread(method, **arguments)


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


async def test_two_clients_share_the_work_and_one_leads(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    one = make_client(make_engine(adapter), config(schema, acting_workers("async def"), client_id="one"))
    two = make_client(make_engine("psycopg_async"), config(schema, acting_workers("async def"), client_id="two"))
    async with working(one), working(two):
        await settle(one.insert_many([Act("complete") for _ in range(200)]))
        rows = await watch.state("completed", 200)
        with psycopg.connect(watch._url) as conn:
            leaders = conn.execute(SQL("SELECT leader_id FROM {}.river_leader").format(Identifier(schema))).fetchall()
    assert all(row["attempt"] == 1 and len(row["attempted_by"]) == 1 for row in rows)
    assert leaders in ([("one",)], [("two",)])
    with psycopg.connect(watch._url) as conn:
        left = conn.execute(SQL("SELECT count(*) FROM {}.river_leader").format(Identifier(schema))).fetchone()
    assert left == (0,)


async def test_jobs_in_front_are_claimed_by_priority_then_time_then_id(
    make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()
    order: list[str] = []

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        order.append(job.args.how)

    engine = make_engine("asyncpg")
    inserter = riverq.AsyncClient(engine, riverq.Config(schema=schema))
    for priority, how in ((4, "last"), (2, "second"), (2, "third"), (1, "first")):
        await inserter.insert(Act(how), priority=priority)
    queues = {"default": riverq.QueueConfig(max_workers=1)}
    async with working(riverq.AsyncClient(engine, config(schema, workers, queues=queues))):
        await watch.state("completed", 4)
    assert order == ["first", "second", "third", "last"]
