"""Queues: paused and resumed here, obeyed there; their metadata; queues that come and go while a client runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

import riverq
from tests.interop.fleet.controlling import HOUR, KIND, NOW, Ear, changes, until_it_hears
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Side, Working
from tests.interop.waiting import until

DEAF = {"fetch_poll_seconds": HOUR, "fetch_cooldown_seconds": 0.01}
"""Settings of a client that hears of nothing but by notifications. No fetch is put off until after a resume."""

PAUSED = {"paused_at": NOW, "updated_at": NOW}
RESUMED = {"paused_at": None, "updated_at": NOW}


def _paused(client: Working) -> list[tuple[str, str]]:
    """What the client told of its queues so far."""
    kinds = ["queue_paused", "queue_resumed"]
    return [(event["kind"].removeprefix("queue_"), event["queue"]) for event in client.events(kinds=kinds)]


def _until_told(client: Working, *told: tuple[str, str]) -> None:
    """Wait until this is the last that the client told of its queues."""
    until(lambda: _paused(client)[-len(told) :] == list(told), f"the client to tell {told}")


def _control(action: str, queue: str) -> tuple[str, str]:
    return ("river_control", f'{{"action":"{action}","queue":"{queue}"}}')


@pytest.mark.scenario("control", "pause of a queue: no job begins, running ones go on, another queue is worked")
def test_pause_and_resume(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, queues={"one": 3, "other": 3}, **DEAF) as client:
        client.until_woken_by(giver, KIND, queue="other")
        until_it_hears(client, giver, "one")
        running, cancelled = (giver.insert(KIND, {"outcome": how}, queue="one") for how in ("hold", "wait"))
        client.until_begun(running, cancelled)
        giver.pause("one")
        _until_told(client, ("paused", "one"))
        waiting, elsewhere = giver.insert(KIND, queue="one"), giver.insert(KIND, queue="other")
        client.events(1, job_id=elsewhere)
        giver.cancel(cancelled)
        client.events(1, kinds=["job_cancelled"], job_id=cancelled)
        client.release()
        client.events(1, kinds=["job_completed"], job_id=running)
        assert giver.get(waiting)["state"] == "available"
        giver.resume("one")
        client.events(1, kinds=["job_completed"], job_id=waiting)
        _until_told(client, ("paused", "one"), ("resumed", "one"))


@pytest.mark.scenario("control", "pause of all queues is obeyed by a Go and a riverq client at once")
def test_pause_of_all(giver: Side, river: Side, riverq_side: Side, adapter: str) -> None:
    with (
        river.working(KIND, queues={"go_1": 1, "go_2": 1}, **DEAF) as goes,
        riverq_side.working(KIND, queues={"py_1": 1, "py_2": 1}, **DEAF) as ours,
    ):
        worked = {"go_1": goes, "go_2": goes, "py_1": ours, "py_2": ours}
        for queue, client in worked.items():
            until_it_hears(client, giver, queue)
        giver.pause("*")
        for client in (goes, ours):
            until(partial(_are_both, client, worked, "paused"), "both queues to be paused")
        jobs = {giver.insert(KIND, queue=queue): client for queue, client in worked.items()}
        assert [queue["paused_at"] is None for queue in giver.queues()] == [False] * 4
        giver.resume("*")
        for job_id, client in jobs.items():
            client.events(1, kinds=["job_completed"], job_id=job_id)
        for client in (goes, ours):
            until(partial(_are_both, client, worked, "resumed"), "both queues to be resumed")


def _are_both(client: Working, worked: dict[str, Working], how: str) -> bool:
    """Whether this was the last word on both queues that the client works."""
    last = {queue: action for action, queue in _paused(client)}
    return last == {queue: how for queue, worker in worked.items() if worker is client}


@pytest.mark.scenario("control", "pause and resume change the queue's row alike, and send the same bytes")
def test_rows_of_paused_queues(fleet: Place, giver: Side, river: Side, riverq_side: Side, adapter: str) -> None:
    _make_queues(giver, "one", "two", "a_b-c")
    sides = {"one": (river, riverq_side), "two": (riverq_side, river)}
    ear = Ear(fleet)
    for queue, (doer, reader) in sides.items():
        assert _changed(doer.pause, reader, queue) == PAUSED
        assert _changed(doer.pause, reader, queue) == {}
        assert _changed(reader.pause, doer, queue) == {}
        assert _changed(reader.resume, doer, queue) == RESUMED
        assert _changed(reader.resume, doer, queue) == {}
        expected = [_control(action, queue) for action in ("pause",) * 3 + ("resume",) * 2]
        assert ear.until_now() == expected
    for doer, reader in sides.values():
        river.pause("two")
        ear.until_now()
        before = {queue["name"]: queue for queue in reader.queues()}
        doer.pause("*")
        after = {queue["name"]: queue for queue in reader.queues()}
        told = {name: changes(before[name], row) for name, row in after.items()}
        assert told == {"a_b-c": PAUSED, "one": PAUSED, "two": {}}
        doer.resume("*")
        assert [queue["paused_at"] for queue in reader.queues()] == [None] * 3
        assert ear.until_now() == [_control("pause", "*"), _control("resume", "*")]


def _changed(verb: Callable[[str], Any], reader: Side, queue: str) -> dict[str, Any]:
    before = reader.queue(queue)
    verb(queue)
    return changes(before, reader.queue(queue))


def _make_queues(side: Side, *names: str) -> None:
    """Rows of queues that nobody works any more."""
    with side.working(KIND, queues=dict.fromkeys(names, 1), no_leader=True):
        until(lambda: len(side.queues()) == len(names), "the queues to be there")


@pytest.mark.scenario("control", "queues that either side began to work look alike, and are listed alike")
def test_rows_of_queues(river: Side, riverq_side: Side, adapter: str) -> None:
    _make_queues(river, "b", "go_queue")
    with riverq_side.working(KIND, queues={"a": 1, "b": 1, "py-queue": 1}):
        listed = river.queues()
    assert [queue["name"] for queue in listed] == ["a", "b", "go_queue", "py-queue"]
    assert riverq_side.queues() == listed
    assert riverq_side.queues(limit=3) == river.queues(limit=3) == listed[:3]
    for queue in listed:
        assert river.queue(queue["name"]) == riverq_side.queue(queue["name"]) == queue
        assert (queue["metadata"], queue["paused_at"]) == ({}, None)
        # Go names both times itself, riverq leaves them to the database; being worked again changes only the second.
        assert (queue["created_at"] == queue["updated_at"]) == (queue["name"] != "b")


@pytest.mark.scenario("control", "pause in a transaction: obeyed at its commit, not before, and not after a rollback")
def test_pause_in_a_transaction(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, queues={"one": 1, "other": 1}, **DEAF) as client:
        for queue in ("one", "other"):
            until_it_hears(client, giver, queue)
        before = [told for told in _paused(client) if told[1] == "one"]
        with giver.transaction() as tx:
            giver.pause("one", tx=tx)
            tx.rollback()
        with giver.transaction() as tx:
            giver.pause("one", tx=tx)
            # What is sent later is heard later: had the client been told of the first pause, then before this one.
            taker.pause("other")
            _until_told(client, ("paused", "other"))
            assert [told for told in _paused(client) if told[1] == "one"] == before
        _until_told(client, ("paused", "one"))


@pytest.mark.scenario("control", "a client that starts on a paused queue begins no job there until it is resumed")
def test_start_on_a_paused_queue(giver: Side, taker: Side, adapter: str) -> None:
    _make_queues(giver, "one", "other")
    giver.pause("one")
    waiting = giver.insert(KIND, queue="one")
    with taker.working(KIND, queues={"one": 1, "other": 1}, fetch_poll_seconds=0.1) as client:
        for _ in range(3):
            client.events(1, job_id=giver.insert(KIND, queue="other"))
        assert giver.get(waiting)["state"] == "available"
        # Only a change is an event, not what was so when the client began.
        assert _paused(client) == []
        until_it_hears(client, giver, "other")
        giver.resume("one")
        client.events(1, kinds=["job_completed"], job_id=waiting)
        _until_told(client, ("resumed", "one"))


@pytest.mark.scenario("control", "a client that only polls finds pause and resume by polling")
def test_pause_is_found_by_polling(giver: Side, taker: Side) -> None:
    with taker.working(KIND, poll_only=True, fetch_poll_seconds=0.1) as client:
        giver.insert(KIND)
        client.events(1, kinds=["job_completed"])
        giver.pause()
        _until_told(client, ("paused", "default"))
        waiting = giver.insert(KIND)
        assert taker.get(waiting)["state"] == "available"
        giver.resume()
        client.events(1, kinds=["job_completed"], job_id=waiting)
        _until_told(client, ("paused", "default"), ("resumed", "default"))


@pytest.mark.scenario("control", "riverq's pause with an end is obeyed by Go, and ended by any riverq client")
def test_a_pause_with_an_end(fleet: Place, river: Side, riverq_side: Side) -> None:
    client = riverq.Client(fleet.engine, riverq.Config(schema=fleet.schema))
    with river.working(KIND, queues={"one": 1, "two": 1}, **DEAF) as goes, riverq_side.working(KIND, queue="riverqs"):
        for queue in ("one", "two"):
            until_it_hears(goes, riverq_side, queue)
        client.queue_pause("one", timedelta(milliseconds=300))
        _until_told(goes, ("paused", "one"), ("resumed", "one"))
        # Whoever resumes and pauses again, in whatever language, makes a pause that lasts.
        client.queue_pause("one", timedelta(seconds=1))
        river.resume("one")
        river.pause("one")
        _until_told(goes, ("resumed", "one"), ("paused", "one"))
        client.queue_pause("two", timedelta(seconds=1))
        until(lambda: _paused(goes)[-1] == ("resumed", "two"), "the later end to have come")
    assert river.queue("two")["paused_at"] is None
    assert river.queue("one")["paused_at"] is not None


@pytest.mark.scenario("control", "a queue that is not there is not found; all queues may be none")
def test_a_queue_that_is_not_there(fleet: Place, river: Side, riverq_side: Side, adapter: str) -> None:
    ear = Ear(fleet)
    for side in (river, riverq_side):
        for verb in (side.pause, side.resume, side.queue, side.queue_update):
            with side.transaction() as tx:
                with pytest.raises(OracleError) as caught:
                    verb("nobodys", tx=tx)
                assert caught.value.kind == "not_found"
                job_id = side.insert(KIND, pending=True, tx=tx)
            assert side.get(job_id)["state"] == "pending"
        assert side.queues() == []
    assert ear.until_now() == []
    for side in (river, riverq_side):
        side.pause("*")
        side.resume("*")
    assert ear.until_now() == [_control("pause", "*"), _control("resume", "*")] * 2


# -- metadata


METADATA: dict[str, Any] = {"a": {"list": [1, None, 2.5, 1e21], "t": 'q"\\ <&>'}, "concurrency": {"limit": 3}}
"""Its keys in order: riverq sorts them, as Go does those of a map. River sends its caller's JSON in its own order."""
ENCODED = r'{"a":{"list":[1,null,2.5,1e+21],"t":"q\"\\ \u003c\u0026\u003e"},"concurrency":{"limit":3}}'


