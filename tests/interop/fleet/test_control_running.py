"""Control of jobs that run: what is cancelled, retried or changed here while the other side works it.

A client's polls are an hour apart wherever a notification is to bring the news, so nothing else can have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.worker.producer import Producer
from tests.interop.fleet.controlling import (
    HOUR,
    KIND,
    MARK,
    Ear,
    blocked,
    cancel_payload,
    execute,
    insert_payload,
    until_it_hears,
)
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import PATIENCE, until, until_state

DEAF = {"fetch_poll_seconds": HOUR, "retry_seconds": HOUR}
"""Settings of a client that hears of nothing but by notifications."""

REMOTELY = "JobCancelError: job cancelled remotely"
WHY = {"river": REMOTELY, "riverq": "cancelled"}
"""What a worker sees as the reason: the cause of Go's context, `job.cancelled.reason`."""


def _check_cancelled(row: Row, client_id: str) -> None:
    assert (row["state"], row["attempt"], row["max_attempts"]) == ("cancelled", 1, 25)
    assert row["attempted_by"] == [client_id]
    assert list(row["metadata"]) == [MARK]
    assert row["finalized_at"] > row["attempted_at"]
    [error] = row["errors"]
    assert (error["attempt"], error["error"], error["trace"]) == (1, REMOTELY, "")


