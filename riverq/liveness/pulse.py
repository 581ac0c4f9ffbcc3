"""How a client's own heartbeats have fared, for its figures and for a leader that must be sure before it judges.

A leader that was cut off, suspended or only just started knows nothing about the others: their heartbeats may have
failed for the same reason. So it asks for how long its own have succeeded without a gap. A gap shows on any of three
clocks: the monotonic one (a suspended process), the machine's wall clock (a virtual machine that was paused may hold
its monotonic clock still) and the database's (a server that was replaced by one with another time). Any of them that
moves by more than two intervals between two heartbeats begins the count anew; a clock that is merely set does no harm
but to make the leader wait.

One thread writes, any thread reads: what is known is one immutable value that is replaced as a whole, so there is no
lock that a fork could leave taken.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

_NOT_AT_ALL = timedelta(0)


class Beat(NamedTuple):
    """When a heartbeat was known to have succeeded: this machine's two clocks, and the row's `seen_at`."""

    monotonic: float
    wall: datetime
    seen_at: datetime


class _Row(NamedTuple):
    first: Beat
    last: Beat


class Pulse:
    """Heartbeats in a row; `interval` is the time from one to the next."""

    def __init__(self, interval: timedelta) -> None:
        self.failures_in_a_row = 0
        self._longest_gap = 2 * interval
        self._row: _Row | None = None

    @property
    def last(self) -> Beat | None:
        """The last success."""
        row = self._row
        return None if row is None else row.last

    def succeeded(self, beat: Beat) -> timedelta:
        """Count a success; returns the gap before it if it was too long, else zero."""
        row = self._row
        gap = _NOT_AT_ALL if row is None else _gap(row.last, beat)
        too_long = gap > self._longest_gap
        self._row = _Row(beat, beat) if row is None or too_long else _Row(row.first, beat)
        self.failures_in_a_row = 0
        return gap if too_long else _NOT_AT_ALL

    def failed(self) -> None:
        """Count a failure. It is no gap by itself: the next attempt may still come in time."""
        self.failures_in_a_row += 1

    def sure_for(self, monotonic: float, wall: datetime) -> timedelta:
        """From the first to the last success without a gap; zero where the last one is too long ago by now."""
        row = self._row
        if row is None:
            return _NOT_AT_ALL
        age = max(timedelta(seconds=monotonic - row.last.monotonic), abs(wall - row.last.wall))
        if age > self._longest_gap:
            return _NOT_AT_ALL
        return timedelta(seconds=row.last.monotonic - row.first.monotonic)


def _gap(before: Beat, after: Beat) -> timedelta:
    waited = timedelta(seconds=after.monotonic - before.monotonic)
    return max(waited, abs(after.wall - before.wall), abs(after.seen_at - before.seen_at))
