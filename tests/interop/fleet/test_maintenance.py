"""The leader's upkeep, done by each side to jobs of the other: scheduling, rescuing, cleaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.interop.conftest import ProcessMaker
from tests.interop.place import Place
from tests.interop.sides import Row, Side, Working
from tests.interop.waiting import leader_of, until, until_leader, until_state

KIND = "oracle_outcome"
NOBODYS_QUEUE = "of_the_leader"
LONG_AGO = "2020-01-01T00:00:00Z"
HOUR = 3600.0
RESCUED = "Stuck job rescued by JobRescuer"

HORIZON = {"job_timeout_seconds": 1, "rescue_seconds": 60, "retry_seconds": HOUR}
"""A leader that rescues what has run for a minute. riverq gives a job one more minute than its timeout to unwind in."""

GRACE = 6.0


@contextmanager
def _leading(side: Side, **config: Any) -> Iterator[Working]:
    """A client of this side that leads, and works nothing."""
    with side.working(KIND, queue=NOBODYS_QUEUE, **config) as client:
        until_leader(side.place, client.id)
        yield client


def _change(fleet: Place, sql: str, **params: Any) -> None:
    """What only time would do."""
    with fleet.engine.begin() as connection:
        connection.execute(sa.text(sql.format(schema=fleet.schema)), params)


def _alike(row: Row, *but: str) -> Row:
    """A row without what tells one job from another: ids, times, keys, whose it was."""
    own = {"id", "args", "attempted_at", "attempted_by", "created_at", "finalized_at", "scheduled_at", "unique_key"}
    errors = [{name: value for name, value in error.items() if name != "at"} for error in row["errors"]]
    return {name: value for name, value in {**row, "errors": errors}.items() if name not in own | set(but)}


# -- scheduling


@pytest.mark.scenario(
    "maintenance", "a scheduled job of one side is made available by the other's leader, and runs on time"
)
def test_a_scheduled_job_runs_on_time(fleet: Place, giver: Side, taker: Side) -> None:
    at = datetime.now(UTC) + timedelta(seconds=4)
    with giver.working(KIND, no_leader=True, retry_seconds=6) as worker:
        scheduled = giver.insert(KIND, scheduled_at=at.isoformat())
        failing = giver.insert(KIND, {"outcome": "error"}, max_attempts=2)
        snoozing = giver.insert(KIND, {"acts": {}, "outcome": "snooze", "seconds": 6}, max_attempts=2)
        until_state(fleet, failing, "retryable")
        until_state(fleet, snoozing, "scheduled")
        due = {job_id: giver.get(job_id)["scheduled_at"] for job_id in (scheduled, failing, snoozing)}
        with _leading(taker):
            worker.events(2, job_id=failing)
            # As it was then: a leader makes available what is due within seconds.
            snoozed = worker.events(2, job_id=snoozing)[1]["job"]
            worker.events(1, job_id=scheduled)
    rows = {job_id: giver.get(job_id) for job_id in due}
    assert abs(due[scheduled] - at) < timedelta(milliseconds=1)
    states = [row["state"] for row in (rows[scheduled], rows[failing], snoozed)]
    assert states == ["completed", "discarded", "scheduled"]
    for job_id, row in rows.items():
        assert row["attempted_at"] >= due[job_id]
        assert set(row["attempted_by"]) == {worker.id}
    assert taker.get(failing) == rows[failing]


@pytest.mark.scenario("maintenance", "the leader of one side wakes the other's workers, whose poll is an hour away")
def test_the_leader_wakes_the_other_sides_workers(fleet: Place, giver: Side, taker: Side) -> None:
    with giver.working(KIND, no_leader=True, fetch_poll_seconds=HOUR) as worker:
        worker.until_woken_by(giver, KIND)
        overdue = giver.insert(KIND, scheduled_at=LONG_AGO)
        at = datetime.now(UTC) + timedelta(seconds=4)
        ahead = giver.insert(KIND, scheduled_at=at.isoformat())
        with _leading(taker):
            worker.events(1, job_id=overdue)
            until_state(fleet, ahead, "available", "completed")
            if taker.name == "river":
                # River's leader says nothing when a job that it made available ahead of time falls due; riverq's does.
                giver.insert(KIND, scheduled_at=LONG_AGO)
            worker.events(1, job_id=ahead)
    row = giver.get(ahead)
    assert row["attempted_at"] >= row["scheduled_at"]


@pytest.mark.scenario("maintenance", "a due job whose unique key is taken is discarded, in one row by either leader")
def test_a_unique_conflict_at_scheduling(fleet: Place, river: Side, riverq_side: Side) -> None:
    rows = []
    for inserter, leader in ((river, riverq_side), (riverq_side, river)):
        unique = {"by_args": True, "by_state": ["available", "pending", "running", "scheduled"]}
        args = {"message": leader.name}
        loser = inserter.insert(KIND, args, unique=unique)
        _change(
            fleet, "UPDATE {schema}.river_job SET state = 'retryable', scheduled_at = now() WHERE id = :id", id=loser
        )
        holder = leader.insert(KIND, args, unique=unique, pending=True)
        alone = inserter.insert(KIND, {"message": f"no twin, {leader.name}"}, unique=unique, scheduled_at=LONG_AGO)
        with _leading(leader):
            until_state(fleet, loser, "discarded")
            until_state(fleet, alone, "available")
        row = inserter.get(loser)
        assert row["metadata"] == {"unique_key_conflict": "scheduler_discarded"}
        assert row["finalized_at"] is not None
        assert leader.get(holder)["state"] == "pending"
        rows.append([_alike(inserter.get(job_id)) for job_id in (loser, holder, alone)])
    assert rows[0] == rows[1]


# -- rescuing, by the horizon


def _die_with_jobs(dying: Side, inserter: Side, fleet: Place) -> dict[str, int]:
    """Jobs that a process of this side worked when it was killed."""
    client = dying.start(KIND, "nobodys_kind", no_leader=True, job_timeout_seconds=-1)
    jobs = {
        "with attempts left": inserter.insert(KIND, {"outcome": "hold"}),
        "rescued before": inserter.insert(KIND, {"outcome": "hold"}, metadata={"river:rescue_count": 4, "of": "mine"}),
        "without attempts left": inserter.insert(KIND, {"outcome": "hold"}, max_attempts=1),
        "to be cancelled": inserter.insert(KIND, {"outcome": "hold"}),
        "of an unknown kind": inserter.insert("nobodys_kind", {"outcome": "hold"}),
        "still young": inserter.insert(KIND, {"outcome": "hold"}),
    }
    client.until_begun(*jobs.values())
    inserter.cancel(jobs["to be cancelled"])
    dying.process.kill()
    for job_id in jobs.values():
        assert fleet.column_values(job_id)["state"] == "running"
    return jobs


def _grow_old(fleet: Place, jobs: Mapping[str, int]) -> None:
    for what, job_id in jobs.items():
        if what != "still young":
            _change(
                fleet,
                "UPDATE {schema}.river_job SET attempted_at = attempted_at - interval '2 hours' WHERE id = :id",
                id=job_id,
            )


def _rescued_by(fleet: Place, leader: Side, jobs: Mapping[str, int]) -> dict[str, Row]:
    """What this side's leader makes of jobs that it takes for stuck."""
    _grow_old(fleet, jobs)
    with _leading(leader, **HORIZON):
        until_state(fleet, jobs["with attempts left"], "retryable")
    return {what: leader.get(job_id) for what, job_id in jobs.items()}


