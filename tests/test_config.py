"""What `Config` and `QueueConfig` refuse: one sentence with the setting, its bounds and the value."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from riverq.config import KEEP, Config, QueueConfig
from riverq.errors import ConfigError
from riverq.periodic import PeriodicJob
from riverq.registry import Workers
from riverq.retry_policy import DefaultRetryPolicy
from riverq.schedule import every

QUEUE = QueueConfig(max_workers=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
JOB = PeriodicJob(every(HOUR), lambda: None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cancelled_job_retention_period": 3}, "expected cancelled_job_retention_period to be a timedelta, got: 3"),
        ({"client_grace": SECOND * 5}, "expected client_grace to be at least 6 s"),
        ({"client_grace": 30}, "expected client_grace to be a timedelta, got: 30"),
        ({"client_grace": None}, "expected client_grace to be a timedelta, got: None"),
        ({"completed_job_retention_period": -SECOND * 2}, "expected completed_job_retention_period to be at least 0 s"),
        ({"discarded_job_retention_period": "7d"}, "expected discarded_job_retention_period to be a timedelta"),
        ({"client_id": ""}, "expected client_id to be a text of 1 to 100 characters, got: ''"),
        ({"client_id": "x" * 101}, "expected client_id to be a text of 1 to 100"),
        ({"client_id": 7}, "got: 7"),
        ({"client_id": "a\0"}, "expected client_id to hold no NUL"),
        ({"client_id": "a\ud800"}, "no lone surrogate"),
        ({"error_handler": print}, "expected error_handler to be an object with a handle_error method"),
        ({"fetch_cooldown": 1}, "expected fetch_cooldown to be a timedelta, got: 1 (durations carry their unit"),
        ({"fetch_cooldown": timedelta(0)}, "expected fetch_cooldown to be at least 0.001 s"),
        ({"fetch_cooldown": SECOND * 2}, "expected fetch_poll_interval to be at least fetch_cooldown (2 s)"),
        ({"fetch_eager": "no"}, "expected fetch_eager to be True or False, got: 'no'"),
        ({"fetch_only_known_kinds": ["k"]}, "expected fetch_only_known_kinds to be True or False, got: ['k']"),
        ({"fetch_pol_interval": SECOND}, "did you mean 'fetch_poll_interval'?"),
        ({"job_cleaner_timeout": timedelta(0)}, "expected job_cleaner_timeout to be at least 0.001 s"),
        ({"job_cleaner_timeout": None}, "expected job_cleaner_timeout to be a timedelta, got: None"),
        ({"job_stuck_handler": 3}, "expected job_stuck_handler to be a function, got: 3"),
        ({"job_stuck_threshold": 10}, "expected job_stuck_threshold to be a timedelta, got: 10"),
        ({"job_stuck_threshold": timedelta(0)}, "expected job_stuck_threshold to be at least 0.001 s"),
        ({"leader_election": 0}, "expected leader_election to be True or False, got: 0"),
        ({"loop_block_threshold": -SECOND}, "expected loop_block_threshold to be at least 0.001 s"),
        ({"job_timeout": 60}, "expected job_timeout to be a timedelta"),
        ({"max_attempts": 0}, "expected max_attempts to be an integer from 1 to 32767, got: 0"),
        ({"max_attempts": True}, "got: True"),
        ({"middleware": None}, "expected middleware to be a list, got: None"),
        ({"on_unknown_stuck_kind": "drop"}, "expected on_unknown_stuck_kind to be 'leave', 'retry' or 'discard'"),
        ({"periodic_jobs": JOB}, "expected periodic_jobs to be a list"),
        ({"periodic_jobs": "daily"}, "expected periodic_jobs to be a list, got: 'daily'"),
        ({"periodic_jobs": [3]}, "expected periodic_jobs to hold PeriodicJobs, got: 3"),
        ({"periodic_jobs": [JOB], "leader_election": False}, "(drop leader_election=False or periodic_jobs)"),
        ({"period_basis": "never"}, "expected period_basis to be 'scheduled_time' or 'insert_time', got: 'never'"),
        ({"poll_only": 1}, "expected poll_only to be True or False, got: 1"),
        ({"queues": ["default"], "workers": Workers()}, "expected queues to be a dict of names and QueueConfig"),
        ({"queues": {"default": 5}, "workers": Workers()}, "expected queues['default'] to be a QueueConfig, got: 5"),
        ({"queues": {"Default": QUEUE}, "workers": Workers()}, "expected queue to be at most 64 lower case"),
        ({"queues": {"default": QUEUE}}, "queues need workers"),
        ({"reindexer_index_names": "river_job_kind"}, "expected reindexer_index_names to be a list"),
        ({"reindexer_index_names": None}, "expected reindexer_index_names to be a list, got: None"),
        ({"reindexer_index_names": ["river_job_kind", ""]}, "expected reindexer_index_names to hold names, got: ''"),
        ({"reindexer_index_names": [3]}, "expected reindexer_index_names to hold names, got: 3"),
        ({"reindexer_schedule": "0 0 * * *"}, "expected reindexer_schedule to be a schedule, got: '0 0 * * *'"),
        ({"reindexer_timeout": timedelta(0)}, "expected reindexer_timeout to be at least 0.001 s"),
        ({"reindexer_timeout": 60}, "expected reindexer_timeout to be a timedelta, got: 60"),
        ({"rescue_stuck_jobs_after": 3600}, "expected rescue_stuck_jobs_after to be a timedelta, got: 3600"),
        ({"rescue_stuck_jobs_after": SECOND * 59}, "expected rescue_stuck_jobs_after to be at least 60 s"),
        ({"rescue_stuck_jobs_after": timedelta(0), "job_timeout": None}, "to be at least 0.001 s"),
        ({"retry_policy": DefaultRetryPolicy}, "expected retry_policy to be an object with a next_retry method"),
        ({"retry_policy": 3}, "expected retry_policy to be an object"),
        ({"schema": 3}, "expected schema to be at most 46 letters"),
        ({"schema": 'a"b'}, "setting search_path on the role"),
        ({"schema": "x" * 47}, "expected schema to be at most 46"),
        ({"soft_stop_timeout": -SECOND}, "expected soft_stop_timeout to be at least 0 s"),
        ({"workers": []}, "expected workers to be a riverq.Workers, got: []"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_workers": 0}, "expected max_workers to be an integer from 1 to 10000, got: 0"),
        ({"max_workers": 1.5}, "got: 1.5"),
        ({"max_worker": 1}, "did you mean 'max_workers'?"),
        ({"max_workers": 1, "fetch_cooldown": 0.1}, "expected fetch_cooldown to be a timedelta"),
    ],
)
def test_a_queues_setting_that_cannot_be_is_named_with_its_value(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QueueConfig(**settings)
    assert words in str(caught.value)


def test_what_was_given_can_be_changed_afterwards_without_effect() -> None:
    queues = {"default": QUEUE}
    config = Config(queues=queues, workers=Workers())
    queues.clear()
    assert dict(config.queues) == {"default": QUEUE}


def test_lists_that_were_given_are_copied() -> None:
    jobs, names = [JOB], ["river_job_kind"]
    config = Config(periodic_jobs=jobs, reindexer_index_names=names)
    jobs.clear()
    names.clear()
    assert (config.periodic_jobs, config.reindexer_index_names) == ((JOB,), ("river_job_kind",))
    assert Config(reindexer_index_names=[]).reindexer_index_names == ()


@pytest.mark.parametrize("state", ["cancelled", "completed", "discarded"])
@pytest.mark.parametrize("kept", [None, KEEP, timedelta(0), SECOND])
def test_finished_jobs_may_be_kept_for_ever_or_not_at_all(state: str, kept: timedelta | None) -> None:
    name = f"{state}_job_retention_period"
    settings: dict[str, Any] = {name: kept}
    assert getattr(Config(**settings), name) == kept


@pytest.mark.parametrize(
    ("settings", "horizon"),
    [
        ({}, HOUR),
        ({"job_timeout": SECOND * 60}, HOUR),
        ({"job_timeout": SECOND}, HOUR + SECOND),
        ({"job_timeout": HOUR * 5}, HOUR * 6),
        ({"job_timeout": None}, HOUR),
        ({"rescue_stuck_jobs_after": SECOND * 60}, SECOND * 60),
        ({"rescue_stuck_jobs_after": SECOND, "job_timeout": None}, SECOND),
        ({"rescue_stuck_jobs_after": HOUR * 9, "job_timeout": HOUR * 5}, HOUR * 9),
    ],
)
def test_rescue_horizon_follows_the_timeout_unless_it_was_given(
    settings: Mapping[str, Any], horizon: timedelta
) -> None:
    assert Config(**settings).rescue_horizon == horizon
