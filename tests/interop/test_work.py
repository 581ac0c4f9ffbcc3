"""Jobs worked across the border: inserted by one side, worked by the other, and the row ends the same.

Every outcome is walked with all four pairs of inserter and worker; what the row must say is written down once.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest

import riverq
from tests.interop import neutral
from tests.interop.place import Place

KIND = "oracle_outcome"
SIDES = ("river", "riverq")
PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing is expected to take anywhere near as long."""


@riverq.job_args(KIND)
@dataclass
class Outcome:
    """The twin of `Outcome` in go/work.go: args that say how their job shall end."""

    outcome: str
    message: str = ""
    seconds: float = 0
    output: Any = None


@dataclass(frozen=True)
class AnHour:
    """A retry policy whose answer is the same on both sides."""

    def next_retry(self, job: riverq.JobRow, *, rng: Random) -> timedelta:
        return timedelta(hours=1)


class Working:
    """riverq's side of a test: a client, what its workers do, and the signs they give."""

    def __init__(self, place: Place, **config: Any) -> None:
        self.started = threading.Event()
        workers = riverq.Workers()
        workers.work()(self._outcome())
        self.client = riverq.Client(
            place.engine,
            riverq.Config(
                schema=place.schema,
                workers=workers,
                queues={"default": riverq.QueueConfig(max_workers=5)},
                retry_policy=AnHour(),
                **config,
            ),
        )

    def _outcome(self) -> Any:
        async def outcome(job: riverq.Job[Outcome]) -> None:
            self.started.set()
            args = job.args
            if args.output is not None:
                job.record_output(args.output)
            match args.outcome:
                case "error":
                    raise RuntimeError(args.message)
                case "snooze":
                    raise riverq.JobSnooze(timedelta(seconds=args.seconds))
                case "cancel":
                    raise riverq.JobCancel(args.message)
                case "wait":
                    await asyncio.Event().wait()  # until it is cancelled

        return outcome


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
def test_outcome(migrated: Place, name: str, inserter: str, worker: str) -> None:
    expected = OUTCOMES[name]
    job_id = _insert(migrated, inserter, expected.args, max_attempts=expected.max_attempts)
    client_id = _work(migrated, worker)
    row = neutral.of_river(migrated.go_row(job_id))
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


def test_errors_of_both_sides_stand_in_one_row(migrated: Place) -> None:
    """Attempts of different clients add up, and each reads the other's entries."""
    job_id = _insert(migrated, "riverq", {"outcome": "error", "message": "first"})
    by_river = _work(migrated, "river")
    migrated.go("job_retry", job_id=job_id)
    by_riverq = _work(migrated, "riverq")
    row = neutral.of_river(migrated.go_row(job_id))
    assert [error["attempt"] for error in row["errors"]] == [1, 2]
    assert row["attempted_by"] == [by_river, by_riverq]
    entries = [json.loads(text) for text in migrated.scalars("SELECT unnest(errors)::text FROM {schema}.river_job")]
    for entry in entries:
        assert set(entry) == {"at", "attempt", "error", "trace"}
        assert datetime.fromisoformat(entry["at"][:26].rstrip("Z") + "Z").tzinfo is not None


def test_river_is_woken_by_riverqs_insert(migrated: Place) -> None:
    """Its poll is an hour away: after its first look, only the notification can bring a job to it."""
    _insert(migrated, "riverq", {"outcome": "complete"})
    migrated.go("start", client="sleepy", kinds=[KIND], fetch_poll_seconds=3600)
    migrated.go("events", client="sleepy", count=1, seconds=PATIENCE)
    job_id = _insert(migrated, "riverq", {"outcome": "complete"})
    event = migrated.go("events", client="sleepy", count=2, seconds=PATIENCE)[-1]
    migrated.go("stop", client="sleepy")
    assert (event["kind"], event["job"]["id"]) == ("job_completed", job_id)


