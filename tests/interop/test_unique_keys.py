"""Unique keys: what riverq computes is, byte for byte, what the real River computes for the twin of the same args.

The args' own text is compared first, so that a difference in encoding shows as text and not as two hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

import riverq
from riverq.errors import ConfigError
from riverq.insert_opts import InsertParams
from tests.interop.cases import Case, Unique, cases
from tests.interop.keys import job_args, prepare, unique_opts
from tests.interop.place import Place

FEWEST_CASES = 300


@pytest.fixture(scope="module")
def generated() -> list[Case]:
    return cases()


def test_generation_is_deterministic_and_large(generated: list[Case]) -> None:
    assert cases() == generated
    assert len(generated) >= FEWEST_CASES


def test_args_are_encoded_as_go_encodes_them(migrated: Place, generated: list[Case]) -> None:
    differences = [
        (case, told["args"], ours.encoded_args)
        for case, told, ours in _both(migrated, generated)
        if ours.encoded_args != told["args"]
    ]
    assert not differences


def test_keys_and_states_are_gos(migrated: Place, generated: list[Case]) -> None:
    differences = []
    for case, told, ours in _both(migrated, generated):
        key = ours.unique_key.hex() if ours.unique_key is not None else None
        if (key, f"{ours.unique_states:08b}") != (told["unique_key"], told["unique_states"]):
            differences.append((case, told, key, f"{ours.unique_states:08b}"))
    assert not differences


def test_a_changed_value_changes_the_key(migrated: Place) -> None:
    """That the comparison above can fail: one differing byte is seen."""
    case = Case({"name": "a", "count": 1}, "Simple")
    [told] = migrated.go("unique_keys", cases=[replace(case, values={"name": "b", "count": 1}).for_oracle()])
    key = prepare(case).unique_key
    assert key is not None
    assert key.hex() != told["unique_key"]


@pytest.mark.parametrize(
    "unique",
    [
        Unique(exclude_kind=True),
        Unique(exclude_kind=True, by_state=("available", "pending", "running", "scheduled")),
        Unique(by_period=timedelta(milliseconds=500)),
        Unique(by_args=True, by_state=("available", "running")),
        Unique(by_args=True, by_state=("available", "pending", "running", "scheduled", "asleep")),
    ],
)
def test_options_that_river_refuses_are_refused(migrated: Place, unique: Unique) -> None:
    case = Case({"name": "n"}, "Simple", unique=unique)
    [told] = migrated.go("unique_keys", cases=[case.for_oracle()])
    assert "UniqueOpts" in told["error"]
    with pytest.raises(ConfigError):
        prepare(case)


def test_raw_args_that_are_no_object_are_refused_by_river(migrated: Place) -> None:
    """Why riverq takes a dict only: River hashes no other JSON."""
    told = migrated.go("unique_keys", cases=[{"kind": "kind", "args": "3", "unique": {"by_args": True}}])
    assert told == [{"error": "unique args must encode a JSON object"}]


def test_a_duplicate_of_the_other_side_is_skipped(migrated: Place) -> None:
    """The keys meet in the table itself: whoever inserts second gets the row of the first."""
    client = riverq.Client(migrated.engine, riverq.Config(schema=migrated.schema))
    first = Case({"name": "<one>", "count": 1}, "Simple")
    [by_river] = migrated.go("insert", jobs=[first.for_oracle()])
    ours = client.insert(job_args(first), unique_opts=unique_opts(first.unique))
    assert (ours.unique_skipped_as_duplicate, ours.job.id) == (True, by_river["job"]["id"])

    second = Case({"name": "two\u2028", "count": 2}, "Simple")
    ours = client.insert(job_args(second), unique_opts=unique_opts(second.unique))
    [by_river] = migrated.go("insert", jobs=[second.for_oracle()])
    assert (by_river["unique_skipped_as_duplicate"], by_river["job"]["id"]) == (True, ours.job.id)


def _both(place: Place, some: Sequence[Case]) -> list[tuple[Case, dict[str, Any], InsertParams]]:
    told = place.go("unique_keys", cases=[case.for_oracle() for case in some])
    refused = [(case, answer["error"]) for case, answer in zip(some, told, strict=True) if "error" in answer]
    assert not refused, "River refused cases that were meant to be good"
    return [(case, answer, prepare(case)) for case, answer in zip(some, told, strict=True)]
