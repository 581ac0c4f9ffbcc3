"""Queues steered while they are worked: paused and resumed by anybody, added, changed and removed by the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import riverq
from riverq.client.queues import AsyncQueues, Queues
from riverq.errors import UnavailableError
from riverq.stats import QueueStats
from riverq.worker import remote_control
from tests.client.faces import Greet, make_client, open_session, settle
from tests.client.test_terminated_backends import terminate_backends
from tests.client.working import Act, Watch, call, config, working
from tests.fix_database import EngineMaker
from tests.house.test_facade import _public, _shape

ONE = riverq.QueueConfig(max_workers=1)
HOUR = timedelta(hours=1)


def plain_workers() -> riverq.Workers:
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None: ...

    return workers


class Holding:
    """Workers whose jobs begin, and end when told."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.workers = plain_workers()

        @self.workers.work
        def act(job: riverq.Job[Act]) -> None:
            self.begun.release()
            self.go_on.wait(30)


def figures(client: Any, queue: str = "default") -> QueueStats | None:
    found = [each for each in client.stats().queues if each.name == queue]
    return found[0] if found else None


async def until(check: Callable[[], bool], limit: float = 30) -> None:
    """What is waited for happens in the client's own loop or thread; the limit only bounds a failure."""
    async with asyncio.timeout(limit):
        while not check():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


async def until_paused(client: Any, *, paused: bool = True) -> None:
    def check() -> bool:
        found = figures(client)
        return found is not None and found.paused is paused

    await until(check)


async def assert_resuming_begins_the_job(client: Any, watch: Watch, name: str = "default") -> None:
    """A job inserted while the queue is paused is claimed after the resume, and not before."""
    await settle(client.insert(Greet("waits")))
    await settle(client.queue_resume(name))
    resumed_at = (await settle(client.queue_get("default"))).updated_at
    rows = await watch.until(lambda rows: all(row["state"] == "completed" for row in rows))
    assert max(row["attempted_at"] for row in rows) >= resumed_at


# -- paused by somebody


@pytest.mark.parametrize("name", ["default", "*"])
async def test_another_client_pauses_and_resumes(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, name: str
) -> None:
    engine = make_engine(adapter)
    other = make_client(engine, riverq.Config(schema=schema))
    async with working(make_client(engine, config(schema, plain_workers()))) as client:
        await settle(other.queue_pause(name))
        await until_paused(client)
        await assert_resuming_begins_the_job(other, watch, name)
        await until_paused(client, paused=False)


