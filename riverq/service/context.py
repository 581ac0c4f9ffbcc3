"""What every service is given first: who we are, a logger, the clock, and a source of randomness."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field

from riverq.clock import Clock, SystemClock


@dataclass(frozen=True, kw_only=True)
class ServiceContext:
    """One per client; tests put a held clock and a seeded `rng` in."""

    client_id: str
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("riverq"))
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
