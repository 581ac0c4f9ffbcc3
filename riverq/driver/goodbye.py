"""Closes the connections of an async engine, whether or not the server answers their goodbyes.

asyncpg waits until the server has hung up, and closes the socket itself if that waiting is cancelled. SQLAlchemy closes
one connection of a pool after the other, and leaves off with the first that is cancelled: what is left would stay open
until the collector comes. So it is asked again, until there is nothing left; whoever did not answer in the time that
all of them have is not waited for any longer.
"""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine


async def close_all(engine: AsyncEngine, limit: float) -> None:
    """Close the connections that are in the engine's pool. Takes about `limit` seconds at most; never raises."""
    deadline = asyncio.get_running_loop().time() + limit
    cancelled = True
    while cancelled:  # by which it has closed one more of them
        closing = asyncio.create_task(engine.dispose())
        left = deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({closing}, timeout=max(left, 0.01))
        finally:
            is_late = closing.cancel()
        if is_late:
            await asyncio.wait({closing}, timeout=limit)
        cancelled = closing.cancelled()
    if closing.done():
        closing.exception()  # read, so that nobody reports it as forgotten
