"""Output and metadata: written by one side, by workers, updates and at the insert; read and merged by the other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Row, Side

KIND = "oracle_outcome"
HOUR = 3600.0

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**53 + 1,
    2**63,
    -(10**40),
    1.5,
    -1e-7,
    1e21,
    "",
    "é🦫 <&>\u2028\u007f\\ \"'",
    [],
    [None, [[]], {"": {}}],
    {},
    {"é🦫": {"deep": [1, {"n": 2**63 - 1}]}, "": None, "a.b": "<&>", "river:x": 1},
)
"""What an output may be: any JSON. Postgres keeps every digit of its numbers."""


# -- what a worker writes


@pytest.mark.scenario("metadata", "any JSON as output: both sides store the same, and read the other's")
def test_any_json_as_output(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    ids = [giver.insert(KIND, {"output": value}) for value in VALUES]
    with taker.working(KIND) as client:
        for job_id in ids:
            client.events(1, kinds=["job_completed"], job_id=job_id)
    for job_id, value in zip(ids, VALUES, strict=True):
        row = giver.get(job_id)
        assert row == taker.get(job_id)
        assert row["metadata"] == {"output": value}
        # Text by text, as Postgres writes it: a number that lost a digit would be another text.
        assert _output(fleet, job_id, "metadata") == _output(fleet, job_id, "args")


def _output(fleet: Place, job_id: int, column: str) -> Any:
    return fleet.scalars(f"SELECT {column}->>'output' FROM {{schema}}.river_job WHERE id = :id", id=job_id)[0]


ENDS: dict[str, dict[str, Any]] = {
    "complete": {"outcome": "complete"},
    "error": {"outcome": "error", "message": "m"},
    "snooze": {"outcome": "snooze", "seconds": HOUR},
    "cancel": {"outcome": "cancel", "message": "m"},
    "panic": {"outcome": "panic", "message": "m"},
    "timeout": {"outcome": "wait"},
    "complete_tx": {"outcome": "complete_tx"},
    "complete_tx, then error": {"outcome": "complete_tx", "message": "too late"},
    "complete_tx rolled back, then error": {"outcome": "complete_tx_rollback", "message": "undone"},
    "last attempt": {"outcome": "error", "message": "m", "max_attempts": 1},
}
WRITTEN: dict[str, Any] = {"output": {"half": [1, "é"]}, "metadata": {"tenant": "b", "deep": {"x": None}}}


@pytest.mark.scenario("metadata", "output and metadata are kept with every outcome, alike on both sides")
def test_output_and_metadata_with_every_outcome(river: Side, riverq_side: Side, adapter: str) -> None:
    rows: dict[str, dict[str, Row]] = {}
    for side, inserter in ((river, riverq_side), (riverq_side, river)):
        ids = {
            name: inserter.insert(
                KIND,
                end | WRITTEN,
                max_attempts=end.get("max_attempts", 25),
                metadata={"tenant": "a", "kept": 1, "deep": {"y": 1}},
                queue=f"{side.name}_timeout" if name == "timeout" else side.name,
            )
            for name, end in ENDS.items()
        }
        with (
            side.working(KIND, queue=side.name, retry_seconds=HOUR, max_workers=20) as client,
            side.working(KIND, queue=f"{side.name}_timeout", retry_seconds=HOUR, job_timeout_seconds=2) as hasty,
        ):
            for name, job_id in ids.items():
                (hasty if name == "timeout" else client).events(1, job_id=job_id)
        rows[side.name] = {name: inserter.get(job_id) for name, job_id in ids.items()}
        assert rows[side.name] == {name: side.get(job_id) for name, job_id in ids.items()}
    for name in ENDS:
        theirs, ours = rows["river"][name], rows["riverq"][name]
        same = ("state", "attempt", "metadata")
        assert [theirs[key] for key in same] == [ours[key] for key in same], name
        snoozes = {"snoozes": 1} if name == "snooze" else {}
        # `||`: keys are replaced whole, and no other key goes.
        written = {"tenant": "b", "kept": 1, "deep": {"x": None}, "output": {"half": [1, "é"]}}
        assert ours["metadata"] == written | snoozes, name


@pytest.mark.scenario("metadata", "what several attempts on both sides write is merged: shallow, the last one wins")
def test_several_attempts_are_merged(giver: Side, taker: Side, adapter: str) -> None:
    acts = {
        "first": {"metadata": {"a": {"x": 1}, "b": [1], "c": "c", "d": 1}, "output": {"n": 1}, "outcome": "error"},
        "second": {"metadata": {"a": {"y": 2}, "c": None, "e": {}}, "outcome": "error"},
        "third": {"metadata": {"b": None, "c": [None], "e": None}, "output": None, "outcome": "complete"},
    }
    job_id = giver.insert(KIND, {"acts": acts}, metadata={"0": {"deep": True}, "d": 0})
    seen = []
    for side, other, script in ((taker, giver, "first"), (giver, taker, "second"), (taker, giver, "third")):
        with side.working(KIND, script=script, retry_seconds=HOUR) as client:
            client.events(1, job_id=job_id)
        seen.append(other.get(job_id)["metadata"])
        if script != "third":
            other.retry(job_id)
    first = {"0": {"deep": True}, "a": {"x": 1}, "b": [1], "c": "c", "d": 1, "output": {"n": 1}}
    second = first | {"a": {"y": 2}, "c": None, "e": {}}
    third = second | {"b": None, "c": [None], "e": None, "output": None}
    assert seen == [first, second, third]
    assert giver.get(job_id) == taker.get(job_id)


@pytest.mark.scenario("metadata", "snoozes are counted on by the other side, and cost no attempt")
def test_snoozes_are_counted_on(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, {"outcome": "snooze", "seconds": HOUR}, max_attempts=1, metadata={"snoozes": "4"})
    for number, side in enumerate((taker, giver, taker, giver), start=5):
        with side.working(KIND) as client:
            client.events(1, kinds=["job_snoozed"], job_id=job_id)
        row = taker.get(job_id)
        assert (row["state"], row["attempt"], row["metadata"]) == ("scheduled", 0, {"snoozes": number})
        assert giver.retry(job_id)["state"] == "available"


@pytest.mark.scenario("metadata", "keys that are River's own are refused to workers of both sides")
def test_rivers_own_keys_are_refused(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, {"metadata": {"river:mine": 1}}, metadata={"river:theirs": 2})
    with taker.working(KIND, retry_seconds=HOUR) as client:
        client.events(1, kinds=["job_failed"], job_id=job_id)
    row = giver.get(job_id)
    assert row["metadata"] == {"river:theirs": 2}
    assert "river:" in row["errors"][0]["error"]


# -- what is written from outside


@pytest.mark.scenario("metadata", "any JSON as output by an update, read by the other side")
def test_any_json_by_an_update(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    job_id = taker.insert(KIND, metadata={"kept": {"n": 2**63}}, pending=True)
    for value in VALUES:
        row = giver.update(job_id, output=value)
        assert row["metadata"] == {"kept": {"n": 2**63}, "output": value}
        assert taker.get(job_id) == row
        # An update that says nothing changes nothing.
        assert taker.update(job_id) == row


@pytest.mark.scenario("metadata", "an update from outside is seen during the run, and stays where the job says nothing")
def test_an_update_during_the_run(giver: Side, taker: Side, adapter: str) -> None:
    silent = giver.insert(KIND, {"outcome": "wait", "metadata": {"by": "worker"}})
    with taker.working(KIND) as client:
        client.until_begun(silent)
        row = giver.update(silent, output="from outside")
        assert (row["state"], row["metadata"]) == ("running", {"output": "from outside"})
        assert taker.get(silent) == row
        client.release()
        [event] = client.events(1, kinds=["job_completed"], job_id=silent)
    row = giver.get(silent)
    assert row["metadata"] == event["job"]["metadata"] == {"output": "from outside", "by": "worker"}


@pytest.mark.scenario("metadata", "what the job itself records wins over an update during its run")
def test_the_jobs_own_output_wins(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, {"outcome": "wait", "output": "the job's"})
    with taker.working(KIND) as client:
        client.until_begun(job_id)
        assert giver.update(job_id, output="from outside")["metadata"] == {"output": "from outside"}
        client.release()
        client.events(1, kinds=["job_completed"], job_id=job_id)
    assert giver.get(job_id)["metadata"] == {"output": "the job's"}
    # And a later update over what the job recorded.
    assert taker.update(job_id, output="corrected")["metadata"] == {"output": "corrected"}
    assert giver.get(job_id)["state"] == "completed"


@pytest.mark.scenario("metadata", "an update in a transaction is seen at its commit, and not after a rollback")
def test_an_update_in_a_transaction(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, pending=True)
    with giver.transaction() as tx:
        giver.update(job_id, output="undone", tx=tx)
        assert taker.get(job_id)["metadata"] == {}
        tx.rollback()
    assert taker.get(job_id)["metadata"] == {}
    with giver.transaction() as tx:
        giver.update(job_id, output="done", tx=tx)
    assert taker.get(job_id)["metadata"] == {"output": "done"}
    with pytest.raises(OracleError) as caught:
        giver.update(job_id + 1, output="nobody's")
    assert caught.value.kind == "not_found"


@pytest.mark.scenario("metadata", "metadata given at the insert is read, and kept, by the other side as it is")
def test_metadata_given_at_the_insert(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    metadata = {f"key {number}": value for number, value in enumerate(VALUES)} | {"output": "given", "": {"é": 1}}
    job_id = giver.insert(KIND, {"outcome": "complete"}, metadata=metadata)
    assert giver.get(job_id) == taker.get(job_id)
    before = _text(fleet, job_id)
    with taker.working(KIND) as client:
        [event] = client.events(1, kinds=["job_completed"], job_id=job_id)
    assert event["job"]["metadata"] == giver.get(job_id)["metadata"] == metadata
    assert _text(fleet, job_id) == before


def _text(fleet: Place, job_id: int) -> list[Any]:
    return fleet.scalars("SELECT metadata::text FROM {schema}.river_job WHERE id = :id", id=job_id)


@pytest.mark.scenario("metadata", "metadata that a job passes on to a job it inserts")
def test_metadata_passed_on(giver: Side, taker: Side, adapter: str) -> None:
    child = {
        "kind": "child",
        "args": "{}",
        "metadata": {"from": {"é": 2**53 + 1}},
        "tags": ["red", "blue"],
        "pending": True,
    }
    parent = giver.insert(KIND, {"insert": child})
    with taker.working(KIND) as client:
        client.events(1, kinds=["job_completed"], job_id=parent)
    [row] = giver.list(kinds=["child"]).jobs
    assert (row["metadata"], row["tags"], row["state"]) == ({"from": {"é": 2**53 + 1}}, ["red", "blue"], "pending")
    assert taker.list(metadata='{"from": {"é": 9007199254740993}}').jobs == [row]
