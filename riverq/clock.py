"""The only place that reads a clock or sleeps.

Everything else asks the `Clock` of its `ServiceContext`, so that a test can hold time still. Row comparisons never use
it: where rows are compared the database's own clock decides, because clients' clocks differ.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What riverq needs to know of time."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back, for measuring waits."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait in the event loop for `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait in the event loop for `seconds`."""
        await asyncio.sleep(seconds)
