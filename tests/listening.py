"""Subscribers that a test can wait for, and a notifier whose connections are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from riverq.driver import Listener, Notification
from riverq.notification import Topic
from riverq.notifier import Notifier, NotifierTiming
from riverq.service import ServiceContext, TestSignal


class Heard:
    """A subscriber that can be waited for."""

    def __init__(self) -> None:
        self.payloads: TestSignal[str] = TestSignal[str]().watch()
        self.gaps: TestSignal[None] = TestSignal[None]().watch()

    def on_gap(self) -> None:
        self.gaps.signal(None)

    def subscribe(self, notifier: Notifier, topic: Topic) -> Callable[[], None]:
        return notifier.subscribe(topic, self.payloads.signal, on_gap=self.on_gap)


def watch(notifier: Notifier) -> Notifier:
    for signal in (notifier.connected, notifier.disconnected, notifier.probe_unsent):
        signal.watch()
    notifier.delivering_changed.watch()
    notifier.probe_missed.watch()
    return notifier


class Scripted:
    """A Listener whose notifications, breaks and pings are the test's; it records what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inbox: asyncio.Queue[Notification | list[Notification] | Exception] = asyncio.Queue()
        self.fail_on: dict[str, Exception] = {}
        self.on_call: Callable[[str], None] = lambda call: None
        self.pinged: TestSignal[None] = TestSignal[None]().watch()
        self.closed = False

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self.on_call(call)
        if call in self.fail_on:
            raise self.fail_on.pop(call)

    async def connect(self) -> None:
        self._record("connect")

    async def listen(self, channel: str) -> None:
        self._record(f"listen {channel}")

    async def unlisten(self, channel: str) -> None:
        self._record(f"unlisten {channel}")

    async def wait(self, timeout: float) -> list[Notification]:
        try:
            got = self.inbox.get_nowait() if self.inbox.qsize() else await asyncio.wait_for(self.inbox.get(), timeout)
        except TimeoutError:
            return []
        if isinstance(got, Exception):
            raise got
        return [got] if isinstance(got, Notification) else got

    async def query(self, statement: str, timeout: float) -> str | None:
        self._record(statement)
        return None

    async def ping(self, timeout: float) -> None:
        self._record("ping")
        self.pinged.signal(None)

    async def close(self) -> None:
        self.closed = True


class Stage:
    """A notifier, the connections it made, and the probes it sent."""

    def __init__(self, ctx: ServiceContext, timing: NotifierTiming) -> None:
        self.listeners: list[Scripted] = []
        self.prepare: Callable[[Scripted], None] = lambda listener: None
        self.drop = 0  # so many of the next probes get lost
        self.second_connection: Exception | None = None
        self.probed: TestSignal[str] = TestSignal[str]().watch()
        self.notifier = watch(Notifier(ctx, make_listener=self._make, schema="s", notify=self._notify, timing=timing))

    @property
    def last(self) -> Scripted:
        return self.listeners[-1]

    def _make(self) -> Listener:
        listener = Scripted()
        self.prepare(listener)
        self.listeners.append(listener)
        return listener

    async def _notify(self, channel: str, payload: str) -> None:
        self.probed.signal(channel)
        if self.second_connection is not None:
            raise self.second_connection
        if self.drop:
            self.drop -= 1
        else:
            self.last.inbox.put_nowait(Notification(channel, payload))
