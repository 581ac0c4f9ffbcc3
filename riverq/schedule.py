"""When something runs again and again: `every` an interval, `cron`, `never`, or an object of one's own.

A schedule is asked for the first run after a time and answers in that time's zone; the leader asks in UTC and compares
in UTC. It must be pure: the same question has the same answer, in every process of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from riverq.validation import duration, fail


@runtime_checkable
class Schedule(Protocol):
    """`next(after)` is the first run strictly after the aware time `after`; None for never again."""

    def next(self, after: datetime, /) -> datetime | None:
        """The first run after `after`, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """A run each `interval`, counted from the run before."""

    interval: timedelta

    def __post_init__(self) -> None:
        duration("interval", self.interval, timedelta(milliseconds=1))

    def next(self, after: datetime, /) -> datetime | None:
        """`interval` of real time after `after`, which must be aware; None where that is beyond year 9999."""
        if not isinstance(after, datetime) or after.utcoffset() is None:
            raise fail("after", "to be a datetime aware of its zone", after, "datetime.now(UTC), at.astimezone()")
        try:
            return (after.astimezone(UTC) + self.interval).astimezone(after.tzinfo)
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class Never:
    """No run at all: for a job that is only run on start, or switched off."""

    def next(self, _after: datetime, /) -> datetime | None:
        """None."""
        return None


def every(interval: timedelta) -> Every:
    """A run each `interval`. Raises ConfigError for less than a millisecond."""
    return Every(interval)


def never() -> Never:
    """A schedule that never comes due."""
    return Never()
