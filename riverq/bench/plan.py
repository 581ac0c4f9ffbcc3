"""What was asked for: how long, how many jobs, with which settings; and how the time is shared out."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from riverq.clock import SystemClock
from riverq.config import Config, QueueConfig
from riverq.driver import AnyEngine
from riverq.errors import ConfigError

DEFAULT_SECONDS = 10.0
DEFAULT_WORKERS = 2000
PREFIX = "riverq_bench"

COOLDOWN = timedelta(milliseconds=2)
POLL_INTERVAL = timedelta(milliseconds=20)
"""The waits that Go River's own bench sets; a client has longer ones by default."""


class Phase(enum.Enum):
    """One thing after the other, in this order."""

    PREPARE = "making the schema"
    TRIPS = "round trips and commits"
    ONE = "inserting one by one"
    MANY = "inserting in batches"
    COPY = "inserting by COPY"
    WORK = "working the backlog"
    LATENCY = "from insert to start"
    DROP = "dropping the schema"


SHARES: Mapping[Phase, float] = {
    Phase.TRIPS: 0.06,
    Phase.ONE: 0.10,
    Phase.MANY: 0.10,
    Phase.COPY: 0.14,
    Phase.WORK: 0.40,
    Phase.LATENCY: 0.20,
}


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, phase: Phase) -> None:
        """This phase begins; the one before it has ended."""
        ...

    def advance(self, share: float, jobs: int) -> None:
        """This share of the phase is done, and it is at so many jobs."""
        ...


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a phase ends: after so many jobs or so many seconds, whichever is first; None is no limit."""

    jobs: int | None
    seconds: float | None


class Countdown:
    """A limit from now on."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._clock = SystemClock()
        self._began = self._clock.monotonic()

    def share(self, jobs: int) -> float:
        """How much of the limit is used up, from 0 to 1."""
        passed = self._clock.monotonic() - self._began
        of_time = passed / self._limit.seconds if self._limit.seconds is not None else 0.0
        of_jobs = jobs / self._limit.jobs if self._limit.jobs is not None else 0.0
        return min(1.0, max(of_time, of_jobs))

    def goes_on(self, jobs: int) -> bool:
        """Whether there is more to do after so many jobs; always before the first."""
        return jobs == 0 or self.share(jobs) < 1.0

    def left(self, jobs: int, batch: int) -> int:
        """How many jobs the next batch of at most `batch` has."""
        return batch if self._limit.jobs is None else min(batch, self._limit.jobs - jobs)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    - `seconds`: how long about; None without a limit, where `jobs` is the limit.
    - `jobs`: the backlog's size; None for as many as there is time for.
    - `workers`: how many jobs run at once. `tuned`: with the waits of Go River's bench instead of the defaults.
    - `schema`: must not exist yet, and is called as no role is: `"$user"` in their search_path would lead a role's
      sessions into it. `token` is this run's own, and marks what it makes.

    Raises ConfigError for a value outside its limits.
    """

    seconds: float | None = None
    jobs: int | None = None
    workers: int = DEFAULT_WORKERS
    tuned: bool = True
    schema: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        if not self.schema:
            object.__setattr__(self, "schema", f"{PREFIX}_{self.token}")
        Config(schema=self.schema)  # which refuses what no client could work in
        if not self.schema.startswith(PREFIX):
            raise ConfigError(
                f"expected --schema to start with {PREFIX!r}, got: {self.schema!r} (it is dropped in the end, and by "
                "another name others might find it in their search_path meanwhile)"
            )
        if not 1 <= self.workers <= 10_000:
            raise ConfigError(f"expected --workers to be from 1 to 10000, got: {self.workers}")
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"expected -n to be at least 1, got: {self.jobs}")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigError(f"expected --duration to be more than 0, got: {self.seconds:g} s")

    @property
    def mark(self) -> str:
        """The comment of the schema."""
        return f"made by riverq bench {self.token}"

    @property
    def application_name(self) -> str:
        """The name of the connections under measurement."""
        return f"{PREFIX}_{self.token}"

    @property
    def cooldown(self) -> timedelta:
        """The least time between two claims."""
        return COOLDOWN if self.tuned else Config().fetch_cooldown

    @property
    def poll_interval(self) -> timedelta:
        """How often a queue is looked at when nothing is heard."""
        return POLL_INTERVAL if self.tuned else Config().fetch_poll_interval

    def queue_config(self) -> QueueConfig:
        """How a queue is worked here."""
        return QueueConfig(
            max_workers=self.workers, fetch_cooldown=self.cooldown, fetch_poll_interval=self.poll_interval
        )

    def limit(self, phase: Phase) -> Limit:
        """Where `phase` ends. With jobs and without a time, the backlog is inserted and worked to its end."""
        to_the_end = self.seconds is None and self.jobs is not None and phase in (Phase.COPY, Phase.WORK)
        seconds = self.seconds or DEFAULT_SECONDS
        return Limit(self.jobs, None if to_the_end else seconds * SHARES[phase])


@dataclass(frozen=True)
class Target:
    """Where to measure: `make_engine` makes an engine whose connections have the given application name.

    `asynchronous` says which face of riverq suits these engines.
    """

    make_engine: Callable[[str], AnyEngine]
    asynchronous: bool
