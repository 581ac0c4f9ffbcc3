"""What either side may do to a job that the other inserted or works: cancel, retry, delete, update.

Both sides do the same to a job of their own in each state, and what they changed is compared, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.interop.fleet.controlling import (
    HOUR,
    KIND,
    MARK,
    NOW,
    Ear,
    blocked,
    cancel_payload,
    changes,
    insert_payload,
    jobs_in_every_state,
)
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import until

CANCELLED = {"state": "cancelled", "finalized_at": NOW, "metadata": {MARK: NOW}}
CANCEL: dict[str, dict[str, Any]] = {
    "available": CANCELLED,
    "not due": CANCELLED,
    "scheduled": CANCELLED,
    "pending": CANCELLED,
    "retryable": CANCELLED,
    "running": {"metadata": {MARK: NOW}},
    "completed": {},
    "cancelled": {},
    "discarded": {},
}
AVAILABLE = {"state": "available", "scheduled_at": NOW}
REVIVED = AVAILABLE | {"finalized_at": None}
RETRY: dict[str, dict[str, Any]] = {
    "available": {},
    "not due": {"scheduled_at": NOW},
    "scheduled": AVAILABLE,
    "pending": AVAILABLE,
    "retryable": AVAILABLE,
    "running": {},
    "completed": REVIVED | {"max_attempts": 2},
    "cancelled": REVIVED | {"metadata": {}},
    "discarded": REVIVED | {"max_attempts": 2},
}


def _performed(verb: str, doer: Side, reader: Side, job_id: int, **given: Any) -> dict[str, Any]:
    """What a verb changed on a job; its answer is the row that the other side reads afterwards."""
    before = reader.get(job_id)
    answer: Row = getattr(doer, verb)(job_id, **given)
    assert reader.get(job_id) == answer
    return changes(before, answer)


@contextmanager
def _jobs_of_both(fleet: Place, river: Side, riverq_side: Side) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """A job in every state that River brought there, and one that riverq did."""
    with (
        jobs_in_every_state(fleet, river, queue="go") as gos,
        jobs_in_every_state(fleet, riverq_side, queue="py") as ours,
    ):
        yield {state: ids[0] for state, ids in gos.items()}, {state: ids[0] for state, ids in ours.items()}


@pytest.mark.scenario("control", "cancel, in every state: both change the same and send the same bytes")
def test_cancel_in_every_state(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    with _jobs_of_both(fleet, river, riverq_side) as (gos, ours):
        ear = Ear(fleet)
        assert {state: _performed("cancel", river, riverq_side, job_id) for state, job_id in ours.items()} == CANCEL
        assert {state: _performed("cancel", riverq_side, river, job_id) for state, job_id in gos.items()} == CANCEL
        worked = {"py": ours, "go": gos}
        assert ear.until_now() == [
            cancel_payload(jobs[state], queue) for queue, jobs in worked.items() for state in jobs if CANCEL[state]
        ]


@pytest.mark.scenario("control", "retry, in every state: both change the same; only riverq notifies")
def test_retry_in_every_state(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    with _jobs_of_both(fleet, river, riverq_side) as (gos, ours):
        ear = Ear(fleet)
        assert {state: _performed("retry", river, riverq_side, job_id) for state, job_id in ours.items()} == RETRY
        assert ear.until_now() == []
        assert {state: _performed("retry", riverq_side, river, job_id) for state, job_id in gos.items()} == RETRY
        assert ear.until_now() == [insert_payload("go")] * sum(map(bool, RETRY.values()))


@pytest.mark.scenario("control", "delete, in every state: a running job is refused, the rest gone for both")
def test_delete_in_every_state(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    with _jobs_of_both(fleet, river, riverq_side) as (gos, ours):
        ear = Ear(fleet)
        for doer, reader, jobs in ((river, riverq_side, ours), (riverq_side, river, gos)):
            running = jobs.pop("running")
            for job_id in jobs.values():
                before = reader.get(job_id)
                assert doer.delete(job_id) == before
                assert _refusal(reader, "get", job_id) == "not_found"
            before = reader.get(running)
            assert _refusal(doer, "delete", running) == "running"
            assert reader.get(running) == before
        assert ear.until_now() == []


OUTPUTS: list[Any] = [{"n": [1, None, 2**60], "t": "é<&>\u2028"}, "text", None, 1.5]


@pytest.mark.scenario("control", "update of the output, in every state, running too: only the output changes")
def test_update_in_every_state(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    with _jobs_of_both(fleet, river, riverq_side) as (gos, ours):
        ear = Ear(fleet)
        for doer, reader, jobs in ((river, riverq_side, ours), (riverq_side, river, gos)):
            for output in OUTPUTS:
                for job_id in jobs.values():
                    metadata = doer.get(job_id)["metadata"] | {"output": output}
                    assert _performed("update", doer, reader, job_id, output=output) == {"metadata": metadata}
            # Without an output it only reads.
            assert [_performed("update", doer, reader, job_id) for job_id in jobs.values()] == [{}] * len(jobs)
        assert ear.until_now() == []


def _refusal(side: Side, verb: str, *what: Any, **options: Any) -> str:
    with pytest.raises(OracleError) as caught:
        getattr(side, verb)(*what, **options)
    return caught.value.kind


@pytest.mark.scenario("control", "verbs on a job that is not there: not found, and the transaction goes on")
def test_not_found(river: Side, riverq_side: Side, adapter: str) -> None:
    for side in (river, riverq_side):
        with side.transaction() as tx:
            verbs = ("get", "cancel", "retry", "delete", "update")
            assert [_refusal(side, verb, 2**62, tx=tx) for verb in verbs] == ["not_found"] * 5
            job_id = side.insert(KIND, tx=tx)
        assert side.get(job_id)["state"] == "available"


@pytest.mark.scenario("control", "delete of many: the same jobs go, running ones and those that are locked stay")
def test_delete_many(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with jobs_in_every_state(fleet, taker, copies=4) as jobs:
        for state in ("completed", "retryable", "cancelled"):
            both = [giver.delete_many(ids=jobs[state][:1]), taker.delete_many(ids=jobs[state][1:2])]
            assert [[row["id"] for row in rows] for rows in both] == [jobs[state][:1], jobs[state][1:2]]
            assert giver.list(ids=jobs[state]).ids == taker.list(ids=jobs[state]).ids == jobs[state][2:]
        with taker.transaction() as tx:
            taker.update(jobs["pending"][0], output="locked", tx=tx)
            gone = giver.delete_many(states=["pending", "running", "discarded"], kinds=[KIND], limit=6)
        assert [row["id"] for row in gone] == sorted(jobs["discarded"] + jobs["pending"][1:])[:6]
        assert _refusal(giver, "delete_many") == _refusal(taker, "delete_many") == ""
        left = giver.list(limit=100).jobs
        assert giver.delete_many(unsafe_all=True) == [row for row in left if row["state"] != "running"]
        assert taker.list().ids == jobs["running"]


@pytest.mark.scenario("control", "verbs in a transaction: nothing before its commit, nothing after a rollback")
def test_verbs_in_a_transaction(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with jobs_in_every_state(fleet, taker) as jobs:
        cancelled, retried, deleted = jobs["pending"][0], jobs["completed"][0], jobs["discarded"][0]
        updated, marked = jobs["scheduled"][0], jobs["running"][0]
        before = taker.list().jobs
        ear = Ear(fleet)
        for commit in (False, True):
            with giver.transaction() as tx:
                assert giver.cancel(cancelled, tx=tx)["state"] == "cancelled"
                assert MARK in giver.cancel(marked, tx=tx)["metadata"]
                assert giver.retry(retried, tx=tx)["state"] == "available"
                giver.delete(deleted, tx=tx)
                giver.update(updated, output=1, tx=tx)
                giver.pause("default", tx=tx)
                assert giver.get(updated, tx=tx)["metadata"] == {"output": 1}
                assert taker.list().jobs == before
                assert taker.queue()["paused_at"] is None
                if not commit:
                    tx.rollback()
            if not commit:
                assert taker.list().jobs == before
                assert ear.until_now() == []
        assert [each for each in ear.until_now() if each != insert_payload()] == [
            cancel_payload(cancelled),
            cancel_payload(marked),
            ("river_control", '{"action":"pause","queue":"default"}'),
        ]
        after = {row["id"]: row["state"] for row in taker.list().jobs}
        assert (after[cancelled], after[marked], after[retried]) == ("cancelled", "running", "available")
        assert deleted not in after


@pytest.mark.scenario("control", "both sides cancel one job at once: the second waits, and changes nothing")
def test_two_cancel_at_once(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND)
    with ThreadPoolExecutor(1) as thread:
        with giver.transaction() as tx:
            first = giver.cancel(job_id, tx=tx)
            second = thread.submit(taker.cancel, job_id)
            until(lambda: blocked(fleet), "the second to wait for the first")
        assert second.result() == first
    assert giver.get(job_id) == first


@pytest.mark.scenario("control", "both sides retry one job at once: the second waits, and changes nothing")
def test_two_retry_at_once(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND)
    giver.cancel(job_id)
    with ThreadPoolExecutor(1) as thread:
        with giver.transaction() as tx:
            first = giver.retry(job_id, tx=tx)
            second = thread.submit(taker.retry, job_id)
            until(lambda: blocked(fleet), "the second to wait for the first")
        assert second.result() == first
    assert giver.get(job_id) == first


UNIQUE: dict[str, Any] = {"by_args": True, "by_state": ["available", "pending", "running", "scheduled"]}


@pytest.mark.scenario("control", "a retry whose unique key another job has taken is refused by both")
def test_retry_of_a_job_whose_key_is_taken(giver: Side, taker: Side, adapter: str, riverq_side: Side) -> None:
    old = giver.insert(KIND, {"message": "same"}, unique=UNIQUE)
    taker.cancel(old)
    new = taker.insert(KIND, {"message": "same"}, unique=UNIQUE)
    assert new != old
    before = giver.get(old)
    with riverq_side.transaction() as tx:
        assert _refusal(riverq_side, "retry", old, tx=tx) == "conflict"
        # riverq's refusal leaves the transaction as it was.
        riverq_side.update(new, output="still here", tx=tx)
    for side in (giver, taker):
        with pytest.raises(OracleError) as refused:
            side.retry(old)
        assert refused.value.kind == "conflict"
    assert taker.get(old) == before
    assert giver.get(new)["metadata"] == {"output": "still here"}
    giver.delete(new)
    assert taker.retry(old)["state"] == "available"


@pytest.mark.scenario("control", "a cancel that would take another job's key: Go refuses, riverq gives up the key")
def test_cancel_of_a_job_whose_key_is_taken(giver: Side, river: Side, riverq_side: Side, adapter: str) -> None:
    """A retryable job whose mask holds `cancelled`, but not `retryable`."""
    unique = {**UNIQUE, "by_state": [*UNIQUE["by_state"], "cancelled"]}
    args = {"outcome": "error", "message": "same"}
    old = giver.insert(KIND, args, unique=unique)
    with giver.working(KIND, retry_seconds=HOUR) as client:
        client.events(1, kinds=["job_failed"])
    new = giver.insert(KIND, args, unique=unique)
    assert new != old
    before = river.get(old)
    with pytest.raises(OracleError, match="23505"):
        river.cancel(old)
    assert riverq_side.get(old) == before
    assert _performed("cancel", riverq_side, river, old) == CANCELLED | {"unique_states": None}
    # The key is the other job's, for both.
    for side in (river, riverq_side):
        [again] = side.insert_rows([{"kind": KIND, "args": args, "unique": unique}])
        assert (again["unique_skipped_as_duplicate"], again["job"]["id"]) == (True, new)