@pytest.mark.scenario("control", "a queue's metadata is replaced, read by the other side, and told in the same bytes")
def test_metadata_of_a_queue(fleet: Place, giver: Side, river: Side, riverq_side: Side, adapter: str) -> None:
    _make_queues(giver, "one", "two")
    ear = Ear(fleet)
    payloads = []
    for doer, reader, queue in ((river, riverq_side, "one"), (riverq_side, river, "two")):
        assert _updated(doer, reader, queue, {"old": True}) == {"metadata": {"old": True}, "updated_at": NOW}
        assert _updated(doer, reader, queue, METADATA) == {"metadata": METADATA, "updated_at": NOW}
        payloads.append([(topic, payload.replace(queue, "one")) for topic, payload in ear.until_now()])
        before = reader.queue(queue)
        assert changes(before, doer.queue_update(queue)) == {"updated_at": NOW}
        assert ear.until_now() == []
    assert payloads[0] == payloads[1] == [_changed_to('{"old":true}'), _changed_to(ENCODED)]


def _changed_to(metadata: str) -> tuple[str, str]:
    return ("river_control", f'{{"action":"metadata_changed","metadata":{metadata},"queue":"one"}}')


def _updated(doer: Side, reader: Side, queue: str, metadata: Any) -> dict[str, Any]:
    before = reader.queue(queue)
    answer = doer.queue_update(queue, metadata=metadata)
    assert reader.queue(queue) == answer
    return changes(before, answer)


