"""A client ends in the middle of its jobs: softly, hard, by dying, by standing still. The other side goes on."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from tests.fix_database import ADAPTERS
from tests.interop.conftest import ProcessMaker
from tests.interop.oracle import OracleError
from tests.interop.place import Place
from tests.interop.sides import Row, Rows, Side, Working
from tests.interop.waiting import leader_of, until, until_leader, until_state

KIND = "oracle_outcome"
HOUR = 3600
LONG = 60.0
"""Seconds: for what waits for a lease of 15 s, or for proof of life at the least grace."""
CUT = "riverq_cut"
"""The application_name of the connections that are cut."""


def begin_to_stop(client: Working) -> None:
    """Ask for a soft stop and do not wait for its end: when this returns nothing is claimed any more."""
    with pytest.raises(OracleError):
        client.stop(seconds=0.2)  # it is the wait that ends; stopping goes on


def age(place: Place, *job_ids: int) -> None:
    """Let these runs have begun earlier, longer ago than any horizon here: an hour is not waited for.

    For runs that nobody ends any more, or of Go: riverq tells its own runs by the time at which they began.
    """
    moved = (
        "UPDATE {schema}.river_job SET attempted_at = attempted_at - interval '10 minutes' WHERE id = :id RETURNING id"
    )
    with place.engine.begin() as connection:
        for job_id in job_ids:
            connection.execute(sa.text(moved.format(schema=place.schema)), {"id": job_id})


HORIZON = {"job_timeout_seconds": 60, "rescue_seconds": 60, "retry_seconds": 0}
"""Settings of a client that rescues what runs longer than that. Without a timeout there is no such rescue."""


# -- soft


@pytest.mark.scenario("stopping", "a soft stop lets running jobs end and claims nothing; the other side takes the rest")
def test_soft_stop(giver: Side, taker: Side, adapter: str) -> None:
    stopping = taker.start(KIND, max_workers=10, fetch_poll_seconds=HOUR)
    stopping.until_woken_by(giver, KIND)
    # Inserted at once they are claimed at once: when both have begun no claim is under way that could take the rest.
    jobs = [{"kind": KIND, "args": {"outcome": "wait", "output": number}} for number in range(2)]
    running = [each["job"]["id"] for each in giver.insert_rows(jobs)]
    stopping.until_begun(*running)
    begin_to_stop(stopping)
    rest = [giver.insert(KIND) for _ in range(3)]
    with giver.working(KIND) as other:
        for job_id in rest:
            other.events(1, kinds=["job_completed"], job_id=job_id)
        assert [giver.get(job_id)["state"] for job_id in running] == ["running"] * 2
        stopping.release()
        ended = [(event["kind"], event["job"]["id"]) for event in stopping.stop()]
    assert sorted(each for each in ended if each[1] >= running[0]) == [("job_completed", id_) for id_ in running]
    rows = {row["id"]: row for row in giver.list(ids=[*running, *rest]).jobs}
    assert [rows[job_id]["attempted_by"] for job_id in running] == [[stopping.id]] * 2
    assert [rows[job_id]["attempted_by"] for job_id in rest] == [[other.id]] * 3
    assert [(row["state"], row["attempt"]) for row in rows.values()] == [("completed", 1)] * 5


# -- hard

WAYS = ("at once", "while a soft stop waits", "when soft_stop_seconds are over")


def stop_hard(client: Working, way: str) -> Rows:
    if way == "while a soft stop waits":
        begin_to_stop(client)
    return client.stop(cancel=way != "when soft_stop_seconds are over")


def limit_of(way: str) -> dict[str, Any]:
    return {"soft_stop_seconds": 0.3} if way == "when soft_stop_seconds are over" else {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.scenario("stopping", "a hard stop gives jobs back uncounted, and the other side does them")
def test_hard_stop(giver: Side, taker: Side, adapter: str, way: str) -> None:
    stopped = taker.start(KIND, script="stopped", **limit_of(way))
    job_id = giver.insert(KIND, {"acts": {"stopped": {"outcome": "wait"}}, "output": "done by the other"})
    stopped.until_begun(job_id)
    assert [event["kind"] for event in stop_hard(stopped, way)] == ["job_interrupted"]
    row = giver.get(job_id)
    assert row == taker.get(job_id)
    assert (row["state"], row["attempt"], row["errors"], row["finalized_at"]) == ("available", 0, [], None)
    assert row["attempted_by"] == [stopped.id]
    with giver.working(KIND) as other:
        other.events(1, kinds=["job_completed"], job_id=job_id)
    row = taker.get(job_id)
    assert (row["state"], row["attempt"], row["errors"]) == ("completed", 1, [])
    assert row["attempted_by"] == [stopped.id, other.id]
    assert row["metadata"] == {"output": "done by the other"}


STOPPED_JOBS: dict[str, dict[str, Any]] = {
    "gives in": {"outcome": "wait"},
    "gives in, having recorded something": {"outcome": "wait", "output": [1], "metadata": {"tenant": "a"}},
    "ends well nevertheless": {"outcome": "finish", "output": "all of it"},
    "sleeps": {"outcome": "sleep", "seconds": HOUR},
    "gives in within a step": {
        "steps": [{"name": "first"}, {"name": "second", "acts": {"stop": {"outcome": "wait"}}}],
        "acts": {"stop": {"outcome": "wait"}},
    },
}


def hard_stopped(side: Side, *, failed_before: bool) -> dict[str, Row]:
    """What a hard stop of a client of this side leaves of each job, without what must differ."""
    ids: dict[str, int] = {}
    for name, act in STOPPED_JOBS.items():
        args = act if "steps" in act else {"acts": {"stop": act}}
        ids[name] = side.insert(KIND, {"outcome": "error", "message": "the first attempt", **args})
    if failed_before:
        with side.working(KIND, retry_seconds=HOUR) as client:
            client.events(len(ids), kinds=["job_failed"])
        for job_id in ids.values():
            side.retry(job_id)
    client = side.start(KIND, script="stop")
    client.marks(len(ids), mark="began")
    if not failed_before:
        client.marks(2, mark="step")
    events = {event["job"]["id"]: event["kind"] for event in client.stop(cancel=True)}
    return {name: left_of(side.get(job_id), events[job_id]) for name, job_id in ids.items()}


def left_of(row: Row, event: str) -> Row:
    same = ("args", "attempt", "kind", "max_attempts", "metadata", "priority", "queue", "state", "tags", "unique_key")
    return {
        **{name: row[name] for name in same},
        "errors": [(error["attempt"], error["error"].split(": ")[-1]) for error in row["errors"]],
        "event": event,
        "claims": len(row["attempted_by"]),
        "is_final": row["finalized_at"] is not None,
        "is_due_since_the_stop": row["scheduled_at"] > row["attempted_at"],
    }


@pytest.mark.parametrize("failed_before", [False, True], ids=["first attempt", "second attempt"])
@pytest.mark.scenario("stopping", "what a hard stop leaves on a row is the same on both sides")
def test_hard_stops_leave_the_same(river: Side, riverq_side: Side, adapter: str, failed_before: bool) -> None:
    by_riverq = hard_stopped(riverq_side, failed_before=failed_before)
    by_river = hard_stopped(river, failed_before=failed_before)
    assert by_riverq == by_river
    assert {row["event"] for row in by_riverq.values()} == {"job_interrupted", "job_completed"}


@pytest.mark.parametrize("cancel", [False, True], ids=["soft", "hard"])
@pytest.mark.scenario("stopping", "a leader that stops resigns, and the other side leads")
def test_a_leader_stops(fleet: Place, giver: Side, taker: Side, adapter: str, cancel: bool) -> None:
    leading = taker.start(KIND)
    until_leader(fleet, leading.id)
    with giver.working(KIND) as following:
        job_id = giver.insert(KIND, {"acts": {}, "outcome": "finish"}) if cancel else giver.insert(KIND)
        # Only claimed is not enough: a client that is stopped hard gives back what it has not begun.
        both = (leading, following)
        until(lambda: any(each.marks(mark="began", job_id=job_id) for each in both), "the job to begin")
        fleet.go("listen", name="ear", topics=["river_leadership"])
        leading.stop(cancel=cancel)
        assert until_leader(fleet, following.id) == following.id
        following.release()

    def heard_by(op: str) -> list[str]:
        return [each["payload"] for each in fleet.go(op, name="ear", count=0) if leading.id in each["payload"]]

    until(lambda: heard_by("heard"), "the resignation to be heard")
    [resigned] = heard_by("unlisten")
    assert resigned == f'{{"leader_id" : "{leading.id}", "action" : "resigned"}}'
    assert giver.get(job_id)["state"] == "completed"


# -- dying


def doomed(side: Side, giver: Side, **settings: Any) -> tuple[Working, int]:
    """A client of this side, and a job that it runs until it dies; elsewhere the job completes."""
    client = side.start(KIND, queue=f"of_{side.name}", script="doomed", no_leader=True, **settings)
    job_id = giver.insert(KIND, {"acts": {"doomed": {"outcome": "hold"}}}, queue=f"of_{side.name}")
    client.until_begun(job_id)
    return client, job_id


BOTH_QUEUES = {"of_river": 10, "of_riverq": 10}


@pytest.mark.scenario("stopping", "killed: where riverq leads its dead come back by proof of life, Go's by the horizon")
def test_the_dead_where_riverq_leads(fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker) -> None:
    dying = {name: process_of(name) for name in ("river", "riverq")}
    dead_go, job_of_go = doomed(dying["river"], riverq_side)
    dead_riverq, job_of_riverq = doomed(dying["riverq"], river, grace_seconds=6)
    living = river.start(KIND, queue="living", no_leader=True)
    living.until_begun(long_one := river.insert(KIND, {"outcome": "hold"}, queue="living"))
    with riverq_side.working(KIND, queues=BOTH_QUEUES, grace_seconds=6, rescue_seconds=HOUR) as leading:
        until_leader(fleet, leading.id)
        for side in dying.values():
            side.process.kill()
        assert [river.get(job_id)["state"] for job_id in (job_of_go, job_of_riverq)] == ["running"] * 2
        until_state(fleet, job_of_riverq, "completed", seconds=LONG)
    row = river.get(job_of_riverq)
    assert (row["attempt"], row["attempted_by"]) == (2, [dead_riverq.id, leading.id])
    assert (len(row["errors"]), row["metadata"]) == (1, {"river:rescue_count": 1})
    for job_id, client_id in ((job_of_go, dead_go.id), (long_one, living.id)):
        row = river.get(job_id)
        assert (row["state"], row["attempt"], row["attempted_by"]) == ("running", 1, [client_id])
    living.release()
    living.stop()

    age(fleet, job_of_go)
    with riverq_side.working(KIND, queues=BOTH_QUEUES, **HORIZON) as leading:
        until_state(fleet, job_of_go, "completed", seconds=LONG)
    row = river.get(job_of_go)
    assert (row["attempt"], row["attempted_by"]) == (2, [dead_go.id, leading.id])
    assert river.get(long_one)["attempt"] == 1


@pytest.mark.scenario("stopping", "killed: where Go leads the dead of both sides come back by the horizon")
def test_the_dead_where_go_leads(fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker) -> None:
    dying = {name: process_of(name) for name in ("river", "riverq")}
    dead = {name: doomed(side, riverq_side) for name, side in dying.items()}
    for side in dying.values():
        side.process.kill()
    assert [river.get(job_id)["state"] for _, job_id in dead.values()] == ["running"] * 2
    age(fleet, *(job_id for _, job_id in dead.values()))
    with river.working(KIND, queues=BOTH_QUEUES, **HORIZON) as leading:
        for _, job_id in dead.values():
            until_state(fleet, job_id, "completed", seconds=LONG)
    for client, job_id in dead.values():
        row = riverq_side.get(job_id)
        assert (row["attempt"], row["attempted_by"]) == (2, [client.id, leading.id])
        assert [error["error"] for error in row["errors"]] == ["Stuck job rescued by JobRescuer"]


# -- standing still


def overtaken(fleet: Place, sleeper: Side, other: Side, **config: Any) -> tuple[Working, Working, int]:
    """A job of a client that leads and then stands still for longer than its lease; by now the other side leads and
    runs the job anew, and the client goes on."""
    sleeping = sleeper.start(KIND, rescue_seconds=HOUR)
    until_leader(fleet, sleeping.id)
    job_id = other.insert(KIND, {"outcome": "hold"})
    sleeping.until_begun(job_id)
    sleeper.process.suspend()
    if sleeper.name == "river":
        age(fleet, job_id)
    overtaking = other.start(KIND, **config)
    until_leader(fleet, overtaking.id, seconds=LONG)
    overtaking.marks(1, mark="began", job_id=job_id, seconds=LONG)
    sleeper.process.resume()
    return sleeping, overtaking, job_id


@pytest.mark.scenario("stopping", "suspended: what riverq's late worker reports is dropped, Go's second run counts")
def test_riverq_stands_still(fleet: Place, river: Side, process_of: ProcessMaker) -> None:
    sleeping, overtaking, job_id = overtaken(
        fleet, process_of("riverq"), river, job_timeout_seconds=1, rescue_seconds=1, retry_seconds=0
    )
    sleeping.release()
    sleeping.marks(1, mark="ended", job_id=job_id)
    assert not [event for event in sleeping.stop() if event["kind"] == "job_completed"]
    row = river.get(job_id)
    assert (row["state"], row["attempt"], row["attempted_by"]) == ("running", 2, [sleeping.id, overtaking.id])
    assert leader_of(fleet) == overtaking.id
    overtaking.release()
    assert [event["kind"] for event in overtaking.events(1, job_id=job_id)] == ["job_completed"]
    overtaking.stop()
    row = river.get(job_id)
    assert (row["state"], row["attempt"], row["attempted_by"]) == ("completed", 2, [sleeping.id, overtaking.id])


@pytest.mark.scenario(
    "stopping", "suspended: what Go's late worker reports ends riverq's second run; riverq writes nothing more"
)
def test_go_stands_still(fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker) -> None:
    sleeping, overtaking, job_id = overtaken(fleet, process_of("river"), riverq_side, **HORIZON)
    sleeping.release()
    assert [event["kind"] for event in sleeping.events(1, job_id=job_id)] == ["job_completed"]
    ended_by_go = riverq_side.get(job_id)
    assert (ended_by_go["state"], ended_by_go["attempt"]) == ("completed", 2)
    assert ended_by_go["attempted_by"] == [sleeping.id, overtaking.id]
    assert leader_of(fleet) == overtaking.id
    sleeping.stop()
    overtaking.release()
    overtaking.marks(1, mark="ended", job_id=job_id)
    assert overtaking.stop() == []
    assert river.get(job_id) == ended_by_go


# -- cut connections


@pytest.mark.parametrize(
    ("name", "adapter"), [("river", "psycopg"), *(("riverq", adapter) for adapter in ADAPTERS)], ids=str
)
@pytest.mark.scenario("stopping", "all connections of a client are cut: its jobs end, it listens and leads again")
def test_cut_connections(
    fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker, name: str, adapter: str
) -> None:
    giver = riverq_side if name == "river" else river
    client = process_of(name, application=CUT).start(KIND, fetch_poll_seconds=HOUR)
    until_leader(fleet, client.id)
    client.until_woken_by(giver, KIND)
    job_id = giver.insert(KIND, {"outcome": "wait", "output": 1})
    client.until_begun(job_id)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
    assert all(fleet.scalars(f"{cut} AND datname = current_database()", name=CUT))
    client.release()
    client.events(1, kinds=["job_completed"], job_id=job_id)
    row = giver.get(job_id)
    assert (row["attempt"], row["attempted_by"], row["errors"]) == (1, [client.id], [])
    client.until_woken_by(giver, KIND)
    until_leader(fleet, client.id)
    client.stop()
    assert leader_of(fleet) is None
    assert [row["state"] for row in giver.list(states=["available", "running"]).jobs] == []
