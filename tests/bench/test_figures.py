from __future__ import annotations

import pytest

from riverq.bench.figures import Latency, Observed, Rate, Work, is_wal_event, percentile
from riverq.query.measure import Tally


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(200, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 100, 190, 198, 200]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert Latency((3.0, 1.0, 2.0), 1.0, listens=True).percentile(50) == 2.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_rate_of_no_time_is_none() -> None:
    assert Rate(300, 2.0).per_second == 150
    assert Rate(300, 0.0).per_second == 0


def test_what_a_job_costs_is_shared_among_completed_ones() -> None:
    observed = Observed(10, 0.1, 0.1, 0.1, {}, cpu=0.5)
    work = Work(Tally(100, 50, 60, 1, 1, 1), 2.0, 0.8, None, 4, 5000, observed)
    assert work.rate == Rate(50, 2.0)
    assert work.client_cpu_per_job == pytest.approx(0.8 * 2 / 50)
    assert work.server_cpu_per_job == pytest.approx(0.5 * 2 / 50)
    assert work.per_job(work.wal_bytes) == 100
    nothing = Work(Tally(100, 0, 0, 0, 0, None), 0.0, 0.0, None, 4, None, Observed(0, 0, 0, 0, {}, cpu=None))
    assert (nothing.client_cpu_per_job, nothing.server_cpu_per_job, nothing.per_job(nothing.wal_bytes)) == (None,) * 3


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("WALSync", True),
        ("WalSync", True),
        ("WALWrite", True),
        ("WALInsert", True),
        ("SyncRep", True),
        ("DataFileRead", False),
        ("transactionid", False),
        ("", False),
    ],
)
def test_waits_for_the_wal_are_known_by_name(event: str, expected: bool) -> None:
    assert is_wal_event(event) is expected