@pytest.mark.scenario("control", "metadata that no notification can carry is refused by both, and changes nothing")
def test_metadata_that_is_too_long(river: Side, riverq_side: Side, adapter: str) -> None:
    _make_queues(river, "one")
    before = river.queue("one")
    too_long = {"k": "x" * 8000}
    for side in (river, riverq_side):
        with pytest.raises(OracleError):
            side.queue_update("one", metadata=too_long)
        assert side.queue("one") == before
    longest = {"k": "x" * (7999 - len('{"action":"metadata_changed","metadata":{"k":""},"queue":"one"}'))}
    for side in (river, riverq_side):
        assert side.queue_update("one", metadata=longest)["metadata"] == longest
    with pytest.raises(OracleError):
        riverq_side.queue_update("one", metadata={"k": longest["k"] + "x"})


@pytest.mark.scenario("control", "metadata changed in a transaction: told at its commit, a client at work goes on")
def test_metadata_in_a_transaction(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, **DEAF) as client:
        client.until_woken_by(giver, KIND)
        ear = Ear(fleet)
        with giver.transaction() as tx:
            assert giver.queue_update(metadata={"a": 1}, tx=tx)["metadata"] == {"a": 1}
            assert taker.queue()["metadata"] == {}
            tx.rollback()
        assert taker.queue()["metadata"] == {}
        assert ear.until_now() == []
        giver.queue_update(metadata={"a": 2})
        client.events(1, kinds=["job_completed"], job_id=giver.insert(KIND))
    # A client that is started, or stops, does not touch it.
    with giver.working(KIND):
        assert giver.queue()["metadata"] == {"a": 2}


