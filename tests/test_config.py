"""What `Config` and `QueueConfig` refuse: one sentence with the setting, its bounds and the value."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from riverq.config import Config, QueueConfig
from riverq.errors import ConfigError
from riverq.registry import Workers
from riverq.retry_policy import DefaultRetryPolicy

QUEUE = QueueConfig(max_workers=1)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"client_id": ""}, "expected client_id to be a text of 1 to 100 characters, got: ''"),
        ({"client_id": "x" * 101}, "expected client_id to be a text of 1 to 100"),
        ({"client_id": 7}, "got: 7"),
        ({"client_id": "a\0"}, "expected client_id to hold no NUL"),
        ({"client_id": "a\ud800"}, "no lone surrogate"),
        ({"fetch_cooldown": 1}, "expected fetch_cooldown to be a timedelta, got: 1 (durations carry their unit"),
        ({"fetch_cooldown": timedelta(0)}, "expected fetch_cooldown to be at least 0.001 s"),
        ({"fetch_cooldown": SECOND * 2}, "expected fetch_poll_interval to be at least fetch_cooldown (2 s)"),
        ({"fetch_eager": "no"}, "expected fetch_eager to be True or False, got: 'no'"),
        ({"fetch_pol_interval": SECOND}, "did you mean 'fetch_poll_interval'?"),
        ({"job_timeout": 60}, "expected job_timeout to be a timedelta"),
        ({"max_attempts": 0}, "expected max_attempts to be an integer from 1 to 32767, got: 0"),
        ({"max_attempts": True}, "got: True"),
        ({"middleware": None}, "expected middleware to be a list, got: None"),
        ({"period_basis": "never"}, "expected period_basis to be 'scheduled_time' or 'insert_time', got: 'never'"),
        ({"poll_only": 1}, "expected poll_only to be True or False, got: 1"),
        ({"queues": ["default"], "workers": Workers()}, "expected queues to be a dict of names and QueueConfig"),
        ({"queues": {"default": 5}, "workers": Workers()}, "expected queues['default'] to be a QueueConfig, got: 5"),
        ({"queues": {"Default": QUEUE}, "workers": Workers()}, "expected queue to be at most 64 lower case"),
        ({"queues": {"default": QUEUE}}, "queues need workers"),
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
