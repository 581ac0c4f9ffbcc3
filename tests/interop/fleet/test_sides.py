"""The two sides have one face: what a scenario is told is the same, whichever side it asks."""

from __future__ import annotations

import pytest

from tests.interop.conftest import ProcessMaker
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Side
from tests.interop.waiting import until, until_leader, until_none, until_settled, until_state

KIND = "oracle_outcome"


@pytest.mark.scenario("the frame", "a job is handed over, and both tell the same of it")
def test_a_job_is_handed_over(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    job_id = giver.insert(KIND, {"output": {"n": 1}, "metadata": {"a": [1]}}, tags=["abc"])
    with taker.working(KIND) as client:
        [event] = client.events(1)
        assert [mark["mark"] for mark in client.marks(2, job_id=job_id)] == ["began", "ended"]
    assert (event["kind"], event["job"]["id"], event["job"]["state"]) == ("job_completed", job_id, "completed")
    row = giver.get(job_id)
    assert row == taker.get(job_id)
    assert (row["state"], row["metadata"], row["attempted_by"]) == (
        "completed",
        {"output": {"n": 1}, "a": [1]},
        [client.id],
    )


@pytest.mark.scenario("the frame", "an open transaction shows nothing to the other side")
def test_a_transaction_shows_nothing(giver: Side, taker: Side, adapter: str) -> None:
    with giver.transaction() as tx:
        job_id = giver.insert(KIND, tx=tx)
        with pytest.raises(OracleError) as caught:
            taker.cancel(job_id)
        assert caught.value.kind == "not_found"
    assert taker.cancel(job_id)["state"] == "cancelled"
    with giver.transaction() as tx:
        giver.retry(job_id, tx=tx)
        tx.rollback()
    assert taker.get(job_id)["state"] == "cancelled"


@pytest.mark.scenario("the frame", "a killed process leaves its job running")
def test_a_killed_process_leaves_its_job(
    fleet: Place, giver: Side, taker: Side, adapter: str, process_of: ProcessMaker
) -> None:
    dying = process_of(taker.name)
    client = dying.start(KIND)
    job_id = giver.insert(KIND, {"outcome": "hold"})
    client.until_begun(job_id)
    until_leader(fleet, client.id)
    dying.process.kill()
    assert giver.get(job_id)["state"] == "running"


def test_waiting_sees_the_other_process(fleet: Place, river: Side, riverq_side: Side) -> None:
    first, second = river.insert(KIND, {"outcome": "error", "message": "m"}), riverq_side.insert(KIND)
    with river.working(KIND, retry_seconds=3600):
        until_settled(fleet, first, second)
    assert until_state(fleet, first, "retryable")["attempt"] == 1


# -- each setting and operation of the table once, on both sides: no scenario can be trusted where its tool does nothing


@pytest.fixture(params=["river", "riverq"])
def side(request: pytest.FixtureRequest, river: Side, riverq_side: Side) -> Side:
    """Either side."""
    return river if request.param == "river" else riverq_side


def test_verbs_on_jobs(fleet: Place, side: Side) -> None:
    ids = [side.insert(KIND, queue="q", priority=number, tags=["tag"], metadata={"n": number}) for number in (1, 2, 3)]
    page = side.list(queues=["q"], tags_all=["tag"], order_by="id", descending=True, limit=2)
    assert page.ids == ids[:0:-1]
    assert page.cursor is not None
    assert side.call("cursor_check", after=page.cursor) is True
    assert side.list(queues=["q"], order_by="id", descending=True, after=page.cursor).ids == ids[:1]
    assert side.list(order_by="id", after_job=ids[1]).ids == ids[2:]
    assert side.list(metadata='{"n": 2}').ids == [ids[1]]
    with pytest.raises(OracleError):
        side.call("cursor_check", after="nonsense")
    assert side.cancel(ids[0])["state"] == "cancelled"
    assert side.retry(ids[0])["state"] == "available"
    assert side.update(ids[0], output=[1])["metadata"] == {"n": 1, "output": [1]}
    assert side.delete(ids[0])["id"] == ids[0]
    assert [row["id"] for row in side.delete_many(queues=["q"], limit=1)] == ids[1:2]
    assert [row["id"] for row in side.delete_many(unsafe_all=True)] == ids[2:]
    with pytest.raises(OracleError) as caught:
        side.get(ids[0])
    assert caught.value.kind == "not_found"
    assert side.insert_many(KIND, number=5) == 5
    with side.working(KIND) as client:
        running = side.insert(KIND, {"outcome": "wait"})
        client.until_begun(running)
        with pytest.raises(OracleError) as caught:
            side.delete(running)
        assert caught.value.kind == "running"
        client.release()


def test_queues_and_what_is_heard_of_them(fleet: Place, side: Side) -> None:
    fleet.go("listen", name="ear")
    with side.working(KIND, queues={"first": 1}) as client:
        client.queue_add("second", 2)
        until(lambda: len(side.queues()) == 2, "both queues to be there")
        assert side.queue_update("second", metadata={"a": 1})["metadata"] == {"a": 1}
        side.pause("first")
        client.events(1, kinds=["queue_paused"])
        assert side.queue("first")["paused_at"] is not None
        side.resume("first")
        client.events(1, kinds=["queue_resumed"])
        client.queue_remove("second")
        job_id = side.insert(KIND, queue="first")
        client.events(1, job_id=job_id)
        with side.transaction() as tx:
            side.request_resign(tx=tx)
    with pytest.raises(OracleError) as caught:
        side.pause("never_worked")
    assert caught.value.kind == "not_found"

    def is_heard() -> bool:
        return any("request_resign" in entry["payload"] for entry in fleet.go("heard", name="ear", count=0))

    # It was sent after the others, and what is sent later is heard later.
    until(is_heard, "the request to resign to be heard")
    heard = fleet.go("unlisten", name="ear")
    assert {"topic": "river_control", "payload": '{"action":"pause","queue":"first"}'} in heard
    assert {entry["topic"] for entry in heard} == {"river_control", "river_insert", "river_leadership"}


def test_settings_of_a_client_that_works(fleet: Place, side: Side) -> None:
    failing = side.insert("new_kind", {"outcome": "error", "message": "no"})
    old = side.insert("old_kind", {"acts": {"second": {"output": 2}}})
    unknown = side.insert("unknown_kind")
    settings = {
        "aliases": {"new_kind": ["old_kind"]},
        "client_id": "settings",
        "job_timeout_seconds": 5,
        "on_error": "cancel",
        "only_known_kinds": True,
        "periodic": [{"id": "first", "run_on_start": True, "job": {"kind": "new_kind", "queue": "periodic"}}],
        "queues": {"default": 1, "periodic": 1},
        "retention_seconds": {"completed": 60},
        "script": "second",
    }
    with side.working("new_kind", **settings) as client:
        client.events(1, kinds=["job_cancelled"], job_id=failing)
        [mark] = client.marks(1, mark="error_handled")
        client.events(1, kinds=["job_completed"], job_id=old)
        until_none(fleet, "queue = 'periodic' AND state <> 'completed'")
        until(lambda: side.list(queues=["periodic"]).ids, "the periodic job")
        client.periodic_add({"id": "later", "run_on_start": True, "job": {"kind": "new_kind", "tags": ["later"]}})
        until(lambda: side.list(tags_any=["later"]).ids, "the periodic job that was added")
        assert client.periodic_remove("later") is True
    assert client.id == "settings"
    assert (mark["job_id"], mark["detail"]) == (failing, "no")
    assert side.get(old)["metadata"]["output"] == 2
    assert side.get(unknown)["state"] == "available"


def test_what_jobs_do(fleet: Place, side: Side) -> None:
    inserting = side.insert(KIND, {"insert": {"kind": "inserted", "pending": True}})
    completing = side.insert(KIND, {"outcome": "complete_tx", "message": "too late"})
    undoing = side.insert(KIND, {"outcome": "complete_tx_rollback", "message": "undone"})
    panicking = side.insert(KIND, {"outcome": "panic", "message": "at the disco"})
    timing_out = side.insert(KIND, {"outcome": "sleep", "seconds": 60}, queue="hasty")
    finishing = side.insert(KIND, {"outcome": "finish"}, queue="hasty")
    with (
        side.working(KIND, retry_seconds=3600, on_error="note") as client,
        side.working(KIND, queue="hasty", job_timeout_seconds=2, retry_seconds=3600) as hasty,
    ):
        client.events(4)
        hasty.events(2)
        [mark] = client.marks(1, mark="panic_handled")
        assert mark["job_id"] == panicking
        [cancelled] = hasty.marks(1, mark="cancelled")
        assert cancelled["job_id"] == finishing
    states = {row["id"]: row["state"] for row in side.list().jobs}
    assert [states[job_id] for job_id in (inserting, completing, undoing, panicking, timing_out)] == [
        "completed",
        "completed",
        "retryable",
        "retryable",
        "retryable",
    ]
    assert [row["state"] for row in side.list(kinds=["inserted", "side_effect"]).jobs] == ["pending"] * 2


@pytest.mark.scenario("the frame", "steps are begun by one side and gone on with by the other")
def test_steps(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    save_and_fail = {"set_cursor": {"at": 2**60}, "tx": "commit", "outcome": "error", "message": "half way"}
    steps = [
        {"name": "first", "acts": {"begin": {"tx": "commit"}}},
        {"name": "second", "cursor": True, "acts": {"begin": save_and_fail, "go on": {"set_cursor": 7}}},
        {"name": "third", "acts": {"go on": {"tx": "rollback"}}},
    ]
    job_id = taker.insert(KIND, {"steps": steps})
    with giver.working(KIND, script="begin", retry_seconds=3600) as client:
        client.events(1, kinds=["job_failed"])
        begun = [mark["detail"] for mark in client.marks(2, mark="step")]
    taker.retry(job_id)
    with taker.working(KIND, script="go on") as client:
        client.events(1, kinds=["job_completed"])
        went_on = [mark["detail"] for mark in client.marks(2, mark="step")]
    assert begun == [{"name": "first"}, {"name": "second", "cursor": None}]
    assert went_on == [{"name": "second", "cursor": {"at": 2**60}}, {"name": "third"}]


def test_soft_stop_that_is_made_hard(side: Side) -> None:
    client = side.start(KIND)
    job_id = side.insert(KIND, {"outcome": "wait"})
    client.until_begun(job_id)
    with pytest.raises(OracleError):
        client.stop(seconds=0.2)  # it is the wait that ends; stopping goes on
    assert [event["kind"] for event in client.stop(cancel=True)] == ["job_interrupted"]
    assert side.get(job_id)["state"] == "available"


def test_what_a_test_leaves_is_ended(fleet: Place, side: Side) -> None:
    """The fixtures end it: the leak checks find nothing."""
    side.start(KIND)
    side.call("tx_begin", tx="left")
    side.insert(KIND, tx="left")
    fleet.go("listen", name="left")
