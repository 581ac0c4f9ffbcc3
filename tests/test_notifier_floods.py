"""Floods: what arrives together is handed over together, and nothing that matters is dropped."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import psycopg
import pytest

from riverq.driver import Notification, load_driver
from riverq.notification import Topic, channel, insert_payload
from riverq.notifier import Notifier, NotifierTiming
from riverq.notifier.fan_out import HANDED_AT_ONCE
from riverq.service import ServiceContext, TestSignal
from tests.fix_database import SESSION_APPLICATION, EngineMaker
from tests.listening import Heard, Stage

INSERT, CONTROL, LEADERSHIP = (channel("s", topic) for topic in (Topic.INSERT, Topic.CONTROL, Topic.LEADERSHIP))
CANCELS = [json.dumps({"action": "cancel", "job_id": number, "queue": "default"}) for number in range(10_000)]


class Listed:
    """A subscriber that keeps what it heard, and tells when `last` comes."""

    def __init__(self, notifier: Notifier, topic: Topic, last: str) -> None:
        self.payloads: list[str] = []
        self.gaps: TestSignal[None] = TestSignal[None]().watch()
        self.done: TestSignal[None] = TestSignal[None]().watch()
        self._last = last
        notifier.subscribe(topic, self._heard, on_gap=lambda: self.gaps.signal(None))

    def _heard(self, payload: str) -> None:
        self.payloads.append(payload)
        if payload == self._last:
            self.done.signal(None)


@pytest.fixture
async def stage(ctx: ServiceContext) -> AsyncIterator[Stage]:
    stage = Stage(ctx, NotifierTiming())
    yield stage
    await stage.notifier.stop()


class Turns:
    """Counts the turns that the event loop gives to others."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def end(self) -> int:
        self._task.cancel()
        await asyncio.wait([self._task])
        return self.count


async def test_equal_inserts_of_a_batch_are_one_and_every_queue_is_told(stage: Stage) -> None:
    queues = [f"queue {number}" for number in range(5)]
    heard = [Listed(stage.notifier, Topic.INSERT, insert_payload("last")) for _ in range(3)]
    await stage.notifier.start()
    await heard[0].gaps.wait()
    flood = [Notification(INSERT, insert_payload(queue)) for _ in range(20_000) for queue in queues]
    stage.last.inbox.put_nowait([*flood, Notification(INSERT, insert_payload("last"))])
    for each in heard:
        await each.done.wait()
        assert each.payloads == [insert_payload(queue) for queue in [*queues, "last"]]

    stage.last.inbox.put_nowait([Notification(INSERT, insert_payload("last"))])  # told before, but not in this batch
    await heard[0].done.wait()


async def test_cancellations_all_arrive_in_order_and_the_loop_gets_its_turns(stage: Stage) -> None:
    heard = Listed(stage.notifier, Topic.CONTROL, CANCELS[-1])
    await stage.notifier.start()
    await heard.gaps.wait()
    turns = Turns()
    stage.last.inbox.put_nowait([Notification(CONTROL, cancel) for cancel in CANCELS])
    await heard.done.wait()
    assert heard.payloads == CANCELS
    assert await turns.end() >= len(CANCELS) / HANDED_AT_ONCE


async def test_neither_pauses_nor_resignations_are_taken_for_one(stage: Stage) -> None:
    orders = [
        json.dumps({"action": action, "queue": "*"}) for action in ("pause", "resume", "pause", "resume", "pause")
    ]
    resigned = '{"leader_id" : "twin", "action" : "resigned"}'
    control, leadership = Listed(stage.notifier, Topic.CONTROL, "end"), Listed(stage.notifier, Topic.LEADERSHIP, "end")
    await stage.notifier.start()
    await control.gaps.wait()
    await leadership.gaps.wait()
    batch = [Notification(CONTROL, order) for order in orders] + [Notification(LEADERSHIP, resigned)] * 2
    stage.last.inbox.put_nowait([*batch, Notification(CONTROL, "end"), Notification(LEADERSHIP, "end")])
    await control.done.wait()
    await leadership.done.wait()
    assert control.payloads == [*orders, "end"]
    assert leadership.payloads == [resigned, resigned, "end"]


async def test_probe_in_a_flood_still_proves(stage: Stage) -> None:
    stage.drop = 1
    heard = Heard()
    heard.subscribe(stage.notifier, Topic.CONTROL)
    await stage.notifier.start()
    probe_channel = await stage.probed.wait()
    stage.last.inbox.put_nowait(
        [*(Notification(CONTROL, cancel) for cancel in CANCELS), Notification(probe_channel, "1")]
    )
    assert await stage.notifier.delivering_changed.wait() is True
    assert heard.payloads.waiting == len(CANCELS)


@pytest.mark.listens
async def test_flood_on_a_real_connection(
    ctx: ServiceContext, make_engine: EngineMaker, adapter: str, database_url: str, schema: str
) -> None:
    engine = make_engine(adapter)
    driver = load_driver(engine)
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:

        async def notify(channel: str, payload: str) -> None:
            await conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))

        notifier = Notifier(ctx, make_listener=lambda: driver.listener(engine), schema=schema, notify=notify)
        control = Listed(notifier, Topic.CONTROL, CANCELS[-1])
        insert = Listed(notifier, Topic.INSERT, insert_payload("last"))
        await notifier.start()
        await control.gaps.wait()
        await insert.gaps.wait()
        queues, names = [insert_payload(f"queue {number}") for number in range(20)], channel(schema, Topic.INSERT)
        await conn.execute(
            "SELECT pg_notify(%s, %s || repeat(' ', n)) FROM generate_series(1, 2000) n", (names, queues[0])
        )
        for queue in [*queues, insert_payload("last")]:
            await conn.execute("SELECT pg_notify(%s, %s)", (names, queue))
        await conn.execute("SELECT pg_notify(%s, unnest(%s::text[]))", (channel(schema, Topic.CONTROL), CANCELS))
        await control.done.wait(30)
        await insert.done.wait(30)
        await notifier.stop()
    assert control.payloads == CANCELS
    counts = Counter(insert.payloads)
    assert all(counts[queue] == 1 for queue in queues)