@pytest.mark.scenario("control", "cancel of a running job: its worker is told, and the row says so alike")
def test_cancel_of_a_running_job(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        until_it_hears(client, giver)
        job_id, other = giver.insert(KIND, {"outcome": "wait"}), giver.insert(KIND, {"outcome": "wait"})
        client.until_begun(job_id, other)
        ear = Ear(fleet)
        marked = giver.cancel(job_id)
        assert (marked["state"], marked["finalized_at"], list(marked["metadata"])) == ("running", None, [MARK])
        [event] = client.events(1, job_id=job_id)
        assert event["kind"] == "job_cancelled"
        [told] = client.marks(1, mark="cancelled")
        assert (told["job_id"], told["detail"]) == (job_id, WHY[taker.name])
        assert giver.get(other)["state"] == "running"
        assert ear.until_now() == [cancel_payload(job_id)]
        client.release()
    row = giver.get(job_id)
    _check_cancelled(row, client.id)
    assert row["metadata"] == marked["metadata"]
    assert event["job"] == row == taker.get(job_id)


@pytest.mark.scenario("control", "cancel of a running job in a transaction: at its commit, not after a rollback")
def test_cancel_of_a_running_job_in_a_transaction(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        until_it_hears(client, giver)
        job_id = giver.insert(KIND, {"outcome": "wait"})
        client.until_begun(job_id)
        with giver.transaction() as tx:
            giver.cancel(job_id, tx=tx)
            tx.rollback()
        with giver.transaction() as tx:
            giver.cancel(job_id, tx=tx)
            # What is sent later is heard later: had the client been told of the cancellation, then before this pause.
            paused = len(client.events(kinds=["queue_paused"]))
            taker.pause()
            client.events(paused + 1, kinds=["queue_paused"])
            assert client.marks(mark="cancelled") == []
            assert MARK not in taker.get(job_id)["metadata"]
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    _check_cancelled(giver.get(job_id), client.id)


@pytest.mark.scenario("control", "a job that ends well although it was cancelled is completed, and keeps the mark")
def test_a_cancelled_job_that_ends_well(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        until_it_hears(client, giver)
        job_id = giver.insert(KIND, {"outcome": "finish", "output": "done"})
        client.until_begun(job_id)
        giver.cancel(job_id)
        [event] = client.events(1, job_id=job_id)
    row = giver.get(job_id)
    assert (event["kind"], row["state"], row["errors"]) == ("job_completed", "completed", [])
    assert sorted(row["metadata"]) == [MARK, "output"]


@pytest.mark.scenario("control", "a client that only polls finds the cancellation by polling")
def test_cancel_is_found_by_polling(giver: Side, taker: Side) -> None:
    with taker.working(KIND, poll_only=True) as client:
        job_id = giver.insert(KIND, {"outcome": "wait"})
        client.until_begun(job_id)
        giver.cancel(job_id)
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    _check_cancelled(giver.get(job_id), client.id)


HELD = 7_412
"""The advisory lock behind which claims wait."""


@pytest.fixture
def held_claims(fleet: Place) -> Iterator[sa.Connection]:
    """Claims wait, before they are committed, until the test commits on this connection."""
    trigger = f"""
        CREATE FUNCTION {{schema}}.held() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared({HELD}); RETURN NEW; END $$;
        CREATE TRIGGER held BEFORE UPDATE ON {{schema}}.river_job FOR EACH ROW
        WHEN (NEW.state = 'running' AND OLD.state = 'available') EXECUTE FUNCTION {{schema}}.held()
    """
    execute(fleet, trigger)
    try:
        with fleet.engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({HELD})")
            yield connection
    finally:
        fleet.leave()
        execute(fleet, "DROP FUNCTION {schema}.held() CASCADE")


@pytest.mark.scenario("control", "cancel that waits for the claim to commit reaches the job that is just beginning")
def test_cancel_at_the_commit_of_the_claim(
    fleet: Place, held_claims: sa.Connection, giver: Side, taker: Side, adapter: str
) -> None:
    with taker.working(KIND, **DEAF) as client, ThreadPoolExecutor(1) as thread:
        until_it_hears(client, giver)
        job_id = giver.insert(KIND, {"outcome": "wait"})
        until(lambda: blocked(fleet) == 1, "the claim to wait")
        cancelling = thread.submit(giver.cancel, job_id)
        until(lambda: blocked(fleet) == 2, "the cancellation to wait for the claim")
        held_claims.commit()
        assert cancelling.result()["state"] == "running"
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    row = giver.get(job_id)
    assert (row["state"], row["attempt"], row["attempted_by"]) == ("cancelled", 1, [client.id])


@pytest.mark.scenario("control", "cancel that riverq hears between its claim and knowing the job is not lost")
def test_cancel_between_claim_and_registration(
    river: Side, riverq_side: Side, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Producer._claim
    cancelled: list[int] = []

    async def claim_and_cancel(producer: Producer, limit: int) -> Any:
        rows = await claim(producer, limit)
        for row in rows:
            await asyncio.to_thread(river.cancel, row.id)
            async with asyncio.timeout(PATIENCE):
                while row.id not in (producer.control._during_claim or ()):  # noqa: ASYNC110  # nothing else tells
                    await asyncio.sleep(0.01)
            cancelled.append(row.id)
        return rows

    with riverq_side.working(KIND, **DEAF) as client:
        until_it_hears(client, river)
        monkeypatch.setattr(Producer, "_claim", claim_and_cancel)
        job_id = river.insert(KIND, {"outcome": "wait"})
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    assert cancelled == [job_id]
    assert river.get(job_id)["state"] == "cancelled"


# -- retry


AGAIN = {"outcome": "wait", "acts": {"again": {"outcome": "error", "message": "once more"}}}
"""Is cancelled in its first run and fails in its second: with the mark still there it would be cancelled then too."""


@pytest.mark.scenario("control", "what was cancelled while it ran is retried by either side; its next run may fail")
def test_retry_of_what_was_cancelled_while_it_ran(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        until_it_hears(client, giver)
        jobs = [giver.insert(KIND, AGAIN) for _ in range(2)]
        client.until_begun(*jobs)
        for job_id in jobs:
            giver.cancel(job_id)
        client.events(2, kinds=["job_cancelled"])
    retried = [giver.retry(jobs[0]), taker.retry(jobs[1])]
    assert [row["metadata"] for row in retried] == [{}, {}]
    with taker.working(KIND, script="again", retry_seconds=HOUR) as client:
        client.events(2, kinds=["job_failed"])
    for job_id in jobs:
        row = giver.get(job_id)
        assert (row["state"], row["attempt"]) == ("retryable", 2)
        first, second = (error["error"] for error in row["errors"])
        assert first == REMOTELY
        assert second.endswith("once more")


@pytest.mark.scenario("control", "a mark that an older River left by its retry does not cancel riverq's next run")
def test_a_mark_that_was_left_by_a_retry(fleet: Place, river: Side, riverq_side: Side) -> None:
    """River before 0.51 retried without taking the mark away; a new cancellation is told from it all the same."""
    with riverq_side.working(KIND, poll_only=True, retry_seconds=HOUR) as client:
        job_id = river.insert(KIND, {"outcome": "wait"}, queue="later")
        left = river.cancel(job_id)["metadata"][MARK]
        river.retry(job_id)
        execute(
            fleet,
            """UPDATE {schema}.river_job SET metadata = jsonb_build_object('cancel_attempted_at', CAST(:left AS text)),
            queue = 'default' WHERE id = :id""",
            left=left,
            id=job_id,
        )
        client.until_begun(job_id)
        # The next poll has looked at the running jobs when it has found this one cancelled, which runs longer.
        other = river.insert(KIND, {"outcome": "wait"})
        client.until_begun(other)
        river.cancel(other)
        client.events(1, kinds=["job_cancelled"], job_id=other)
        assert client.marks(mark="cancelled", job_id=job_id) == []
        river.cancel(job_id)
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    assert river.get(job_id)["metadata"][MARK] > left


@pytest.mark.scenario("control", "riverq's retry wakes a Go client whose poll is an hour away")
def test_riverqs_retry_wakes_go(river: Side, riverq_side: Side, adapter: str) -> None:
    with river.working(KIND, **DEAF) as client:
        client.until_woken_by(riverq_side, KIND)
        job_id = river.insert(KIND, pending=True)
        with riverq_side.transaction() as tx:
            riverq_side.retry(job_id, tx=tx)
            assert client.events(job_id=job_id) == []
        client.events(1, kinds=["job_completed"], job_id=job_id)


@pytest.mark.scenario("control", "Go's retry notifies nobody; riverq finds the job by polling")
def test_gos_retry_is_found_by_polling(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    with riverq_side.working(KIND, fetch_poll_seconds=0.2) as client:
        until_it_hears(client, river)
        job_id = riverq_side.insert(KIND, pending=True)
        ear = Ear(fleet)
        river.retry(job_id)
        client.events(1, kinds=["job_completed"], job_id=job_id)
        assert insert_payload() not in ear.until_now()


# -- what else is done to a job that runs


@pytest.mark.scenario("control", "an output set from outside is seen at once, and lasts unless the job records its own")
def test_update_of_the_output_during_a_run(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        client.until_woken_by(giver, KIND)
        silent = giver.insert(
            KIND, {"outcome": "hold", "metadata": {"by": "the worker"}}, metadata={"by": "us", "n": 1}
        )
        telling = giver.insert(KIND, {"outcome": "hold", "output": "at the end"})
        client.until_begun(silent, telling)
        for job_id in (silent, telling):
            giver.update(job_id, output={"half": "way"})
            assert taker.get(job_id)["metadata"]["output"] == {"half": "way"}
        client.release()
        client.events(1, job_id=silent)
        client.events(1, job_id=telling)
    assert giver.get(silent)["metadata"] == {"by": "the worker", "n": 1, "output": {"half": "way"}}
    assert giver.get(telling)["metadata"] == {"output": "at the end"}


@pytest.mark.scenario("control", "a running job can be neither retried nor deleted by the other side, and goes on")
def test_a_running_job_is_left_alone(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND) as client:
        job_id = giver.insert(KIND, {"outcome": "wait"})
        client.until_begun(job_id)
        before = giver.get(job_id)
        assert giver.retry(job_id) == before
        with pytest.raises(OracleError) as caught:
            giver.delete(job_id)
        assert caught.value.kind == "running"
        assert giver.delete_many(ids=[job_id]) == []
        assert giver.get(job_id) == before
        client.release()
        client.events(1, kinds=["job_completed"], job_id=job_id)


@pytest.mark.scenario("control", "cancel reaches a job of riverq's while its client already stops")
def test_cancel_reaches_a_client_that_stops(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    """A Go client that stops hears nothing any more: its job goes on to its end."""
    client = riverq_side.start(KIND, **DEAF)
    until_it_hears(client, river)
    job_id = river.insert(KIND, {"outcome": "wait"})
    client.until_begun(job_id)
    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(client.stop)
        # The client works nothing any more when it leaves an insert alone that it hears of.
        until(lambda: _is_left_alone(river), "the client to stop fetching")
        river.cancel(job_id)
        of_it = [event["kind"] for event in stopping.result() if event.get("job", {}).get("id") == job_id]
        assert of_it == ["job_cancelled"]
    _check_cancelled(until_state(fleet, job_id, "cancelled") and river.get(job_id), client.id)


def _is_left_alone(side: Side) -> bool:
    job_id = side.insert(KIND)
    try:
        until(lambda: side.get(job_id)["state"] == "completed", "", seconds=0.5)
    except pytest.fail.Exception:
        return True
    return False
