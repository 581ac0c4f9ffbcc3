"""The notifier on a scripted connection, for interleavings that a real one cannot give on demand."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from riverq.driver import Listener, Notification
from riverq.errors import PoolExhaustedError, UnavailableError
from riverq.notification import Topic, channel
from riverq.notifier import NotifierTiming
from riverq.service import ServiceContext, TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.listening import Heard, Scripted, Stage

FAST = NotifierTiming(
    ping_interval=timedelta(milliseconds=20),
    probe_interval=timedelta(milliseconds=60),
    answer_timeout=timedelta(milliseconds=15),
    first_backoff=timedelta(milliseconds=1),
    busy_cap=timedelta(milliseconds=5),
    idle_cap=timedelta(milliseconds=5),
)
INSERT, CONTROL, LEADERSHIP = (channel("s", topic) for topic in (Topic.INSERT, Topic.CONTROL, Topic.LEADERSHIP))


@pytest.fixture
async def stage(ctx: ServiceContext) -> AsyncIterator[Stage]:
    stage = Stage(ctx, FAST)
    yield stage
    await stage.notifier.stop()
    assert all(listener.closed for listener in stage.listeners)


class TestDelivery:
    async def test_two_misses_declare_poll_only_once_and_recovery_is_told_once(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.drop = 4
        heard = Heard()
        heard.subscribe(stage.notifier, Topic.INSERT)
        with caplog.at_level(logging.INFO, logger="riverq"):
            await stage.notifier.start()
            await heard.gaps.wait()
            assert [await stage.notifier.probe_missed.wait() for _ in range(4)] == [1, 2, 3, 4]
            assert await stage.notifier.delivering_changed.wait() is True
            assert len(stage.listeners) == 1  # a pooler drops notifications on every connection alike
            await heard.gaps.wait()  # what was sent meanwhile was missed
        texts = [record.getMessage() for record in caplog.records]
        warnings = [text for text in texts if "notifications do not arrive" in text]
        assert len(warnings) == 1
        assert "PgBouncer in transaction mode" in warnings[0]
        assert "listener_engine=" in warnings[0]
        assert sum("delivered again" in text for text in texts) == 1

    async def test_one_miss_declares_nothing(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        stage.drop = 1
        await stage.notifier.start()
        assert await stage.notifier.probe_missed.wait() == 1
        assert await stage.notifier.delivering_changed.wait() is True
        assert caplog.text == ""

    async def test_second_connection_that_cannot_be_had_is_not_a_miss(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.second_connection = PoolExhaustedError("no connection became free in 5 s")
        await stage.notifier.start()
        for _ in range(5):
            await stage.notifier.probe_unsent.wait()
        assert stage.notifier.probe_missed.waiting == 0
        assert "do not arrive" not in caplog.text
        stage.second_connection = None
        assert await stage.notifier.delivering_changed.wait() is True

    async def test_second_connection_lost_later_leaves_delivery_as_it_was(self, stage: Stage) -> None:
        await stage.notifier.start()
        assert await stage.notifier.delivering_changed.wait() is True
        stage.second_connection = PoolExhaustedError("no connection became free in 5 s")
        for _ in range(3):
            await stage.notifier.probe_unsent.wait()
        assert stage.notifier.is_delivering

    async def test_connection_that_stops_delivering_is_replaced(self, stage: Stage) -> None:
        await stage.notifier.start()
        assert await stage.notifier.delivering_changed.wait() is True
        stage.drop = 2
        assert [await stage.notifier.probe_missed.wait() for _ in range(2)] == [1, 2]
        assert await stage.notifier.delivering_changed.wait() is False
        assert await stage.notifier.delivering_changed.wait() is True
        assert len(stage.listeners) == 2

    async def test_answer_that_waited_out_a_stall_of_the_loop_is_no_miss(self, stage: Stage) -> None:
        await stage.notifier.start()
        assert await stage.notifier.delivering_changed.wait() is True
        await stage.probed.wait()
        for _ in range(3):
            await stage.probed.wait()
            time.sleep(FAST.answer_timeout.total_seconds() * 2)  # noqa: ASYNC251  # the stall
        assert stage.notifier.probe_missed.waiting == 0

    async def test_no_ping_while_a_probe_is_out(self, ctx: ServiceContext) -> None:
        timing = NotifierTiming(ping_interval=timedelta(milliseconds=1), answer_timeout=timedelta(minutes=1))
        stage = Stage(ctx, timing)
        stage.drop = 1
        await stage.notifier.start()
        probe_channel = await stage.probed.wait()
        stage.last.calls.clear()  # before the probe there may have been one
        for topic in (Topic.INSERT, Topic.CONTROL, Topic.LEADERSHIP):  # each wakes it, with a ping long due
            await asyncio.sleep(0.002)
            heard = Heard()
            heard.subscribe(stage.notifier, topic)
            await heard.gaps.wait()
        assert "ping" not in stage.last.calls
        stage.last.inbox.put_nowait(Notification(probe_channel, "1"))  # late
        await stage.last.pinged.wait()
        await stage.notifier.stop()

    async def test_answer_during_whose_wait_something_else_was_sent_proves_nothing(self, ctx: ServiceContext) -> None:
        """Behind a pooler it may have come through while a LISTEN had the connection linked to a server."""
        stage = Stage(ctx, NotifierTiming(answer_timeout=timedelta(minutes=1), probe_interval=timedelta(minutes=2)))
        stage.drop = 1
        await stage.notifier.start()
        probe_channel = await stage.probed.wait()
        heard = Heard()
        heard.subscribe(stage.notifier, Topic.INSERT)
        await heard.gaps.wait()
        stage.drop = 1
        stage.last.inbox.put_nowait(Notification(probe_channel, "1"))
        await stage.probed.wait()  # at once
        assert stage.notifier.delivering_changed.waiting == 0
        stage.last.inbox.put_nowait(Notification(probe_channel, "1"))  # nor does it now
        stage.last.inbox.put_nowait(Notification(INSERT, "x"))
        await heard.payloads.wait()
        assert not stage.notifier.is_delivering
        stage.last.inbox.put_nowait(Notification(probe_channel, "2"))
        assert await stage.notifier.delivering_changed.wait() is True
        assert stage.notifier.probe_missed.waiting == 0
        await stage.notifier.stop()

    async def test_every_notifier_probes_a_channel_of_its_own(self, ctx: ServiceContext) -> None:
        channels = set()
        for _ in range(3):
            stage = Stage(ServiceContext(client_id="same", rng=random.Random(0)), FAST)
            await stage.notifier.start()
            channels.add(await stage.probed.wait())
            await stage.notifier.stop()
        assert len(channels) == 3

    async def test_on_proven_is_awaited_once_per_connection_that_delivers(self, stage: Stage) -> None:
        proven: TestSignal[Listener] = TestSignal[Listener]().watch()

        async def on_proven(listener: Listener) -> None:
            proven.signal(listener)

        stage.notifier.on_proven = on_proven
        await stage.notifier.start()
        first = await proven.wait()
        for _ in range(3):
            await stage.probed.wait()
        assert proven.waiting == 0
        stage.last.inbox.put_nowait(UnavailableError("cut"))
        assert await proven.wait() is not first

    async def test_on_gone_is_told_of_a_proven_connection_that_broke_and_not_of_a_stop(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        gone: TestSignal[Listener] = TestSignal[Listener]().watch()

        def on_gone(listener: Listener) -> None:
            gone.signal(listener)
            raise ValueError("would not hear it")

        stage.notifier.on_gone = on_gone
        await stage.notifier.start()
        for error in (UnavailableError("cut"), ZeroDivisionError("a bug in an adapter")):
            assert await stage.notifier.delivering_changed.wait() is True
            broken = stage.last
            broken.inbox.put_nowait(error)
            assert await gone.wait() is broken
            assert await stage.notifier.delivering_changed.wait() is False
        assert "would not hear it" in caplog.text
        assert await stage.notifier.delivering_changed.wait() is True
        stage.drop = 1_000
        stage.prepare = lambda listener: listener.inbox.put_nowait(UnavailableError("closed at once"))
        stage.last.inbox.put_nowait(UnavailableError("cut"))
        await gone.wait()
        while len(stage.listeners) < 5:
            await stage.notifier.connected.wait()
        stage.prepare = lambda listener: None
        await stage.notifier.stop()
        assert gone.waiting == 0


class TestDeath:
    """It dies exactly here."""

    async def test_between_the_listens_of_two_topics(self, stage: Stage) -> None:
        insert, control = Heard(), Heard()
        insert.subscribe(stage.notifier, Topic.INSERT)
        control.subscribe(stage.notifier, Topic.CONTROL)

        def prepare(listener: Scripted) -> None:
            if not stage.listeners:
                listener.fail_on[f"listen {CONTROL}"] = UnavailableError("cut between two LISTENs")

        stage.prepare = prepare
        await stage.notifier.start()
        await stage.notifier.connected.wait()
        await control.gaps.wait()
        for _ in range(2):
            await insert.gaps.wait()  # each connection told it
        assert stage.last.calls[2:4] == [f"listen {INSERT}", f"listen {CONTROL}"]

    async def test_while_connecting_the_half_made_connection_is_closed(self, stage: Stage) -> None:
        def prepare(listener: Scripted) -> None:
            if len(stage.listeners) < 3:
                listener.fail_on["connect"] = UnavailableError("refused")

        stage.prepare = prepare
        await stage.notifier.start()
        await stage.notifier.connected.wait()
        assert [listener.closed for listener in stage.listeners] == [True, True, True, False]
        assert stage.notifier.disconnected.waiting == 0  # it had never been connected

    async def test_at_a_ping(self, stage: Stage) -> None:
        await stage.notifier.start()
        await stage.notifier.connected.wait()
        await stage.last.pinged.wait()
        stage.last.fail_on["ping"] = UnavailableError("no answer within 10 s")
        await stage.notifier.disconnected.wait()
        await stage.notifier.connected.wait()
        assert len(stage.listeners) == 2

    async def test_of_an_error_nobody_foresaw(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        await stage.notifier.start()
        await stage.notifier.connected.wait()
        stage.last.inbox.put_nowait(ZeroDivisionError("a bug in an adapter"))
        await stage.notifier.disconnected.wait()
        await stage.notifier.connected.wait()
        assert "a bug in an adapter" in caplog.text

    async def test_failing_subscriber_harms_nobody_else(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        def broken(payload: str) -> None:
            raise ValueError(f"cannot take {payload}")

        stage.notifier.subscribe(Topic.INSERT, broken)
        heard = Heard()
        heard.subscribe(stage.notifier, Topic.INSERT)
        await stage.notifier.start()
        await heard.gaps.wait()
        stage.last.inbox.put_nowait(Notification(INSERT, "x"))
        assert await heard.payloads.wait() == "x"
        assert "cannot take x" in caplog.text
        assert len(stage.listeners) == 1


class TestSubscriptionsWhileListening:
    async def test_subscribed_during_the_unlisten_of_its_topic_is_listened_to_again(self, stage: Stage) -> None:
        first, second, other = Heard(), Heard(), Heard()
        unsubscribe = first.subscribe(stage.notifier, Topic.INSERT)
        other.subscribe(stage.notifier, Topic.LEADERSHIP)
        await stage.notifier.start()
        await first.gaps.wait()

        def on_call(call: str) -> None:
            if call == f"unlisten {INSERT}":
                second.subscribe(stage.notifier, Topic.INSERT)

        stage.last.on_call = on_call
        unsubscribe()
        await second.gaps.wait()
        assert [call for call in stage.last.calls if INSERT in call] == [
            f"listen {INSERT}",
            f"unlisten {INSERT}",
            f"listen {INSERT}",
        ]

    async def test_subscription_ended_by_an_earlier_callback_is_not_called(self, stage: Stage) -> None:
        second = Heard()
        ends: list[Callable[[], None]] = []
        first: TestSignal[str] = TestSignal[str]().watch()

        def on_payload(payload: str) -> None:
            ends.pop()()
            first.signal(payload)

        stage.notifier.subscribe(Topic.INSERT, on_payload)
        ends.append(second.subscribe(stage.notifier, Topic.INSERT))
        await stage.notifier.start()
        await second.gaps.wait()
        stage.last.inbox.put_nowait(Notification(INSERT, "x"))
        await first.wait()
        assert second.payloads.waiting == 0


class TestBackoff:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    async def refused(self, clock: FakeClock) -> AsyncIterator[Stage]:
        """A server that refuses every connection, and a clock that stands still."""
        stage = Stage(ServiceContext(client_id="test", clock=clock, rng=random.Random(0)), NotifierTiming())
        stage.prepare = lambda listener: listener.fail_on.update(connect=UnavailableError("refused"))
        yield stage
        await stage.notifier.stop()

    async def attempts_in(self, stage: Stage, clock: FakeClock, seconds: float) -> int:
        before = len(stage.listeners)
        await clock.advance(seconds)
        await clock.until_sleeping()
        return len(stage.listeners) - before

    async def test_doubles_to_thirty_seconds_when_idle(self, refused: Stage, clock: FakeClock) -> None:
        await refused.notifier.start()
        await clock.until_sleeping()
        assert await self.attempts_in(refused, clock, 0.08) == 0
        assert await self.attempts_in(refused, clock, 0.04) == 1
        await self.attempts_in(refused, clock, 120)  # 0.1 … 25.6, then 30
        assert await self.attempts_in(refused, clock, 330) == pytest.approx(11, abs=1)

    async def test_stays_at_five_seconds_while_jobs_run(self, refused: Stage, clock: FakeClock) -> None:
        refused.notifier.is_busy = lambda: True
        await refused.notifier.start()
        await clock.until_sleeping()
        await self.attempts_in(refused, clock, 60)
        assert await self.attempts_in(refused, clock, 50) == pytest.approx(10, abs=1)

    async def test_jobs_that_begin_meanwhile_shorten_the_wait(self, refused: Stage, clock: FakeClock) -> None:
        await refused.notifier.start()
        await clock.until_sleeping()
        await self.attempts_in(refused, clock, 120)
        refused.notifier.is_busy = lambda: True
        assert await self.attempts_in(refused, clock, 5.5) >= 1

    async def test_server_that_accepts_and_then_closes_is_not_hammered(self, clock: FakeClock) -> None:
        stage = Stage(ServiceContext(client_id="test", clock=clock, rng=random.Random(0)), NotifierTiming())
        stage.drop = 1_000_000
        stage.prepare = lambda listener: listener.inbox.put_nowait(UnavailableError("closed"))
        await stage.notifier.start()
        await clock.until_sleeping()
        await self.attempts_in(stage, clock, 120)
        assert await self.attempts_in(stage, clock, 300) <= 11
        await stage.notifier.stop()
