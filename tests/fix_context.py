"""What services are given in tests: the real clock, or one that only the test moves, and seeded randomness."""

from __future__ import annotations

import random

import pytest

from riverq.service.context import ServiceContext
from riverq.testing.fake_clock import FakeClock


@pytest.fixture
def held_clock() -> FakeClock:
    """Time that the test moves."""
    return FakeClock()


@pytest.fixture
def ctx() -> ServiceContext:
    """A context with the real clock and the same randomness in every run."""
    return ServiceContext(client_id="test", rng=random.Random(0))


@pytest.fixture
def held_ctx(held_clock: FakeClock) -> ServiceContext:
    """A context whose clock is `held_clock`."""
    return ServiceContext(client_id="test", clock=held_clock, rng=random.Random(0))
