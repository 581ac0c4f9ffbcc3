"""One way to wait for whichever comes first: an event, or a time of the context's clock."""

from __future__ import annotations

import asyncio

from riverq.service.context import ServiceContext


async def wait_first(ctx: ServiceContext, event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, at most `seconds` of the context's clock; whether it is set."""
    if event.is_set():
        return True
    waiters = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(ctx.clock.sleep(seconds))]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
    return event.is_set()
