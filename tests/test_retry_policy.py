"""The default policy against River's formula."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverq.job import JobRow, JobState
from riverq.retry_policy import LONGEST_RETRY, DefaultRetryPolicy, RetryPolicy

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROW = JobRow(
    id=42,
    kind="k",
    state=JobState.RUNNING,
    attempt=9,
    max_attempts=25,
    priority=1,
    queue="default",
    created_at=AT,
    scheduled_at=AT,
)


class Middle(Random):
    def random(self) -> float:
        return 0.5


@pytest.mark.parametrize(("errors", "seconds"), [(0, 1), (1, 16), (2, 81), (3, 256), (24, 390_625)])
def test_waits_the_fourth_power_of_errors_not_of_attempts(errors: int, seconds: int) -> None:
    row = replace(ROW, encoded_errors=("not even JSON",) * errors)
    assert DefaultRetryPolicy().next_retry(row, rng=Middle()) == timedelta(seconds=seconds)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(1, 309), st.integers())
def test_stays_within_a_tenth(errors: int, seed: int) -> None:
    wait = DefaultRetryPolicy().wait(errors, rng=Random(seed)).total_seconds()
    assert 0.9 * errors**4 - 1e-3 <= wait <= min(1.1 * errors**4, LONGEST_RETRY.total_seconds()) + 1e-3


def test_jitter_differs() -> None:
    rng = Random(1)
    assert len({DefaultRetryPolicy().wait(3, rng=rng) for _ in range(20)}) == 20


@pytest.mark.parametrize("errors", [310, 1000, 10**6])
def test_is_capped_where_gos_duration_ends(errors: int) -> None:
    wait = DefaultRetryPolicy().wait(errors, rng=Random(0))
    assert wait == LONGEST_RETRY == timedelta(microseconds=9_223_372_036_854_775)
    assert (AT + wait).year == 2318


def test_it_is_a_policy() -> None:
    assert isinstance(DefaultRetryPolicy(), RetryPolicy)
    assert not isinstance(object(), RetryPolicy)
