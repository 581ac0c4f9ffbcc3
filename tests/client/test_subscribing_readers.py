"""Who may read a subscription, from where, and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

import riverq
from riverq import EventKind
from tests.client.faces import make_client, settle
from tests.client.subscribers import LIMIT, NOW, rest, take
from tests.client.working import SECOND, Act, Watch, acting_workers, config, working
from tests.fix_database import EngineMaker

AT = datetime(2026, 1, 1, tzinfo=UTC)
MAIL = riverq.Queue(name="mail", created_at=AT, updated_at=AT, paused_at=AT)


@pytest.fixture
def sync_worker(make_engine: EngineMaker, schema: str) -> riverq.Client:
    client: riverq.Client = make_client(make_engine("psycopg"), config(schema, acting_workers("def")))
    return client


@pytest.fixture
def async_worker(make_engine: EngineMaker, schema: str) -> riverq.AsyncClient:
    client: riverq.AsyncClient = make_client(make_engine("asyncpg"), config(schema, acting_workers("async def")))
    return client


# -- threads and tasks


async def test_threads_share_what_a_subscription_hears(sync_worker: riverq.Client) -> None:
    got: list[riverq.Event] = []
    with sync_worker.subscribe() as events:
        threads = [threading.Thread(target=lambda: got.extend(events)) for _ in range(4)]
        for thread in threads:
            thread.start()
        async with working(sync_worker):
            with sync_worker.subscribe() as others:
                sync_worker.insert_many([Act("complete")] * 200)
                await take(others, 200)
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
    assert sorted(event.job.id for event in got if event.job is not None) == list(range(1, 201))


async def test_a_thread_that_waits_ends_when_another_closes(sync_worker: riverq.Client) -> None:
    events = sync_worker.subscribe()
    reader = asyncio.create_task(rest(events))
    events.close()
    assert await asyncio.wait_for(reader, 20) == []


async def test_a_wait_that_is_cancelled_as_the_event_comes_loses_nothing(async_worker: riverq.AsyncClient) -> None:
    async with async_worker.subscribe() as events:
        waiting = asyncio.create_task(events.get(timeout=LIMIT))
        await asyncio.sleep(0)
        async_worker._core.subscriptions.queue_changed(MAIL)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await events.get(timeout=NOW) == riverq.Event(kind=EventKind.QUEUE_PAUSED, queue=MAIL)


async def test_tasks_share_what_a_subscription_hears(async_worker: riverq.AsyncClient) -> None:
    async with async_worker.subscribe() as events:
        readers = [asyncio.create_task(rest(events)) for _ in range(3)]
        async with async_worker.running(), async_worker.subscribe() as others:
            await async_worker.insert_many([Act("complete")] * 60)
            await take(others, 60)
        got = [event for each in await asyncio.gather(*readers) for event in each]
    assert sorted(event.job.id for event in got if event.job is not None) == list(range(1, 61))


# -- what is refused


@pytest.mark.parametrize(
    ("kinds", "buffer", "words"),
    [
        (
            ["job_complete"],
            1,
            r"expected kind to be an EventKind, got: 'job_complete' \(did you mean 'job_completed'\?",
        ),
        ([["job_failed"]], 1, r"got: \['job_failed'\] \(each as an argument of its own\)"),
        ([None], 1, r"got: None"),
        (["events_lost"], 1, r"to name what to listen to, got: 'events_lost' \(these come by themselves\)"),
        ([], 0, r"expected buffer to be an integer of at least 1, got: 0"),
        ([], True, r"expected buffer to be an integer"),
        ([], 1.5, r"expected buffer to be an integer"),
    ],
)
async def test_a_subscription_to_nonsense_is_refused(
    sync_worker: riverq.Client, async_worker: riverq.AsyncClient, kinds: list[Any], buffer: Any, words: str
) -> None:
    for client in (sync_worker, async_worker):
        with pytest.raises(riverq.ConfigError, match=words):
            client.subscribe(*kinds, buffer=buffer)
        assert client._core.subscriptions._inboxes == ()


async def test_a_client_without_workers_has_no_events(client: Any) -> None:
    with pytest.raises(riverq.ConfigError, match=r"no workers, so nothing happens in it \(subscribe to one that works"):
        client.subscribe()


async def test_a_timeout_that_is_none_is_refused(sync_worker: riverq.Client, async_worker: riverq.AsyncClient) -> None:
    with (
        sync_worker.subscribe() as events,
        pytest.raises(riverq.ConfigError, match="expected timeout to be a timedelta"),
    ):
        events.get(timeout=1)  # type: ignore[arg-type]
    async with async_worker.subscribe() as async_events:
        with pytest.raises(riverq.ConfigError, match="expected timeout to be at least 0 s"):
            await async_events.get(timeout=-SECOND)


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_job_cannot_subscribe_to_the_client_that_runs_it(
    engine_of: Any, schema: str, watch: Watch, kind: str
) -> None:
    workers = riverq.Workers()
    heard: list[str] = []

    def try_all(job: riverq.Job[Act], face: Any) -> None:
        for each in (face, client):  # its own face, and the one that it finds in its module
            with pytest.raises(riverq.UsageError) as caught:
                each.subscribe()
            heard.append(str(caught.value))

    if kind == "def":

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            try_all(job, job.client)

    else:

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            try_all(job, job.async_client)

    client = make_client(engine_of, config(schema, workers))
    async with working(client):
        await settle(client.insert(Act("x")))
        await watch.state("completed")
    assert len(heard) == 2
    for words in heard:
        assert words.startswith("a job cannot subscribe to the client that runs it")


async def test_waiting_in_the_loop_that_sends_the_events_is_an_error(sync_worker: riverq.Client) -> None:
    async with working(sync_worker):
        thread = sync_worker._thread
        assert thread is not None
        with sync_worker.subscribe() as events:

            async def wait_there() -> None:
                events.get()

            with pytest.raises(riverq.UsageError, match="would block the event loop that sends them"):
                await asyncio.to_thread(thread.call, wait_there(), 20)


def test_an_async_subscription_belongs_to_the_clients_loop(async_worker: riverq.AsyncClient) -> None:
    with pytest.raises(riverq.UsageError, match="belongs to its event loop, and none runs here"):
        async_worker.subscribe()

    async def elsewhere(events: riverq.AsyncSubscription) -> None:
        with pytest.raises(riverq.UsageError, match="another event loop"):
            async_worker.subscribe()
        with pytest.raises(riverq.UsageError, match="another event loop"):
            await events.get()

    async def here() -> None:
        async with async_worker.subscribe() as events:
            await asyncio.to_thread(asyncio.run, elsewhere(events))

    asyncio.run(here())


def test_a_forked_child_cannot_subscribe(sync_worker: riverq.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with sync_worker.subscribe() as events:
        monkeypatch.setattr(sync_worker._core, "_pid", 1)
        for forbidden in (sync_worker.subscribe, events.get):
            with pytest.raises(riverq.UsageError, match="make the engine and the client after the fork"):
                forbidden()


def test_a_forked_child_leaves_the_block_whoever_held_the_locks(sync_worker: riverq.Client) -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with events._inbox._changed, events._subscriptions._lock:
            held.set()
            go_on.wait(10)

    with sync_worker.subscribe() as events:
        other = threading.Thread(target=hold)
        other.start()
        held.wait(10)
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends a child that waits for ever
            try:
                events.close()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        go_on.set()
        other.join()
    assert status == 0
