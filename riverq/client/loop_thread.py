"""An event loop in a daemon thread: where a sync client's runtime lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from riverq.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """Started when made; `close` ends the loop and waits for the thread."""

    def __init__(self, name: str) -> None:
        self.callers = 0
        """How many wait for something in it; kept, under its own lock, by who made it."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run `work` in the loop and wait for its result.

        Raises TimeoutError after `timeout` seconds, without cancelling `work`. Raises UsageError from the loop's own
        thread, where waiting could never end.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("a job cannot wait for its own client (call start and stop from outside the workers)")
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        """End the loop; what still runs in it is cancelled. Does nothing the second time."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
