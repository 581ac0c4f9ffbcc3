"""Jobs worked across the border: inserted by one side, worked by the other, and the row ends the same.

Every outcome is walked with all four pairs of inserter and worker; what the row must say is written down once. The
schema has River's tables alone: riverq needs no others for this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from tests.interop.place import Place
from tests.interop.sides import Side
from tests.interop.waiting import until_none

pytestmark = pytest.mark.rivers_tables_only

KIND = "oracle_outcome"
SIDES = ("river", "riverq")
AN_HOUR = 3600


@pytest.fixture
def sides(river: Side, riverq_side: Side) -> dict[str, Side]:
    """Both by their names."""
    return {side.name: side for side in (river, riverq_side)}


@dataclass(frozen=True)
class Expected:
    """What a row must say after its attempt. `error` is a part of the error's text."""

    state: str
    args: dict[str, Any]
    attempt: int = 1
    metadata: dict[str, Any] | None = None
    error: str | None = None
    max_attempts: int = 25
    ahead: bool = False


OUTCOMES = {
    "complete": Expected("completed", {"outcome": "complete"}),
    "complete with output": Expected(
        "completed", {"outcome": "complete", "output": {"n": [1, None]}}, metadata={"output": {"n": [1, None]}}
    ),
    "error": Expected("retryable", {"outcome": "error", "message": "no <luck>"}, error="no <luck>", ahead=True),
    "error with output": Expected(
        "retryable",
        {"outcome": "error", "message": "m", "output": "half"},
        metadata={"output": "half"},
        error="m",
        ahead=True,
    ),
    "last error": Expected("discarded", {"outcome": "error", "message": "the end"}, error="the end", max_attempts=1),
    "snooze": Expected(
        "scheduled", {"outcome": "snooze", "seconds": 3600.5}, attempt=0, metadata={"snoozes": 1}, ahead=True
    ),
    "cancel": Expected("cancelled", {"outcome": "cancel", "message": "why"}, error="JobCancelError: why"),
}


@pytest.mark.parametrize("worker", SIDES)
@pytest.mark.parametrize("inserter", SIDES)
@pytest.mark.parametrize("name", OUTCOMES)
def test_outcome(sides: dict[str, Side], name: str, inserter: str, worker: str) -> None:
    expected = OUTCOMES[name]
    job_id = sides[inserter].insert(KIND, expected.args, max_attempts=expected.max_attempts)
    client_id = _work(sides[worker])
    row = sides["river"].get(job_id)
    assert (row["state"], row["attempt"], row["metadata"]) == (
        expected.state,
        expected.attempt,
        expected.metadata or {},
    )
    assert row["attempted_by"] == [client_id]
    assert row["attempted_at"] is not None
    assert (row["finalized_at"] is not None) == (expected.state in ("completed", "discarded", "cancelled"))
    assert (row["scheduled_at"] > row["attempted_at"]) == expected.ahead
    if expected.error is None:
        assert row["errors"] == []
    else:
        [error] = row["errors"]
        assert error["attempt"] == 1
        assert expected.error in error["error"]
        assert error["at"] >= row["created_at"]


def test_errors_of_both_sides_stand_in_one_row(fleet: Place, river: Side, riverq_side: Side) -> None:
    """Attempts of different clients add up, and each reads the other's entries."""
    job_id = riverq_side.insert(KIND, {"outcome": "error", "message": "first"})
    by_river = _work(river)
    river.retry(job_id)
    by_riverq = _work(riverq_side)
    row = river.get(job_id)
    assert row["errors"] == riverq_side.get(job_id)["errors"]
    assert [error["attempt"] for error in row["errors"]] == [1, 2]
    assert row["attempted_by"] == [by_river, by_riverq]
    entries = [json.loads(text) for text in fleet.scalars("SELECT unnest(errors)::text FROM {schema}.river_job")]
    for entry in entries:
        assert set(entry) == {"at", "attempt", "error", "trace"}
        assert datetime.fromisoformat(entry["at"][:26].rstrip("Z") + "Z").tzinfo is not None


def test_the_other_sides_insert_wakes(giver: Side, taker: Side) -> None:
    """The poll is an hour away: after the first look, only the notification can bring a job."""
    with taker.working(KIND, fetch_poll_seconds=AN_HOUR) as sleepy:
        sleepy.until_woken_by(giver, KIND)
        job_id = giver.insert(KIND)
        [event] = sleepy.events(1, job_id=job_id)
    assert event["kind"] == "job_completed"


def test_river_cancels_what_riverq_runs(river: Side, riverq_side: Side) -> None:
    job_id = river.insert(KIND, {"outcome": "wait"})
    with riverq_side.working(KIND) as client:
        client.until_begun(job_id)
        assert river.cancel(job_id)["state"] == "running"
        client.events(1, kinds=["job_cancelled"])
    row = river.get(job_id)
    assert (row["state"], row["attempt"]) == ("cancelled", 1)
    assert [error["error"] for error in row["errors"]] == ["JobCancelError: job cancelled remotely"]


def test_jobs_that_a_stop_cancels_go_to_the_other_side(giver: Side, taker: Side) -> None:
    """Interrupted by one client, the job is at once another's, and the attempt does not count."""
    job_id = taker.insert(KIND, {"outcome": "wait"})
    for number, side in enumerate((giver, taker), 1):
        client = side.start(KIND)
        client.until_begun(job_id)
        assert [event["kind"] for event in client.stop(cancel=True)] == ["job_interrupted"]
        row = taker.get(job_id)
        assert (row["state"], row["attempt"], row["errors"]) == ("available", 0, [])
        assert len(row["attempted_by"]) == number


def test_both_share_a_queue_without_sharing_a_job(fleet: Place, river: Side, riverq_side: Side) -> None:
    """Two hundred jobs, one client of each kind at once: every job is completed once, by one of them."""
    river.insert_many(KIND, number=200)
    with river.working(KIND, fetch_poll_seconds=0.1), riverq_side.working(KIND):
        until_none(fleet, "state <> 'completed'")
    once = "SELECT count(*) FROM {schema}.river_job WHERE attempt = 1 AND cardinality(attempted_by) = 1"
    assert fleet.scalars(once) == [200]


def _work(side: Side) -> str:
    """Let one side work what is there, once; its client id."""
    with side.working(KIND, retry_seconds=AN_HOUR) as client:
        client.events(1)
    return client.id
