"""Work that crosses the table: inserted on one side, worked on the other, with every outcome that a job can have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import until_none, until_settled

KIND = "oracle_outcome"
HOUR = 3600.0


@dataclass(frozen=True)
class Outcome:
    """What a job is told to do, and what everybody must see afterwards."""

    args: dict[str, Any]
    state: str
    event: str
    attempt: int = 1
    max_attempts: int = 25
    error: str | None = None
    traced: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    due_in: timedelta | None = None
    config: dict[str, Any] = field(default_factory=dict)


OUTCOMES = {
    "a job that completes": Outcome({"outcome": "complete"}, "completed", "job_completed"),
    "a job that records its output": Outcome(
        {"outcome": "complete", "output": {"n": [1, None, "é<&>"]}},
        "completed",
        "job_completed",
        metadata={"output": {"n": [1, None, "é<&>"]}},
    ),
    "a job that sets metadata": Outcome(
        {"outcome": "complete", "metadata": {"tenant": "a", "deep": {"x": 1}}},
        "completed",
        "job_completed",
        metadata={"tenant": "a", "deep": {"x": 1}},
    ),
    "a job that fails is retried": Outcome(
        {"outcome": "error", "message": "no <luck>"},
        "retryable",
        "job_failed",
        error="no <luck>",
        due_in=timedelta(hours=1),
    ),
    "a job that fails keeps its output": Outcome(
        {"outcome": "error", "message": "m", "output": "half"},
        "retryable",
        "job_failed",
        error="m",
        metadata={"output": "half"},
        due_in=timedelta(hours=1),
    ),
    "a job that panics is retried, with a trace": Outcome(
        {"outcome": "panic", "message": "out of order"},
        "retryable",
        "job_failed",
        error="out of order",
        traced=True,
        due_in=timedelta(hours=1),
    ),
    "a job without attempts left is discarded": Outcome(
        {"outcome": "error", "message": "the end"}, "discarded", "job_failed", max_attempts=1, error="the end"
    ),
    "a job that snoozes": Outcome(
        {"outcome": "snooze", "seconds": HOUR},
        "scheduled",
        "job_snoozed",
        attempt=0,
        metadata={"snoozes": 1},
        due_in=timedelta(hours=1),
    ),
    "a job that cancels itself": Outcome(
        {"outcome": "cancel", "message": "why"}, "cancelled", "job_cancelled", error="JobCancelError: why"
    ),
    "a job that runs out of time is retried": Outcome(
        {"outcome": "wait"},
        "retryable",
        "job_failed",
        error="",
        due_in=timedelta(hours=1),
        config={"job_timeout_seconds": 0.3},
    ),
    "a job that completes itself in a transaction": Outcome({"outcome": "complete_tx"}, "completed", "job_completed"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.scenario("work", name)) for name in OUTCOMES])
def test_every_outcome(fleet: Place, giver: Side, taker: Side, adapter: str, name: str) -> None:
    expected = OUTCOMES[name]
    job_id = giver.insert(KIND, expected.args, max_attempts=expected.max_attempts)
    with taker.working(KIND, retry_seconds=HOUR, **expected.config) as client:
        event = client.events(1, job_id=job_id)[-1]
    row = giver.get(job_id)
    assert event["kind"] == expected.event
    assert (row["state"], row["attempt"], row["metadata"]) == (expected.state, expected.attempt, expected.metadata)
    assert row["attempted_by"] == [client.id]
    assert (row["finalized_at"] is not None) == (expected.state in ("completed", "discarded", "cancelled"))
    _check_errors(row, expected)
    _check_due(row, expected)
    assert taker.get(job_id) == row


def _check_errors(row: Row, expected: Outcome) -> None:
    if expected.error is None:
        assert row["errors"] == []
        return
    [error] = row["errors"]
    assert error["attempt"] == 1
    assert expected.error in error["error"]
    # When the attempt started: River takes its own clock for it, riverq the row's.
    assert abs(_time(error["at"]) - _time(row["attempted_at"])) < timedelta(seconds=30)
    assert bool(error["trace"]) or not expected.traced


def _check_due(row: Row, expected: Outcome) -> None:
    ahead = _time(row["scheduled_at"]) - _time(row["attempted_at"])
    if expected.due_in is None:
        assert ahead <= timedelta(0)
    else:
        assert abs(ahead - expected.due_in) < timedelta(minutes=5)


def _time(stamp: str | datetime) -> datetime:
    return stamp if isinstance(stamp, datetime) else datetime.fromisoformat(stamp)


@pytest.mark.scenario("work", "a kind that the worker's side does not know fails the attempt, with one text")
def test_a_kind_that_is_not_known_fails_the_attempt(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert("nobodys_kind")
    with taker.working(KIND, retry_seconds=HOUR) as client:
        client.events(1, kinds=["job_failed"])
    row = giver.get(job_id)
    assert (row["state"], row["attempt"]) == ("retryable", 1)
    assert [error["error"] for error in row["errors"]] == [
        "job kind is not registered in the client's Workers bundle: nobodys_kind"
    ]


@pytest.mark.scenario("work", "a job that discards itself is discarded for River too")
def test_a_job_that_discards_itself(river: Side, riverq_side: Side, adapter: str) -> None:
    """River's workers have no such outcome; its clients read the row."""
    job_id = river.insert(KIND, {"outcome": "discard", "message": "of no use"})
    with riverq_side.working(KIND) as client:
        client.events(1, job_id=job_id)
    row = river.get(job_id)
    assert (row["state"], row["attempt"], len(row["errors"])) == ("discarded", 1, 1)
    assert "of no use" in row["errors"][0]["error"]


