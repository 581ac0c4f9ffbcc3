from __future__ import annotations

import pytest

from riverq.errors import ConfigError, MigrationError
from riverq.migrate.plan import check_line, lines_up, plan_down, plan_named, plan_up
from riverq.versions import Version


def numbers(versions: list[Version]) -> list[int]:
    return [version.number for version in versions]


def test_up_applies_what_is_known_and_missing() -> None:
    assert numbers(plan_up("main", {}, None, None)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(plan_up("main", {1, 2, 3, 5, 6, 9}, None, None)) == [4, 7, 8]
    assert numbers(plan_up("main", range(1, 12), None, None)) == []


def test_up_stops_at_target_or_after_steps() -> None:
    assert numbers(plan_up("main", {1}, 3, None)) == [2, 3]
    assert numbers(plan_up("main", {1}, None, 2)) == [2, 3]
    assert numbers(plan_up("main", {1}, 3, 1)) == [2]


def test_up_to_a_target_that_is_applied_does_nothing() -> None:
    assert plan_up("main", {1, 2, 3, 5}, 5, None) == []


def test_down_takes_one_step_unless_told() -> None:
    assert numbers(plan_down("main", range(1, 9), None, None)) == [8]
    assert numbers(plan_down("main", range(1, 9), None, 3)) == [8, 7, 6]
    assert numbers(plan_down("main", range(1, 9), 6, None)) == [8, 7]
    assert numbers(plan_down("main", range(1, 9), 6, 1)) == [8]


@pytest.mark.parametrize("target", [0, -1])
def test_down_to_nothing(target: int) -> None:
    assert numbers(plan_down("main", {1, 2, 3}, target, None)) == [3, 2, 1]


def test_down_leaves_unknown_versions_alone() -> None:
    assert numbers(plan_down("main", range(1, 11), None, None)) == [8]


def test_down_to_a_target_that_is_not_applied_is_an_error() -> None:
    with pytest.raises(MigrationError, match=r"down to version 6: it is not applied \(applied: 1, 2\)"):
        plan_down("main", {1, 2}, 6, None)


@pytest.mark.parametrize("target", [0, -1, 9, 70])
def test_unknown_target_up_names_the_known_ones(target: int) -> None:
    with pytest.raises(ConfigError, match=rf"'main': {target} \(known: 1, 2, 3, 4, 5, 6, 7, 8; nearest: [18]\)"):
        plan_up("main", {1}, target, None)


def test_unknown_target_down_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown version"):
        plan_down("main", range(1, 12), 9, None)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_must_be_positive(steps: int) -> None:
    with pytest.raises(ConfigError, match="max_steps to be at least 1"):
        plan_up("main", {}, None, steps)
    with pytest.raises(ConfigError, match="max_steps to be at least 1"):
        plan_down("main", {1}, None, steps)


def test_unknown_line_hints_at_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'mian' \(did you mean 'main'\?\)"):
        check_line("mian")
    with pytest.raises(ConfigError, match=r"'zzz' \(known lines: main, riverq\)"):
        check_line("zzz")


def test_no_line_means_both_unless_versions_are_named() -> None:
    assert lines_up(None, names_versions=False) == ["main", "riverq"]
    assert lines_up(None, names_versions=True) == ["main"]
    assert lines_up("riverq", names_versions=True) == ["riverq"]


def test_named_versions_come_in_the_order_in_which_they_run() -> None:
    assert numbers(plan_named("main", "up", [4, 2])) == [2, 4]
    assert numbers(plan_named("main", "down", [2, 4])) == [4, 2]
    assert numbers(plan_named("main", "up", None, [1, 8])) == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ConfigError, match="unknown version"):
        plan_named("main", "up", [9])