@pytest.mark.scenario(
    "maintenance", "each leader rescues by the horizon what a dead process of the other left, in one row"
)
def test_stuck_jobs_of_the_other_side(fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker) -> None:
    """A Go leader beside riverq's own tables does it to riverq's jobs as to its own."""
    of_riverq = _die_with_jobs(process_of("riverq"), river, fleet)
    of_river = _die_with_jobs(process_of("river"), riverq_side, fleet)
    by_river = _rescued_by(fleet, river, of_riverq)
    by_riverq = _rescued_by(fleet, riverq_side, of_river)
    assert {what: row["state"] for what, row in by_river.items()} == {
        "with attempts left": "retryable",
        "rescued before": "retryable",
        "without attempts left": "discarded",
        "to be cancelled": "cancelled",
        "of an unknown kind": "discarded",
        "still young": "running",
    }
    # The one difference: riverq leaves a job of a kind without worker to somebody who knows it.
    unknown = by_river.pop("of an unknown kind"), by_riverq.pop("of an unknown kind")
    assert [row["state"] for row in unknown] == ["discarded", "running"]
    marked = by_river["to be cancelled"], by_riverq["to be cancelled"]
    assert all(row["metadata"].pop("cancel_attempted_at") for row in marked)
    assert {what: _alike(row) for what, row in by_river.items()} == {
        what: _alike(row) for what, row in by_riverq.items()
    }
    for rows in (by_river, by_riverq):
        assert rows["rescued before"]["metadata"] == {"river:rescue_count": 5, "of": "mine"}
        for what, row in rows.items():
            assert [error["error"] for error in row["errors"]] == ([] if what == "still young" else [RESCUED])
            assert (row["finalized_at"] is not None) == (row["state"] in ("cancelled", "discarded"))
        ahead = rows["with attempts left"]["scheduled_at"] - datetime.now(UTC)
        assert abs(ahead - timedelta(seconds=HOUR)) < timedelta(minutes=2)


