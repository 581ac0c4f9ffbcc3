"""The oracle itself: what the other tests build on."""

from __future__ import annotations

import re

import pytest

from tests.interop import cases
from tests.interop.oracle import Oracle, OracleError
from tests.interop.place import Place


def test_knows_the_same_shapes_as_the_generator(oracle: Oracle) -> None:
    assert set(oracle.call("shapes")) == set(cases.VALUES)


def test_refusals_carry_rivers_own_message(migrated: Place) -> None:
    with pytest.raises(OracleError, match="priority must be between 1 and 4"):
        migrated.go_insert("kind", {}, priority=5)


def test_answers_find_their_requests(migrated: Place) -> None:
    """A wait under way does not hold up another request, nor take its answer."""
    migrated.go("start", client="waiting", kinds=["oracle_wait"])
    waiting = migrated.oracle.send("events", client="waiting", count=1)
    job = migrated.go_insert("oracle_wait", {"outcome": "wait"})
    assert migrated.go_row(job["id"])["kind"] == "oracle_wait"
    migrated.go("release", client="waiting")
    [event] = migrated.oracle.receive(waiting)
    assert event["kind"] == "job_completed"
    migrated.go("stop", client="waiting")


def test_generated_client_id_has_the_documented_shape(migrated: Place) -> None:
    client_id = migrated.go("start", client="named", kinds=["oracle_nothing"])
    migrated.go("stop", client="named")
    assert re.fullmatch(r"[^.]{1,60}_\d{4}_\d\d_\d\dT\d\d_\d\d_\d\d_\d{6}", client_id)


def test_captured_unique_keys_are_those_that_are_written(migrated: Place) -> None:
    """Keys are taken from River's insert chain, without writing; nothing changes them on the way to the table."""
    some = [case for case in cases.cases() if case.unique.by_period is None][::25]
    captured = migrated.go("unique_keys", cases=[case.for_oracle() for case in some])
    for case, expected in zip(some, captured, strict=True):
        [inserted] = migrated.go("insert", jobs=[case.for_oracle()])
        row = inserted["job"]
        assert row["unique_key"] == expected["unique_key"], case
        [bits] = migrated.scalars("SELECT unique_states::text FROM {schema}.river_job WHERE id = :id", id=row["id"])
        assert bits == expected["unique_states"]
        migrated.go("job_delete", job_id=row["id"])
