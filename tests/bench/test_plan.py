from __future__ import annotations

from datetime import timedelta

import pytest

from riverq.bench.plan import DEFAULT_SECONDS, SHARES, Countdown, Limit, Phase, Plan
from riverq.config import Config
from riverq.errors import ConfigError


def test_the_schema_is_random_unless_named() -> None:
    first, second = Plan(), Plan()
    assert first.schema == f"riverq_bench_{first.token}"
    assert first.schema != second.schema
    assert Plan(schema="riverq_bench_mine").schema == "riverq_bench_mine"
    assert first.mark != second.mark


def test_the_settings_are_those_of_go_rivers_bench_or_the_clients_own() -> None:
    assert Plan().cooldown == timedelta(milliseconds=2)
    plan = Plan(tuned=False, workers=7)
    config = plan.queue_config()
    assert config.fetch_cooldown == Config().fetch_cooldown
    assert config.fetch_poll_interval == Config().fetch_poll_interval
    assert config.max_workers == 7


def test_the_time_is_shared_out() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert set(SHARES) == set(Phase) - {Phase.PREPARE, Phase.DROP}


@pytest.mark.parametrize(
    ("plan", "backlog", "latency"),
    [
        (Plan(), Limit(None, DEFAULT_SECONDS * 0.4), Limit(None, DEFAULT_SECONDS * 0.2)),
        (Plan(seconds=1), Limit(None, 0.4), Limit(None, 0.2)),
        (Plan(jobs=9), Limit(9, None), Limit(9, DEFAULT_SECONDS * 0.2)),
        (Plan(jobs=9, seconds=1), Limit(9, 0.4), Limit(9, 0.2)),
    ],
)
def test_jobs_alone_are_worked_to_the_end(plan: Plan, backlog: Limit, latency: Limit) -> None:
    assert plan.limit(Phase.WORK) == backlog
    assert plan.limit(Phase.LATENCY) == latency


def test_a_countdown_ends_by_jobs_or_by_time() -> None:
    by_jobs = Countdown(Limit(3, None))
    assert [by_jobs.goes_on(jobs) for jobs in (0, 2, 3)] == [True, True, False]
    assert [by_jobs.left(jobs, 2) for jobs in (0, 2)] == [2, 1]
    by_time = Countdown(Limit(None, 0.0000001))
    assert by_time.goes_on(0)  # there is always a first one
    assert not by_time.goes_on(1)
    assert by_time.left(1, 1000) == 1000
    endless = Countdown(Limit(None, None))
    assert endless.share(10**9) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers to be from 1 to 10000, got: 0"),
        ({"workers": 10_001}, "got: 10001"),
        ({"jobs": 0}, "-n to be at least 1, got: 0"),
        ({"seconds": 0.0}, "--duration to be more than 0"),
        ({"schema": "a b"}, "schema to be at most"),
        ({"schema": "x" * 47}, "schema to be at most"),
        ({"schema": "mine"}, "--schema to start with 'riverq_bench', got: 'mine'"),
        ({"schema": "Riverq_bench"}, "--schema to start with"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        Plan(**options)  # type: ignore[arg-type]  # values outside their limits, of the right types