# -- a worker that goes on when its job has been rescued


@pytest.mark.scenario(
    "maintenance", "a job that Go still works is rescued by riverq: Go's late completion ends riverq's run"
)
def test_go_completes_a_run_that_is_not_its_own(fleet: Place, river: Side, riverq_side: Side) -> None:
    """River's completion names the job and no run of it. riverq finds its run gone, and writes nothing.

    Whoever is late has no slot left for the job that comes back.
    """
    late = river.start(KIND, no_leader=True, max_workers=1, job_timeout_seconds=-1)
    job_id = riverq_side.insert(KIND, {"outcome": "hold", "acts": {"again": {"outcome": "hold", "output": "riverq's"}}})
    late.until_begun(job_id)
    _grow_old(fleet, {"it": job_id})
    with _leading(riverq_side, **{**HORIZON, "retry_seconds": 0}):
        until_state(fleet, job_id, "retryable", "available")
        with riverq_side.working(KIND, script="again", no_leader=True, job_timeout_seconds=-1) as again:
            again.until_begun(job_id)
            late.release()
            late.events(1, job_id=job_id)
            ended = until_state(fleet, job_id, "completed")
            again.release()
    late.stop()
    assert ended["attempted_by"] == [late.id, again.id]
    row = river.get(job_id)
    assert (row["state"], row["attempt"], [error["error"] for error in row["errors"]]) == ("completed", 2, [RESCUED])
    assert "output" not in row["metadata"]
    assert fleet.column_values(job_id) == ended


@pytest.mark.scenario(
    "maintenance", "a job that riverq still works is rescued by Go: riverq's late completion changes nothing"
)
def test_riverq_completes_only_its_own_run(fleet: Place, river: Side, riverq_side: Side) -> None:
    late = riverq_side.start(KIND, no_leader=True, max_workers=1, job_timeout_seconds=-1)
    job_id = river.insert(KIND, {"outcome": "hold", "output": "riverq's", "acts": {"again": {"outcome": "hold"}}})
    late.until_begun(job_id)
    horizon = "SELECT 1 FROM {schema}.river_job WHERE attempted_at < now() - interval '2 seconds'"
    until(lambda: fleet.scalars(horizon), "the job to have run for longer than the horizon")
    with _leading(river, job_timeout_seconds=1, rescue_seconds=2, retry_seconds=0):
        until_state(fleet, job_id, "retryable", "available")
        with river.working(KIND, script="again", no_leader=True, job_timeout_seconds=-1) as again:
            again.until_begun(job_id)
            late.release()
            late.marks(1, mark="ended", job_id=job_id)
            late.stop()
            row = river.get(job_id)
            assert (row["state"], row["attempted_by"]) == ("running", [late.id, again.id])
            again.release()
            again.events(1, job_id=job_id)
    row = riverq_side.get(job_id)
    assert (row["state"], row["attempt"], row["metadata"].get("output")) == ("completed", 2, None)