# -- queues that come and go


@pytest.mark.scenario("control", "a queue added to a running client is worked, removed it is not; its row stays")
def test_queues_that_come_and_go(giver: Side, taker: Side, adapter: str) -> None:
    with taker.working(KIND, queues={"first": 1}, fetch_poll_seconds=0.2) as client, ThreadPoolExecutor(1) as thread:
        early = giver.insert(KIND, queue="late")
        with pytest.raises(OracleError):
            client.queue_remove("late")
        client.queue_add("late", 2)
        client.events(1, kinds=["job_completed"], job_id=early)
        with pytest.raises(OracleError):
            client.queue_add("late", 2)
        assert [queue["name"] for queue in giver.queues()] == ["first", "late"]
        held = giver.insert(KIND, {"outcome": "finish"}, queue="late")
        client.until_begun(held)
        removing = thread.submit(client.queue_remove, "late")
        until(lambda: _is_left_alone(giver, "late"), "the queue not to be worked any more")
        assert not removing.done()
        assert client.marks(mark="cancelled") == []
        client.release()
        removing.result()
        client.events(1, kinds=["job_completed"], job_id=held)
        # What was left alone before may only have been worked slowly.
        left = giver.insert(KIND, queue="late")
        for _ in range(3):
            client.events(1, kinds=["job_completed"], job_id=giver.insert(KIND, queue="first"))
        assert giver.get(left)["state"] == "available"
        assert giver.queue("late")["paused_at"] is None


def _is_left_alone(side: Side, queue: str) -> bool:
    """Whether nobody works a job, though a client that polls five times a second had half a second."""
    job_id = side.insert(KIND, queue=queue)
    try:
        until(lambda: side.get(job_id)["state"] == "completed", "", seconds=0.5)
    except pytest.fail.Exception:
        return True
    return False


@pytest.mark.scenario("control", "a queue added to a running client while it is paused stays paused until resumed")
def test_a_paused_queue_is_added(giver: Side, taker: Side, adapter: str) -> None:
    _make_queues(giver, "late")
    giver.pause("late")
    with taker.working(KIND, queues={"first": 1}, fetch_poll_seconds=0.1) as client:
        client.queue_add("late", 1)
        waiting = giver.insert(KIND, queue="late")
        for _ in range(3):
            client.events(1, job_id=giver.insert(KIND, queue="first"))
        assert giver.get(waiting)["state"] == "available"
        until(lambda: _heard_of_resume(giver, client), "the client to hear of the resume")
        client.events(1, kinds=["job_completed"], job_id=waiting)


def _heard_of_resume(giver: Side, client: Working) -> bool:
    """Asked until it was heard: Go's client may not yet listen for a queue that was just added."""
    giver.resume("late")
    return ("resumed", "late") in _paused(client)