async def test_a_pause_in_a_transaction_has_no_effect_before_its_commit(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    engine = make_engine(adapter)
    async with working(make_client(engine, config(schema, plain_workers()))) as client:
        async with open_session(engine, "session") as session:
            await settle(client.queue_pause("default", session=session))
            await settle(client.insert(Greet("goes on")))
            await watch.state("completed")
            await settle(session.commit())
        await until_paused(client)
        await assert_resuming_begins_the_job(client, watch)


@pytest.mark.listens
async def test_a_pause_that_was_not_heard_is_read_when_the_listener_is_back(
    adapter: str, make_engine: EngineMaker, database_url: str, schema: str, watch: Watch
) -> None:
    engine = make_engine(adapter, pool_pre_ping=True)
    async with working(make_client(engine, config(schema, plain_workers()))) as client:
        await until(lambda: client.stats().delivering)
        watch.execute("UPDATE {}.river_queue SET paused_at = now()")  # as if its notification were lost
        await asyncio.to_thread(terminate_backends, database_url)
        await until_paused(client)
        await assert_resuming_begins_the_job(client, watch)


async def test_without_listening_pauses_are_polled(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    client = make_client(make_engine(adapter), config(schema, plain_workers(), poll_only=True))
    async with working(client):
        assert client.stats().poll_only
        await settle(client.queue_pause("default"))
        await until_paused(client)
        await assert_resuming_begins_the_job(client, watch)


async def test_a_pause_with_an_end_is_ended_by_a_client_that_works(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    async with working(make_client(make_engine(adapter), config(schema, plain_workers()))) as client:
        await settle(client.queue_pause("default", HOUR))
        await until_paused(client)
        await settle(client.insert(Greet("waits")))
        await settle(client.queue_pause("*", timedelta(milliseconds=1)))
        await watch.state("completed")
        assert (await settle(client.queue_get("default"))).paused_at is None


# -- the client's own set


def test_both_faces_take_the_same() -> None:
    sync, asynchronous = _public(Queues), _public(AsyncQueues)
    assert set(sync) == set(asynchronous) == {"add", "list", "remove", "update"}
    for name, method in sync.items():
        assert _shape(method) == _shape(asynchronous[name])


async def test_a_queue_comes_is_changed_and_goes_while_the_client_runs(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    holding = Holding()
    async with working(make_client(make_engine(adapter), config(schema, holding.workers))) as client:
        await settle(client.insert(Act("hold"), queue="second"))
        await call(client.queues.add, name="second", config=ONE)
        assert await asyncio.to_thread(holding.begun.acquire, timeout=20)
        await call(client.queues.update, name="second", config=riverq.QueueConfig(max_workers=3))
        second = figures(client, "second")
        assert second is not None
        assert (second.max_workers, second.running) == (3, 1)
        assert set(client.queues.list()) == {"default", "second"}

        leaving = asyncio.ensure_future(call(client.queues.remove, name="second"))
        await until(lambda: "second" not in client.queues.list())
        for change in ("remove", "add", "update"):
            options: dict[str, Any] = {} if change == "remove" else {"config": ONE}
            with pytest.raises(riverq.UsageError, match="just being removed, and its running jobs are waited for"):
                await call(getattr(client.queues, change), name="second", **options)
        assert not leaving.done()
        holding.go_on.set()
        await leaving
        assert figures(client, "second") is None
        await watch.state("completed")

        await call(client.queues.add, name="second", config=ONE)
        await settle(client.insert(Act("again"), queue="second"))
        await watch.state("completed", 2)


async def test_while_the_client_stands_changes_hold_from_the_next_start(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    client = make_client(make_engine(adapter), config(schema, plain_workers()))
    await call(client.queues.add, name="second", config=ONE)
    await call(client.queues.update, name="second", config=riverq.QueueConfig(max_workers=2))
    await call(client.queues.remove, name="default")
    assert client.queues.list() == {"second": riverq.QueueConfig(max_workers=2)}
    assert set(client.config.queues) == {"default"}
    await settle(client.insert(Greet("a"), queue="second"))
    for _ in range(2):
        async with working(client):
            assert [(each.name, each.max_workers) for each in client.stats().queues] == [("second", 2)]
            await watch.state("completed")


@pytest.mark.parametrize(
    ("verb", "arguments", "error", "message"),
    [
        ("add", {"name": "default", "config": ONE}, riverq.UsageError, "works queue 'default' already"),
        ("add", {"name": "No!", "config": ONE}, riverq.ConfigError, "No!"),
        ("add", {"name": "second", "config": 5}, riverq.ConfigError, "to be a QueueConfig, got: 5"),
        (
            "update",
            {"name": "default", "config": riverq.QueueConfig(max_workers=1, fetch_cooldown=HOUR)},
            riverq.ConfigError,
            "expected fetch_poll_interval to be at least fetch_cooldown",
        ),
        ("update", {"name": "defualt", "config": ONE}, riverq.UsageError, "did you mean 'default'?"),
        ("remove", {"name": "second"}, riverq.UsageError, r"does not work queue 'second' \(known: default\)"),
    ],
)
async def test_what_cannot_be_changed_is_refused(
    adapter: str, make_engine: EngineMaker, schema: str, verb: str, arguments: Any, error: Any, message: str
) -> None:
    client = make_client(make_engine(adapter), config(schema, plain_workers()))
    with pytest.raises(error, match=message):
        await call(getattr(client.queues, verb), **arguments)
    assert list(client.queues.list()) == ["default"]


async def test_a_client_without_workers_has_no_queues(client: Any) -> None:
    with pytest.raises(riverq.ConfigError, match="this client has no workers"):
        await call(client.queues.add, name="second", config=ONE)
    assert client.queues.list() == {}


async def test_of_many_who_add_and_remove_at_once_one_has_its_way_at_a_time(
    adapter: str, make_engine: EngineMaker, schema: str
) -> None:
    async def attempt(verb: str, name: str) -> bool:
        options = {"config": ONE} if verb == "add" else {}
        try:
            await call(getattr(client.queues, verb), name=name, **options)
        except riverq.UsageError:
            return False
        return True

    async with working(make_client(make_engine(adapter), config(schema, plain_workers()))) as client:
        for verb, left in (("add", {"default", "q0", "q1", "q2"}), ("remove", {"default"})):
            tries = [attempt(verb, f"q{number % 3}") for number in range(12)]
            assert sum(await asyncio.gather(*tries)) == 3
            assert set(client.queues.list()) == {each.name for each in client.stats().queues} == left


async def test_a_queue_that_could_not_be_begun_was_not_added(
    adapter: str, make_engine: EngineMaker, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise UnavailableError("the server went away")

    async with working(make_client(make_engine(adapter), config(schema, plain_workers()))) as client:
        with monkeypatch.context() as patched:
            patched.setattr(remote_control, "queue_create_or_touch", failing)
            with pytest.raises(UnavailableError):
                await call(client.queues.add, name="second", config=ONE)
        assert set(client.queues.list()) == {each.name for each in client.stats().queues} == {"default"}
        await call(client.queues.add, name="second", config=ONE)


@pytest.mark.parametrize("adapter", ["asyncpg"])
async def test_a_removal_goes_on_when_nobody_waits_for_it(adapter: str, make_engine: EngineMaker, schema: str) -> None:
    holding = Holding()
    async with working(make_client(make_engine(adapter), config(schema, holding.workers))) as client:
        await client.queues.add("second", ONE)
        await client.insert(Act("hold"), queue="second")
        assert await asyncio.to_thread(holding.begun.acquire, timeout=20)
        leaving = asyncio.ensure_future(client.queues.remove("second"))
        await until(lambda: "second" not in client.queues.list())
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        with pytest.raises(riverq.UsageError, match="just being removed"):
            await client.queues.add("second", ONE)
        holding.go_on.set()
        await until(lambda: figures(client, "second") is None)
        await client.queues.add("second", ONE)


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_jobs_may_use_the_verbs_and_change_queues_but_not_remove_them(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str
) -> None:
    workers = plain_workers()
    refused: list[str] = []

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        client = job.client
        client.queues.add("second", ONE)
        client.queues.update("second", riverq.QueueConfig(max_workers=2))
        assert [each.max_workers for each in client.stats().queues if each.name == "second"] == [2]
        with pytest.raises(riverq.UsageError) as caught:
            client.queues.remove("default")
        refused.append(str(caught.value))
        assert client.queue_get("default").name == "default"

    if kind == "async def":
        workers = plain_workers()

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            client = job.async_client
            await client.queues.add("second", ONE)
            await client.queues.update("second", riverq.QueueConfig(max_workers=2))
            assert [each.max_workers for each in client.stats().queues if each.name == "second"] == [2]
            with pytest.raises(riverq.UsageError) as caught:
                await client.queues.remove("default")
            refused.append(str(caught.value))
            assert (await client.queue_get("default")).name == "default"

    async with working(make_client(make_engine(adapter), config(schema, workers))) as client:
        await settle(client.insert(Act("x"), max_attempts=1))
        (row,) = await watch.until(lambda rows: rows[0]["state"] in ("completed", "discarded"))
        assert (row["state"], row["errors"]) == ("completed", None)
        await settle(client.insert(Greet("there"), queue="second"))
        await watch.state("completed", 2)
    assert refused == ["a job cannot remove a queue of the client that runs it (it may wait for itself)"]


@pytest.mark.parametrize("adapter", ["psycopg"])
async def test_the_sync_face_in_the_clients_own_loop_is_refused_and_no_deadlock(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        client.queues.add("second", ONE)

    client: Any = make_client(make_engine(adapter), config(schema, workers))
    async with working(client):
        await settle(client.insert(Act("x"), max_attempts=1))
        (row,) = await watch.state("discarded")
    assert "use job.async_client.queues" in row["errors"][0]["error"]
