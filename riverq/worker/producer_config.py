"""How one queue is worked, and what has been done for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from riverq.validation import duration, integer

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True)
class ProducerConfig:
    """How one queue is worked.

    - `fetch_cooldown`: the least time between two claims, see the module. `fetch_eager` allows the exception.
    - `fetch_only_known_kinds`: leave jobs of kinds without a worker to other clients.
    - `fetch_poll_interval`: how often to look when nothing is heard.
    - `fetch_timeout`: how long one claim may take.
    - `max_workers`: how many jobs run at once.
    """

    queue: str
    max_workers: int
    fetch_cooldown: timedelta = timedelta(milliseconds=100)
    fetch_eager: bool = True
    fetch_only_known_kinds: bool = False
    fetch_poll_interval: timedelta = timedelta(seconds=1)
    fetch_timeout: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        integer("max_workers", self.max_workers, 1, 10_000)
        duration("fetch_cooldown", self.fetch_cooldown, _MILLISECOND)
        duration("fetch_poll_interval", self.fetch_poll_interval, _MILLISECOND)
        duration("fetch_timeout", self.fetch_timeout, _MILLISECOND)


@dataclass(slots=True)
class ProducerStats:
    """Counters since the producer was made; `running`, `stuck` and `paused` are as of now."""

    queue: str
    max_workers: int
    claims: int = 0
    claimed: int = 0
    ended: int = 0
    failed_claims: int = 0
    running: int = 0
    stuck: int = 0
    paused: bool = False
