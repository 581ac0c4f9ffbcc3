"""What was found: plain figures, in seconds and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from riverq.query.measure import ServerFacts, Tally


@dataclass(frozen=True, slots=True)
class Trips:
    """What one exchange with the server takes, in seconds; medians.

    - `round_trip`: the least that can be asked, on a connection that is at hand.
    - `statement`: the smallest statement as riverq executes it, with all exchanges that the adapter needs for it.
    - `commit`: how much longer it takes where it writes a row.

    `exchanges` is how many the adapter needs for a statement.
    """

    round_trip: float
    statement: float
    commit: float
    exchanges: int


@dataclass(frozen=True, slots=True)
class Rate:
    """So many jobs in so many seconds."""

    jobs: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds if self.seconds > 0 else 0.0


def is_wal_event(event: str) -> bool:
    """Whether a wait event is for the WAL to be written, here or on a synchronous standby.

    Postgres 17 changed how the names are spelt, so case is ignored.
    """
    name = event.lower()
    return name.startswith("wal") or name == "syncrep"


@dataclass(frozen=True, slots=True)
class Observed:
    """What the server's own view showed of our connections, over `samples` looks.

    `computing`, `wal` and `waiting` are shares of the looks in which at least one connection computed, waited for the
    WAL to be written, or waited for anything else inside the server. `events` counts what was waited for, as
    `IO:WALSync`, most first. `cpu` is how many cores the connections' processes used, None where they cannot be read
    from here. `error` is why there are no more looks than these.
    """

    samples: int
    computing: float
    wal: float
    waiting: float
    events: Mapping[str, int]
    cpu: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Working a backlog. `seconds` is from the first claim to the count of what is completed, by the server's clock.

    `client_cpu` is how many cores this process used from the first job on, `machine_cpu` how many everybody did, out of
    the `machine_cores` that it may use; None where that cannot be read. `wal_bytes` is how much WAL the whole server
    wrote, None where that may not be asked.
    """

    tally: Tally
    seconds: float
    client_cpu: float
    machine_cpu: float | None
    machine_cores: float
    wal_bytes: int | None
    observed: Observed

    @property
    def rate(self) -> Rate:
        """Completed jobs in that time."""
        return Rate(self.tally.completed, self.seconds)

    def per_job(self, total: float | None) -> float | None:
        """`total` shared among the completed jobs."""
        return None if total is None or not self.tally.completed else total / self.tally.completed

    @property
    def client_cpu_per_job(self) -> float | None:
        """Seconds of this process's CPU."""
        return self.per_job(self.client_cpu * self.seconds)

    @property
    def server_cpu_per_job(self) -> float | None:
        """Seconds of the server's processes' CPU."""
        return self.per_job(None if self.observed.cpu is None else self.observed.cpu * self.seconds)


@dataclass(frozen=True, slots=True)
class Latency:
    """From calling insert to the first line of the worker, in seconds; `listens`: notifications arrived."""

    seconds: tuple[float, ...]
    per_second: float
    listens: bool

    def percentile(self, percent: float) -> float:
        """The least time that `percent` of the jobs did not exceed."""
        return percentile(self.seconds, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the least of `values` that `percent` of them do not exceed. Raises ValueError without any."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ranked = sorted(values)
    rank = -(-len(ranked) * percent // 100)
    return ranked[max(0, int(rank) - 1)]


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that was measured."""

    server: ServerFacts
    adapter: str
    asynchronous: bool
    trips: Trips
    one: Rate
    many: Rate
    copy: Rate
    work: Work
    latency: Latency
