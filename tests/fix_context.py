"""What services are given in tests: the real clock, or one that only the test moves, and seeded randomness."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from riverq.service.context import ServiceContext

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class HeldClock:
    """A clock that stands still until `advance`; whoever sleeps wakes when its time has come."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._elapsed + seconds, future))
        await future

    @property
    def sleepers(self) -> int:
        """How many wait at this moment."""
        return sum(not future.done() for _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on, wake those whose time has come, and let them run."""
        self._elapsed += seconds
        for _, future in [each for each in self._sleepers if each[0] <= self._elapsed]:
            if not future.done():
                future.set_result(None)
        self._sleepers = [each for each in self._sleepers if not each[1].done()]
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def held_clock() -> HeldClock:
    """Time that the test moves."""
    return HeldClock()


@pytest.fixture
def ctx() -> ServiceContext:
    """A context with the real clock and the same randomness in every run."""
    return ServiceContext(client_id="test", rng=random.Random(0))


@pytest.fixture
def held_ctx(held_clock: HeldClock) -> ServiceContext:
    """A context whose clock is `held_clock`."""
    return ServiceContext(client_id="test", clock=held_clock, rng=random.Random(0))