# -- rescuing, by proof of life


@pytest.mark.scenario(
    "maintenance", "a dead riverq process's job comes back within the grace; jobs of Go, living or dead, stay"
)
def test_only_the_jobs_of_dead_riverq_clients_come_back(
    fleet: Place, river: Side, riverq_side: Side, process_of: ProcessMaker
) -> None:
    """A Go leader knows nothing of riverq's proof of life: the job waits for the next riverq leader."""
    hold = {"outcome": "hold"}
    with _leading(river) as goes, riverq_side.working(KIND, grace_seconds=GRACE, queue="second") as ours:
        dead, dead_go = process_of("riverq"), process_of("river")
        dead_client = dead.start(KIND, queue="of_dead_riverq", grace_seconds=GRACE, script="first")
        dead_go_client = dead_go.start(KIND, queue="of_dead_go")
        living = river.start(KIND, queue="of_living_go", no_leader=True)
        job_id = river.insert(KIND, {"acts": {"first": hold}}, queue="of_dead_riverq")
        of_dead_go = riverq_side.insert(KIND, hold, queue="of_dead_go")
        of_living_go = riverq_side.insert(KIND, hold, queue="of_living_go")
        own = riverq_side.insert(KIND, hold, queue="second")
        for client, begun in (
            (dead_client, job_id),
            (dead_go_client, of_dead_go),
            (living, of_living_go),
            (ours, own),
        ):
            client.until_begun(begun)
        dead.process.kill()
        dead_go.process.kill()
        before = {each: fleet.column_values(each) for each in (job_id, of_dead_go, of_living_go, own)}
        _until_silent(fleet, dead_client.id)
        assert leader_of(fleet) == goes.id
        assert {each: fleet.column_values(each) for each in before} == before

        goes.stop()
        until_leader(fleet, ours.id)
        row = until_state(fleet, job_id, "available", seconds=60)
        del before[job_id]
        assert {each: fleet.column_values(each) for each in before} == before
        living.queue_add("of_dead_riverq")
        living.events(1, job_id=job_id)
        for client, running in ((living, of_living_go), (ours, own)):
            client.release()
            client.events(1, kinds=["job_completed"], job_id=running)
        living.stop()
    assert (row["attempt"], row["attempted_by"], row["metadata"]) == (1, [dead_client.id], {"river:rescue_count": 1})
    [error] = river.get(job_id)["errors"]
    assert {**error, "at": None} == {"at": None, "attempt": 1, "error": RESCUED, "trace": ""}
    assert (river.get(job_id)["state"], river.get(job_id)["attempt"]) == ("completed", 2)
    assert fleet.column_values(of_dead_go) == before[of_dead_go]


def _until_silent(fleet: Place, client_id: str) -> None:
    """Wait until this client has said nothing for longer than the grace."""
    sql = "SELECT 1 FROM {schema}.riverq_client WHERE client_id = :id AND seen_at < clock_timestamp() - :grace"
    grace = timedelta(seconds=GRACE + 1)
    until(lambda: fleet.scalars(sql, id=client_id, grace=grace), f"{client_id} to be silent")


# -- cleaning


