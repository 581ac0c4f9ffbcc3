"""Who listens to what, and how a batch of notifications reaches them.

A flood is normal: a bulk insert in ten thousand transactions, or ten thousand jobs cancelled by one statement. What
arrived together is handed over together, and three things hold whatever its size:

  * insert notifications say only "look at this queue", so equal ones of a batch are one. Their rows were committed
    before the batch was taken, and whoever looks sees them all;
  * cancellations, pauses and resignations are each handed over, in their order;
  * the event loop gets its turn every `HANDED_AT_ONCE` calls: a flood delays jobs and renewals by milliseconds.

Nothing is kept here between batches. What arrives meanwhile waits in the listener's inbox and joins the next batch, so
the more there is, the more of it coalesces. Subscriptions may come and go in the middle of a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from riverq.notification import Topic
from riverq.service import ServiceContext

OnPayload = Callable[[str], None]
OnGap = Callable[[], None]

HANDED_AT_ONCE = 100
"""Callbacks between two turns of the event loop. A producer's takes some 10 µs."""


@dataclass(eq=False)
class _Subscription:
    topic: Topic
    on_payload: OnPayload
    on_gap: OnGap | None


class FanOut:
    """The subscriptions of one notifier. `changed` is set whenever `wanted` may have changed."""

    def __init__(self, ctx: ServiceContext, name: str) -> None:
        self.name = name
        self.changed = asyncio.Event()
        self._ctx = ctx
        self._subscriptions: list[_Subscription] = []

    def subscribe(self, topic: Topic, on_payload: OnPayload, on_gap: OnGap | None) -> Callable[[], None]:
        """See `Notifier.subscribe`."""
        subscription = _Subscription(topic, on_payload, on_gap)
        self._subscriptions.append(subscription)
        self.changed.set()

        def unsubscribe() -> None:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                self.changed.set()

        return unsubscribe

    def wanted(self) -> set[Topic]:
        """The topics that somebody subscribes to."""
        return {subscription.topic for subscription in self._subscriptions}

    def tell_gap(self, topic: Topic) -> None:
        """Tell the subscribers of `topic` that they may have missed something."""
        for subscription in list(self._subscriptions):
            if subscription.topic is topic and subscription.on_gap is not None:
                self._call(subscription.on_gap)

    async def deliver(self, batch: Iterable[tuple[Topic, str]]) -> None:
        """Hand over what arrived together: topics and payloads."""
        inserts: set[str] = set()
        called = 0
        for topic, payload in batch:
            if topic is Topic.INSERT:
                if payload in inserts:
                    continue
                inserts.add(payload)
            for subscription in [one for one in self._subscriptions if one.topic is topic]:
                if subscription in self._subscriptions:  # an earlier callback may have ended it
                    self._call(subscription.on_payload, payload)
                    called += 1
                    if called % HANDED_AT_ONCE == 0:
                        await self._ctx.clock.sleep(0)

    def _call(self, callback: Callable[..., None], *args: str) -> None:
        try:
            callback(*args)
        except Exception:
            self._ctx.log.exception("%s: A subscriber failed", self.name)
