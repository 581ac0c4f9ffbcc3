"""`client.subscribe()` on both clients and every adapter: from an insert to the event, and how subscriptions end."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

import riverq
from riverq import EventKind
from tests.client.faces import make_client, settle
from tests.client.subscribers import NOW, reading, rest, take, told
from tests.client.working import Act, Watch, acting_workers, call, config, working


@pytest.fixture
def worker(engine_of: Any, schema: str) -> Any:
    """A client that works `act`, on each adapter."""
    kind = "async def" if hasattr(engine_of, "sync_engine") else "def"
    return make_client(engine_of, config(schema, acting_workers(kind)))


# -- what is sent


async def test_every_outcome_is_told_with_its_row_and_its_times(worker: Any, watch: Watch) -> None:
    hows = {
        "complete": ("job_completed", "completed"),
        "output": ("job_completed", "completed"),
        "error": ("job_failed", "available"),
        "last": ("job_failed", "discarded"),
        "cancel": ("job_cancelled", "cancelled"),
        "discard": ("job_failed", "discarded"),
        "snooze": ("job_snoozed", "scheduled"),
    }
    async with reading(worker.subscribe()) as events:
        for how in hows:  # before the start: nothing that the client does is missed
            act = Act("error" if how == "last" else how)
            await settle(worker.insert(act, max_attempts=1 if how == "last" else 9, tags=[how]))
        async with working(worker):
            first: dict[str, riverq.Event] = {}
            while len(first) < len(hows):
                [event] = await take(events)
                assert event.job is not None
                first.setdefault(event.job.tags[0], event)
    assert {how: (event.kind, event.job and event.job.state) for how, event in first.items()} == hows
    for event in first.values():
        assert event.job is not None
        assert event.statistics is not None
        assert event.statistics.run_duration > NOW
        assert event.statistics.complete_duration > NOW
        assert event.job.attempted_by == (worker.id,)
    assert first["output"].job is not None
    assert first["output"].job.output == {"answer": 42}


async def test_only_the_kinds_asked_for_are_told(worker: Any) -> None:
    async with (
        reading(worker.subscribe("job_cancelled", EventKind.JOB_SNOOZED)) as some,
        reading(worker.subscribe()) as all_of_them,
        working(worker),
    ):
        for how in ("complete", "cancel", "discard", "snooze"):
            await settle(worker.insert(Act(how)))
        await take(all_of_them, 4)
        assert sorted(told(await take(some, 2))) == [("cancel", "job_cancelled"), ("snooze", "job_snoozed")]
        with pytest.raises(TimeoutError, match="no event within"):
            await call(some.get, timeout=NOW)


async def test_a_pause_and_its_end_are_told_once_with_the_queue(worker: Any) -> None:
    async with reading(worker.subscribe("queue_paused", "queue_resumed")) as events, working(worker):
        for _ in range(2):
            await settle(worker.queue_pause("default"))
        [paused] = await take(events)
        assert (paused.kind, paused.job, paused.statistics) == (EventKind.QUEUE_PAUSED, None, None)
        assert paused.queue == await settle(worker.queue_get("default"))
        for _ in range(2):
            await settle(worker.queue_resume("*"))
        [resumed] = await take(events)
        assert (resumed.kind, resumed.queue and resumed.queue.paused_at) == (EventKind.QUEUE_RESUMED, None)
        await settle(worker.queue_pause("default"))
        [again] = await take(events)
        assert again.kind is EventKind.QUEUE_PAUSED
    # Paused when the next run begins: that is how it was found, and nothing has happened.
    async with reading(worker.subscribe()) as events, working(worker):
        await settle(worker.queue_resume("default"))
        [first] = await take(events)
        assert first.kind is EventKind.QUEUE_RESUMED


async def test_jobs_given_back_by_a_stop_are_interrupted_and_cancelled_ones_cancelled(
    engine_of: Any, schema: str
) -> None:
    began = threading.Semaphore(0)
    workers = riverq.Workers()

    if hasattr(engine_of, "sync_engine"):

        @workers.work
        async def act_async(job: riverq.Job[Act]) -> None:
            began.release()
            await asyncio.Event().wait()

    else:

        @workers.work
        def act(job: riverq.Job[Act]) -> None:
            began.release()
            job.cancelled.wait()
            job.cancelled.raise_if_set()

    client = make_client(engine_of, config(schema, workers))
    async with reading(client.subscribe()) as events:
        async with working(client):
            cancelled = (await settle(client.insert(Act("cancel")))).job
            stopped = (await settle(client.insert(Act("stop")))).job
            for _ in range(2):
                await asyncio.to_thread(began.acquire)
            await settle(client.job_cancel(cancelled.id))
            [first] = await take(events)
        [second] = await rest(events)
    assert told([first, second]) == [("cancel", "job_cancelled"), ("stop", "job_interrupted")]
    assert second.job is not None
    assert (second.job.id, second.job.attempt, second.job.state) == (stopped.id, 0, "available")


async def test_what_was_not_read_is_lost_and_counted_by_both_clients(worker: Any) -> None:
    async with reading(worker.subscribe("job_completed", buffer=2)) as events, reading(worker.subscribe()) as all_of:
        await settle(worker.insert_many([Act("complete")] * 10))
        async with working(worker):
            await take(all_of, 10)
        got = await rest(events)
    assert [event.kind for event in got] == [EventKind.JOB_COMPLETED] * 2 + [EventKind.EVENTS_LOST]
    assert (got[-1].lost, events.lost) == (8, 8)


# -- how it ends


async def test_the_iterator_ends_with_the_client_after_everything_was_told(worker: Any, watch: Watch) -> None:
    async with reading(worker.subscribe()) as events:
        await settle(worker.insert_many([Act("complete")] * 50))
        async with working(worker):
            reader = asyncio.create_task(rest(events))
            async with reading(worker.subscribe()) as others:
                await take(others, 10)  # more are running, or being written, while the client stops
            await call(worker.stop)
            got = await asyncio.wait_for(reader, 20)
        assert await call(events.get) is None
        assert await rest(events) == []
    done = await watch.until(bool)
    assert sorted(event.job.id for event in got if event.job is not None) == [
        row["id"] for row in done if row["state"] == "completed"
    ]


async def test_what_a_stop_still_writes_is_told_before_the_end(engine_of: Any, schema: str, database_url: str) -> None:
    """The job ends, and its row is locked, while the client stops."""
    began, go_on = threading.Semaphore(0), threading.Event()
    workers = riverq.Workers()

    @workers.work
    def act(job: riverq.Job[Act]) -> None:
        began.release()
        go_on.wait(20)

    client = make_client(engine_of, config(schema, workers))
    async with reading(client.subscribe()) as events, working(client):
        job = (await settle(client.insert(Act("x")))).job
        await asyncio.to_thread(began.acquire)
        with psycopg.connect(database_url) as other:
            other.execute(SQL("SELECT id FROM {} FOR UPDATE").format(Identifier(schema, "river_job")))
            stopping = asyncio.create_task(call(client.stop))
            services = client._runtime.services
            go_on.set()
            async with asyncio.timeout(20):
                while not services.completer.stats.slow:  # noqa: ASYNC110  # of another thread, so there is no event
                    await asyncio.sleep(0.001)
            reader = asyncio.create_task(rest(events))
        await stopping
        got = await asyncio.wait_for(reader, 20)
    assert [(event.kind, event.job and event.job.id) for event in got] == [("job_completed", job.id)]


async def test_each_run_of_a_client_needs_its_own_subscription(worker: Any) -> None:
    async with reading(worker.subscribe()) as first:
        async with working(worker):
            pass
        async with reading(worker.subscribe()) as second:
            async with working(worker):
                await settle(worker.insert(Act("complete")))
                assert told(await take(second)) == [("complete", "job_completed")]
            assert await rest(second) == []
        assert await rest(first) == []


async def test_a_start_that_fails_ends_no_subscription(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from riverq.worker.producer import Producer

    async def refuse(_: Producer) -> None:
        raise riverq.UnavailableError("not today")

    async with reading(worker.subscribe()) as events:
        with monkeypatch.context() as patch:
            patch.setattr(Producer, "prepare", refuse)
            with pytest.raises(riverq.UnavailableError):
                await call(worker.start)
        async with working(worker):
            await settle(worker.insert(Act("complete")))
            assert told(await take(events)) == [("complete", "job_completed")]


async def test_leaving_the_block_ends_it_and_breaking_out_of_the_loop_does_not(worker: Any) -> None:
    async with working(worker):
        async with reading(worker.subscribe("job_completed")) as events:
            await settle(worker.insert_many([Act("complete")] * 3))
            await take(events)
            if isinstance(events, riverq.AsyncSubscription):
                async for event in events:
                    assert event.kind is EventKind.JOB_COMPLETED
                    break
            else:
                for event in events:
                    assert event.kind is EventKind.JOB_COMPLETED
                    break
            await take(events)
        assert worker._core.subscriptions._inboxes == ()
        await settle(worker.insert(Act("complete")))
        assert await rest(events) == []
        assert "closed" in repr(events)


def forget(client: Any) -> None:
    client.subscribe()
    gc.collect()


async def test_a_subscription_that_nobody_closed_is_told_and_lets_go(worker: Any) -> None:
    worker.subscribe().close()
    gc.collect()
    with pytest.warns(ResourceWarning, match=r"to every kind> was never closed \(use it in a with block\)"):
        forget(worker)
    async with working(worker), reading(worker.subscribe()) as events:
        assert len(worker._core.subscriptions._inboxes) == 1
        await settle(worker.insert(Act("complete")))
        await take(events)
    ended = worker.subscribe()
    async with working(worker):
        pass
    del ended  # it has ended with the client, so there is nothing to close
    gc.collect()
