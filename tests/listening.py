"""Subscribers that a test can wait for."""

from __future__ import annotations

from collections.abc import Callable

from riverq.notification import Topic
from riverq.notifier import Notifier
from riverq.service import TestSignal


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