@pytest.mark.scenario("work", "a job that completed itself in a transaction that was rolled back is not completed")
def test_a_completion_that_is_rolled_back(giver: Side, taker: Side, adapter: str, fleet: Place) -> None:
    """River then completes the job at the end of its worker all the same; riverq fails the attempt."""
    job_id = giver.insert(KIND, {"outcome": "complete_tx_rollback", "message": "m"})
    with taker.working(KIND, retry_seconds=HOUR) as client:
        client.events(1, job_id=job_id)
    row = giver.get(job_id)
    assert row["state"] == "retryable"
    assert fleet.scalars("SELECT count(*) FROM {schema}.river_job WHERE kind = 'side_effect'") == [0]


@pytest.mark.scenario("work", "an insert wakes the other side, whose poll is an hour away")
def test_an_insert_wakes_the_other_side(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, fetch_poll_seconds=3600) as client:
        client.until_woken_by(giver, KIND)
        job_id = giver.insert(KIND)
        client.events(1, kinds=["job_completed"], job_id=job_id)


@pytest.mark.scenario("work", "a transaction's insert wakes nobody before its commit, and nobody after a rollback")
def test_a_transactions_insert_is_heard_at_its_commit(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, fetch_poll_seconds=3600) as client:
        client.until_woken_by(giver, KIND)
        fleet.go("listen", name="ear")
        with giver.transaction() as tx:
            dropped = giver.insert(KIND, tx=tx, queue="nobodys")
            tx.rollback()
        with giver.transaction() as tx:
            job_id = giver.insert(KIND, tx=tx)
            assert fleet.scalars("SELECT count(*) FROM {schema}.river_job WHERE id = :id", id=job_id) == [0]
            assert fleet.go("heard", name="ear", count=0) == []
            assert client.events(job_id=job_id) == []
        client.events(1, job_id=job_id)
        heard = fleet.go("heard", name="ear", count=1)
        fleet.go("unlisten", name="ear")
    assert heard == [{"topic": "river_insert", "payload": '{"queue": "default"}'}]
    with pytest.raises(OracleError) as gone:
        giver.get(dropped)
    assert gone.value.kind == "not_found"


@pytest.mark.scenario("work", "a batch inserted fast wakes the other side and is worked whole")
def test_a_fast_batch(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, fetch_poll_seconds=3600, max_workers=50) as client:
        client.until_woken_by(giver, KIND)
        assert giver.insert_many(KIND, {"outcome": "complete"}, number=200) == 200
        until_settled(fleet)
    assert fleet.scalars("SELECT DISTINCT state::text FROM {schema}.river_job") == ["completed"]


@pytest.mark.scenario("work", "an insert from within a job of the other side")
def test_an_insert_from_within_a_job(giver: Side, taker: Side, adapter: str, fleet: Place) -> None:
    parent = giver.insert(KIND, {"outcome": "complete", "insert": {"kind": KIND, "args": "{}", "queue": "back"}})
    with taker.working(KIND) as client:
        client.events(1, job_id=parent)
    [child] = fleet.scalars("SELECT id FROM {schema}.river_job WHERE queue = 'back'")
    with giver.working(KIND, queue="back") as client:
        client.events(1, kinds=["job_completed"], job_id=child)


@pytest.mark.scenario("work", "attempts of both sides add up in one row, each one's errors read by the other")
def test_attempts_of_both_sides_add_up(giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, {"outcome": "error", "message": "m"}, max_attempts=3)
    ids = []
    for side in (giver, taker, giver):
        with side.working(KIND, retry_seconds=HOUR) as client:
            client.events(1, job_id=job_id)
        ids.append(client.id)
        if len(ids) < 3:
            taker.retry(job_id)
    row = taker.get(job_id)
    assert (row["state"], row["attempt"], row["attempted_by"]) == ("discarded", 3, ids)
    assert [error["attempt"] for error in row["errors"]] == [1, 2, 3]
    assert giver.get(job_id) == row


COMPETITION = 10_000


@pytest.mark.scenario("work", "ten thousand jobs for both at once: each is worked once")
def test_both_compete_for_ten_thousand_jobs(fleet: Place, river: Side, riverq_side: Side) -> None:
    river.insert_many(KIND, {"outcome": "complete"}, number=COMPETITION // 2)
    riverq_side.insert_many(KIND, {"outcome": "complete"}, number=COMPETITION // 2)
    how = {"max_workers": 50, "fetch_cooldown_seconds": 0.01, "fetch_poll_seconds": 0.05}
    with (
        river.working(KIND, **how) as goes,
        riverq_side.working(KIND, **how, riverq={"fetch_eager": False}) as ours,
    ):
        until_none(fleet, "state <> 'completed'", seconds=120)
        begun = {client.id: [mark["job_id"] for mark in client.marks(mark="began")] for client in (goes, ours)}
    by = Counter(
        fleet.scalars(
            "SELECT attempted_by[1] FROM {schema}.river_job WHERE attempt = 1 AND cardinality(attempted_by) = 1"
        )
    )
    assert set(by) == {goes.id, ours.id}
    assert sum(by.values()) == COMPETITION
    # What each client says that it worked is what the table says that it worked.
    assert {client: len(set(jobs)) for client, jobs in begun.items()} == by
    assert {client: len(jobs) for client, jobs in begun.items()} == by
