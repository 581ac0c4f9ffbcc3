"""One grammar for every message."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from riverq.errors import ConfigError
from riverq.validation import duration, fail, integer, known_options, nearest


def test_messages_have_one_grammar() -> None:
    assert str(fail("size", "to be small", 5)) == "expected size to be small, got: 5"
    assert str(fail("size", "to be small", "x", "cut it")) == "expected size to be small, got: 'x' (cut it)"


@pytest.mark.parametrize(("value", "low", "high"), [(1, 1, 4), (4, 1, 4), (10**9, 0, None)])
def test_integers_within_their_bounds(value: int, low: int, high: int | None) -> None:
    integer("n", value, low, high)


@pytest.mark.parametrize("value", [0, 5, True, 1.0, "1", None])
def test_integers_outside(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected n to be an integer from 1 to 4, got: "):
        integer("n", value, 1, 4)
    with pytest.raises(ConfigError, match="of at least 7"):
        integer("n", value, 7)


def test_durations_carry_their_unit() -> None:
    duration("wait", timedelta(0))
    duration("wait", timedelta(seconds=1), timedelta(seconds=1))
    with pytest.raises(ConfigError, match=re.escape("timedelta(seconds=…)")):
        duration("wait", 5)
    with pytest.raises(ConfigError, match=r"at least 0\.1 s"):
        duration("wait", timedelta(milliseconds=99), timedelta(milliseconds=100))


def test_the_nearest_name_is_offered() -> None:
    assert nearest("priorty", ["queue", "priority"]) == "did you mean 'priority'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    known_options("option", ["a"], ["a", "b"])
    with pytest.raises(ConfigError, match=re.escape("unknown option 'c' (known: a, b)")):
        known_options("option", ["c"], ["a", "b"])
