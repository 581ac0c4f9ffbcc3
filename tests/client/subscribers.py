"""How a test reads what a subscription of either client hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import riverq
from tests.client.working import call

LIMIT = timedelta(seconds=20)
"""Only bounds a failure."""
NOW = timedelta(0)


@asynccontextmanager
async def reading(subscription: Any) -> AsyncIterator[Any]:
    """The subscription, closed afterwards, whichever face it is of."""
    if isinstance(subscription, riverq.AsyncSubscription):
        async with subscription:
            yield subscription
    else:
        with subscription:
            yield subscription


async def take(events: Any, count: int = 1) -> list[riverq.Event]:
    """The next events, of either face."""
    return [await call(events.get, timeout=LIMIT) for _ in range(count)]


async def rest(events: Any) -> list[riverq.Event]:
    """Everything until the iterator ends."""
    if isinstance(events, riverq.AsyncSubscription):
        return [event async for event in events]
    return await asyncio.to_thread(list, events)


def told(events: list[riverq.Event]) -> list[tuple[str, str]]:
    """Of each event of a job: how the job was to act, and the event's kind."""
    return [(event.job.args["how"], event.kind.value) for event in events if event.job is not None]