def test_riverq_is_woken_by_rivers_insert(migrated: Place) -> None:
    working = Working(migrated, fetch_poll_interval=timedelta(hours=1))
    first = _insert(migrated, "river", {"outcome": "complete"})
    with working.client.running():
        _until_settled(migrated, first)
        working.started.clear()
        second = _insert(migrated, "river", {"outcome": "complete"})
        assert working.started.wait(PATIENCE)
        _until_settled(migrated, second)


def test_river_cancels_what_riverq_runs(migrated: Place) -> None:
    working = Working(migrated)
    job_id = _insert(migrated, "river", {"outcome": "wait"})
    with working.client.running():
        assert working.started.wait(PATIENCE)
        told = migrated.go("job_cancel", job_id=job_id)
        assert told["state"] == "running"
        _until_settled(migrated, job_id)
    row = neutral.of_river(migrated.go_row(job_id))
    assert (row["state"], row["attempt"]) == ("cancelled", 1)
    assert [error["error"] for error in row["errors"]] == ["JobCancelError: job cancelled remotely"]


def test_jobs_that_a_stop_cancels_go_to_the_other_side(migrated: Place) -> None:
    """Interrupted by one client, the job is at once another's, and the attempt does not count."""
    working = Working(migrated)
    job_id = _insert(migrated, "river", {"outcome": "wait"})
    working.client.start()
    assert working.started.wait(PATIENCE)
    working.client.stop_and_cancel()
    row = neutral.of_river(migrated.go_row(job_id))
    assert (row["state"], row["attempt"], row["errors"]) == ("available", 0, [])

    migrated.go("start", client="heir", kinds=[KIND])
    _until(migrated, job_id, "running")
    told = migrated.go("stop", client="heir", cancel=True)
    assert [event["kind"] for event in told] == ["job_interrupted"]
    row = neutral.of_river(migrated.go_row(job_id))
    assert (row["state"], row["attempt"], row["errors"], len(row["attempted_by"])) == ("available", 0, [], 2)


def test_both_share_a_queue_without_sharing_a_job(migrated: Place) -> None:
    """Two hundred jobs, one client of each kind at once: every job is completed once, by one of them."""
    working = Working(migrated)
    migrated.go("insert", jobs=[{"kind": KIND, "args": '{"outcome": "complete"}'} for _ in range(200)])
    migrated.go("start", client="peer", kinds=[KIND], fetch_poll_seconds=0.1)
    with working.client.running():
        _until_none(migrated, "state <> 'completed'")
    migrated.go("stop", client="peer")
    assert migrated.scalars(
        "SELECT count(*) FROM {schema}.river_job WHERE attempt = 1 AND cardinality(attempted_by) = 1"
    ) == [200]


def _insert(place: Place, side: str, args: dict[str, Any], **options: Any) -> int:
    if side == "river":
        job_id: int = place.go_insert(KIND, args, **options)["id"]
        return job_id
    client = riverq.Client(place.engine, riverq.Config(schema=place.schema))
    return client.insert(riverq.RawArgs(KIND, args), **options).job.id


def _work(place: Place, side: str) -> str:
    """Let one side work what is there, once; its client id."""
    if side == "river":
        client_id: str = place.go("start", client="worker", kinds=[KIND], retry_seconds=3600)
        place.go("events", client="worker", count=1, seconds=PATIENCE)
        place.go("stop", client="worker")
        return client_id
    working = Working(place)
    with working.client.running():
        _until_none(place, "state IN ('available', 'running')")
    return working.client.id


def _until_settled(place: Place, job_id: int) -> None:
    _until_none(place, f"id = {job_id} AND state IN ('available', 'running')")


def _until(place: Place, job_id: int, state: str) -> None:
    _until_none(place, f"id = {job_id} AND state <> '{state}'")


def _until_none(place: Place, condition: str) -> None:
    """Look until no row is so. Another process's client gives no sign that a test could wait for, so this one asks."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if not place.scalars(f"SELECT id FROM {{schema}}.river_job WHERE {condition} LIMIT 1"):
            return
        pause.wait(0.02)
    rows = place.scalars(f"SELECT to_jsonb(j) FROM {{schema}}.river_job j WHERE {condition}")
    pytest.fail(f"still so after {PATIENCE:g} s: {condition}: {rows}")
