"""When a failed job runs again. A policy is asked after an attempt failed and attempts are left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Final, Protocol, runtime_checkable

from riverq.job import JobRow

LONGEST_RETRY: Final = timedelta(microseconds=(2**63 - 1) // 1000)
"""About 292 years, Go's longest duration: now plus this is still a timestamp in Postgres and in Python."""


@runtime_checkable
class RetryPolicy(Protocol):
    """What `Config.retry_policy` and `@workers.work(retry_policy=…)` take."""

    def next_retry(self, row: JobRow, *, rng: Random) -> timedelta | datetime:
        """How long to wait, by the database's clock, or an aware datetime to run at.

        `row` is the job as it was claimed: the attempt that just failed is counted in `row.attempt` and not yet among
        `row.errors`. Take randomness from `rng`. A time in the past, or an exception, means the default policy.
        """
        ...


class DefaultRetryPolicy:
    """River's: the fourth power of the number of errors, in seconds, ±10 %, so 1 s, 16 s, 81 s, 4 min 16 s, …

    Errors are counted and not attempts, since a snooze takes an attempt back. 25 attempts take about three weeks.
    """

    def next_retry(self, row: JobRow, *, rng: Random) -> timedelta:
        """The wait for the job of `row`."""
        return self.wait(len(row.encoded_errors) + 1, rng=rng)

    def wait(self, errors: int, *, rng: Random) -> timedelta:
        """The wait after `errors` failures, the present one included; at most LONGEST_RETRY, then without jitter."""
        seconds = errors**4
        if seconds >= LONGEST_RETRY.total_seconds():
            return LONGEST_RETRY
        return min(timedelta(seconds=seconds * (0.9 + 0.2 * rng.random())), LONGEST_RETRY)


def retry_wait(retry: object, now: Callable[[], datetime]) -> timedelta:
    """How far ahead the answer of a policy or a worker lies.

    Raises TypeError or ValueError for one that cannot be written: of another type, naive, past, or too far ahead.
    """
    if isinstance(retry, datetime):
        if retry.tzinfo is None:
            raise ValueError(f"expected an aware datetime, got: {retry!r}")
        wait = retry - now()
    elif isinstance(retry, timedelta):
        wait = retry
    else:
        raise TypeError(f"expected a timedelta or an aware datetime, got: {retry!r}")
    if not timedelta(0) <= wait <= LONGEST_RETRY:
        raise ValueError(f"expected a time from now to {LONGEST_RETRY.days} days ahead, got: {retry!r}")
    return wait