def _finished(fleet: Place, inserter: Side) -> dict[str, int]:
    """Jobs of this side that ended long ago, and as many that ended just now."""
    jobs = {}
    for state in ("completed", "cancelled", "discarded"):
        for age in ("old", "young"):
            jobs[f"{state}, {age}"] = job_id = inserter.insert(KIND, queue="nobodys")
            hours = 2 if age == "old" else 0
            _change(
                fleet,
                "UPDATE {schema}.river_job SET state = CAST(CAST(:state AS text) AS {schema}.river_job_state),"
                " finalized_at = now() - make_interval(hours => :hours) WHERE id = :id",
                state=state,
                hours=hours,
                id=job_id,
            )
    return jobs


@pytest.mark.scenario(
    "maintenance", "finished jobs of one side are deleted when the retention of the other's leader is over"
)
def test_the_leaders_retention_rules(fleet: Place, giver: Side, taker: Side) -> None:
    jobs = _finished(fleet, giver)

    def kept() -> set[str]:
        ids = set(fleet.scalars("SELECT id FROM {schema}.river_job"))
        return {what for what, job_id in jobs.items() if job_id in ids}

    with _leading(taker, retention_seconds={"completed": HOUR, "cancelled": -1, "discarded": 3 * HOUR}):
        until(lambda: "completed, old" not in kept(), "the retention of completed jobs")
    assert set(jobs) - kept() == {"completed, old"}
    # Others, other rules: who leads decides for all.
    with _leading(giver, retention_seconds={"completed": 3 * HOUR, "cancelled": -1, "discarded": HOUR}):
        until(lambda: "discarded, old" not in kept(), "the retention of discarded jobs")
    assert set(jobs) - kept() == {"completed, old", "discarded, old"}


@pytest.mark.scenario(
    "maintenance", "queues that nobody has used for a day go; riverq's leader spares those that hold something"
)
def test_unused_queues(fleet: Place, giver: Side, taker: Side) -> None:
    """River's leader forgets a pause with its queue."""
    row = "SELECT name FROM {schema}.river_queue WHERE name = :queue"
    for queue in ("used", "unused", "paused"):
        with giver.working(KIND, queue=queue, no_leader=True):
            until(lambda: fleet.scalars(row, queue=queue), queue)  # noqa: B023  # asked at once
    giver.pause("paused")
    _change(
        fleet,
        "UPDATE {schema}.river_queue SET updated_at = now() - interval '25 hours' WHERE name IN ('unused', 'paused')",
    )
    expected = {"used", "paused"} if taker.name == "riverq" else {"used"}
    with _leading(taker):
        until(lambda: {each["name"] for each in giver.queues()} == expected | {NOBODYS_QUEUE}, "the unused queue to go")


# -- without riverq's own tables


@pytest.mark.rivers_tables_only
@pytest.mark.scenario("maintenance", "without riverq's own tables all this works but for the proof of life")
def test_rivers_tables_only(fleet: Place, giver: Side, taker: Side, process_of: ProcessMaker) -> None:
    jobs = _die_with_jobs(process_of(giver.name), taker, fleet)
    _grow_old(fleet, jobs)
    finished = _finished(fleet, giver)
    with (
        _leading(taker, **HORIZON, retention_seconds={"completed": HOUR}) as leader,
        giver.working(KIND, no_leader=True) as worker,
    ):
        scheduled = giver.insert(KIND, scheduled_at=LONG_AGO)
        worker.events(1, job_id=scheduled)
        until_state(fleet, jobs["with attempts left"], "retryable")
        until_state(fleet, jobs["to be cancelled"], "cancelled")
        gone = finished["completed, old"]
        until(lambda: gone not in fleet.scalars("SELECT id FROM {schema}.river_job"), "the retention")
        assert giver.get(jobs["still young"])["state"] == "running"
        waiting = taker.insert(KIND, {"outcome": "wait"})
        worker.until_begun(waiting)
        taker.cancel(waiting)
        worker.events(1, kinds=["job_cancelled"], job_id=waiting)
        taker.pause("default")
        worker.events(1, kinds=["queue_paused"])
        taker.resume("default")
        worker.events(1, kinds=["queue_resumed"])
        back = giver.insert(KIND, queue=NOBODYS_QUEUE)
        leader.events(1, kinds=["job_completed"], job_id=back)
