"""Kinds: renamed ones, fleets in which each side knows only its own, and what becomes of those that nobody knows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import until_none

NEW, OLD, OLDER = "resize_image", "resize", "shrink"
GOES, OURS, NOBODYS = "go_kind", "python_kind", "nobodys_kind"
KIND = "oracle_outcome"
HOUR = 3600.0
UNKNOWN = "job kind is not registered in the client's Workers bundle: "


# -- aliases


@pytest.mark.scenario("kinds", "a renamed kind's worker works the other side's jobs of the old kinds")
@pytest.mark.parametrize("only_known", [False, True], ids=["any-kind", "only-known-kinds"])
def test_an_alias_works_the_old_kind(giver: Side, taker: Side, adapter: str, only_known: bool) -> None:
    """The row keeps the kind that it was inserted with."""
    ids = {kind: giver.insert(kind, {"output": kind}) for kind in (NEW, OLD, OLDER)}
    with taker.working(NEW, aliases={NEW: [OLD, OLDER]}, only_known_kinds=only_known) as client:
        for kind, job_id in ids.items():
            [event] = client.events(1, kinds=["job_completed"], job_id=job_id)
            [began] = client.marks(1, mark="began", job_id=job_id)
            assert event["job"]["kind"] == began["kind"] == kind
    for kind, job_id in ids.items():
        row = giver.get(job_id)
        assert (row["kind"], row["state"], row["attempt"]) == (kind, "completed", 1)
        assert (row["attempted_by"], row["metadata"]) == ([client.id], {"output": kind})


@pytest.mark.scenario("kinds", "an old kind that one side's workers dropped is worked by the other's alias")
def test_an_old_kind_that_was_dropped(giver: Side, taker: Side) -> None:
    job_id = taker.insert(OLD)
    with giver.working(NEW, retry_seconds=HOUR) as client:
        client.events(1, kinds=["job_failed"], job_id=job_id)
    assert [error["error"] for error in taker.retry(job_id)["errors"]] == [UNKNOWN + OLD]
    with taker.working(NEW, aliases={NEW: [OLD]}) as client:
        client.events(1, kinds=["job_completed"], job_id=job_id)
    row = giver.get(job_id)
    assert (row["kind"], row["attempt"], row["attempted_by"][1]) == (OLD, 2, client.id)


# -- each side knows its own kinds

EACH = 40


def _insert_mixed(giver: Side, taker: Side, each: int = EACH, **options: Any) -> dict[str, list[int]]:
    """Jobs of both kinds, by both, one after the other."""
    ids: dict[str, list[int]] = {GOES: [], OURS: []}
    for side in (giver, taker):
        kinds = [GOES, OURS] * (each // 2)
        rows = side.insert_rows([{"kind": kind, "args": {"outcome": "complete"}, **options} for kind in kinds])
        for row in rows:
            ids[row["job"]["kind"]].append(row["job"]["id"])
    return ids


def _worked(place: Place, kind: str) -> set[str]:
    """Who worked the jobs of this kind last."""
    return set(
        place.scalars(
            "SELECT attempted_by[cardinality(attempted_by)] FROM {schema}.river_job"
            " WHERE kind = :kind AND state = 'completed'",
            kind=kind,
        )
    )


@pytest.mark.scenario("kinds", "both claim only their own kinds of one queue: no attempt fails")
def test_each_side_claims_its_own_kinds(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    nobodys = giver.insert_many(NOBODYS, number=50, priority=1)  # in front of all others
    ids = _insert_mixed(giver, taker, priority=2)
    how = {"only_known_kinds": True, "fetch_cooldown_seconds": 0.01, "fetch_poll_seconds": 0.05}
    sides = {giver.name: giver, taker.name: taker}
    with sides["river"].working(GOES, **how) as goes, sides["riverq"].working(OURS, **how) as ours:
        later = _insert_mixed(giver, taker)
        until_none(fleet, f"kind <> '{NOBODYS}' AND state <> 'completed'")
        for kind, client in ((GOES, goes), (OURS, ours)):
            begun = [mark["job_id"] for mark in client.marks(mark="began")]
            assert sorted(begun) == sorted(ids[kind] + later[kind])
    assert fleet.scalars("SELECT id FROM {schema}.river_job WHERE attempt > 1 OR errors IS NOT NULL") == []
    assert (_worked(fleet, GOES), _worked(fleet, OURS)) == ({goes.id}, {ours.id})
    untouched = giver.list(kinds=[NOBODYS]).jobs
    assert len(untouched) == nobodys
    assert {(row["state"], row["attempt"], row["attempted_at"]) for row in untouched} == {("available", 0, None)}


@pytest.mark.scenario("kinds", "an insert wakes the side that knows the kind, though both claim only their own")
def test_an_insert_wakes_the_side_that_knows(giver: Side, taker: Side, adapter: str) -> None:
    how = {"only_known_kinds": True, "fetch_poll_seconds": HOUR}
    with giver.working(GOES, **how) as other, taker.working(OURS, **how) as client:
        client.until_woken_by(giver, OURS)
        other.until_woken_by(taker, GOES)
        for inserting in (giver, taker):
            client.events(1, kinds=["job_completed"], job_id=inserting.insert(OURS))
            other.events(1, kinds=["job_completed"], job_id=inserting.insert(GOES))


@pytest.mark.scenario("kinds", "without that setting, attempts on the wrong side fail, and in the end all is done")
def test_without_the_setting_attempts_fail(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    mine, theirs = (GOES, OURS) if giver.name == "river" else (OURS, GOES)
    ids = _insert_mixed(giver, taker, 20, max_attempts=1000)
    how = {"retry_seconds": 0.1, "fetch_cooldown_seconds": 0.01, "fetch_poll_seconds": 0.05}
    with giver.working(mine, **how) as first:
        # Alone, it fails all those that it does not know.
        for job_id in ids[theirs]:
            first.events(1, kinds=["job_failed"], job_id=job_id)
        with taker.working(theirs, **how) as second:
            until_none(fleet, "state <> 'completed'", seconds=60)
    assert (_worked(fleet, mine), _worked(fleet, theirs)) == ({first.id}, {second.id})
    for job_id in ids[theirs]:
        row = giver.get(job_id)
        assert row["attempted_by"][0] == first.id
        assert len(row["errors"]) == row["attempt"] - 1 > 0
        assert {error["error"] for error in row["errors"]} == {UNKNOWN + theirs}


@pytest.mark.scenario("kinds", "a kind that nobody knows fails until its attempts are used up, alike on both sides")
def test_a_kind_that_nobody_knows(river: Side, riverq_side: Side, adapter: str) -> None:
    rows: list[Row] = []
    for side, inserting in ((river, riverq_side), (riverq_side, river)):
        job_id = inserting.insert(NOBODYS, {"a": 1}, max_attempts=2, metadata={"kept": 1})
        with side.working(KIND, retry_seconds=0.01, fetch_poll_seconds=0.1) as client:
            client.events(2, kinds=["job_failed"], job_id=job_id)
        rows.append(inserting.get(job_id))
    for row in rows:
        assert (row["state"], row["attempt"], row["metadata"]) == ("discarded", 2, {"kept": 1})
        assert [(each["attempt"], each["error"]) for each in row["errors"]] == [
            (1, UNKNOWN + NOBODYS),
            (2, UNKNOWN + NOBODYS),
        ]


# -- inserting what one does not know


@pytest.mark.scenario("kinds", "a job of a kind that only the other side knows, inserted from within a job")
def test_a_foreign_kind_inserted_from_within_a_job(giver: Side, taker: Side, adapter: str) -> None:
    foreign = {"kind": "foreign", "args": '{"output": "done"}', "queue": "theirs"}
    parent = giver.insert(KIND, {"insert": foreign})
    with taker.working(KIND) as client:
        client.events(1, kinds=["job_completed"], job_id=parent)
    [child] = taker.list(kinds=["foreign"]).jobs
    with giver.working("foreign", queue="theirs") as client:
        [event] = client.events(1, kinds=["job_completed"], job_id=child["id"])
    assert event["job"]["metadata"] == {"output": "done"}


@pytest.mark.scenario("kinds", "a client that checks kinds refuses to insert one it does not know, alike on both sides")
def test_a_kind_that_is_refused(river: Side, riverq_side: Side) -> None:
    """A client without workers checks nothing; for one with workers it is a setting, on by default."""
    errors = []
    for side, inserting in ((river, riverq_side), (riverq_side, river)):
        refused = inserting.insert(KIND, {"insert": {"kind": "foreign", "args": "{}"}})
        old = inserting.insert(KIND, {"insert": {"kind": OLD, "args": "{}", "pending": True}})
        with side.working(KIND, NEW, aliases={NEW: [OLD]}, check_kinds=True, retry_seconds=HOUR) as client:
            client.events(1, kinds=["job_failed"], job_id=refused)
            client.events(1, job_id=old)
        errors.append([inserting.get(job_id)["errors"] for job_id in (refused, old)])
        assert inserting.list(kinds=["foreign"]).ids == []
    for [refusal], none in errors:
        assert "foreign" in refusal["error"]
        assert none == []  # an alias is known
    assert UNKNOWN + "foreign" in errors[0][0][0]["error"]


# -- the error handler

HANDLED: dict[str, tuple[dict[str, Any], str]] = {
    "an error": ({"outcome": "error", "message": "no luck"}, "error_handled"),
    "a panic": ({"outcome": "panic", "message": "out of order"}, "panic_handled"),
    "a timeout": ({"outcome": "wait"}, "error_handled"),
    "an error after output": (
        {"outcome": "error", "message": "late", "output": [1], "metadata": {"a": None}},
        "error_handled",
    ),
    "an error of the last attempt": ({"outcome": "error", "message": "the end", "max_attempts": 1}, "error_handled"),
}
UNHANDLED: dict[str, tuple[dict[str, Any], str]] = {
    "a success": ({"outcome": "complete"}, "completed"),
    "a snooze": ({"outcome": "snooze", "seconds": HOUR}, "scheduled"),
    "a cancellation": ({"outcome": "cancel", "message": "why"}, "cancelled"),
}


def _handled_by(side: Side, inserting: Side, on_error: str) -> dict[str, tuple[Row, list[str]]]:
    """Each of these jobs' rows and the marks of the handler."""
    kinds = {
        "an unknown kind": ({}, NOBODYS),
        **{name: (args, KIND) for name, (args, _) in (HANDLED | UNHANDLED).items()},
    }
    ids = {
        name: inserting.insert(kind, args, queue=side.name, max_attempts=args.get("max_attempts", 25))
        for name, (args, kind) in kinds.items()
    }
    with side.working(
        KIND, queue=side.name, max_workers=20, on_error=on_error, retry_seconds=HOUR, job_timeout_seconds=0.5
    ) as client:
        for job_id in ids.values():
            client.events(1, job_id=job_id)
        told = client.marks()
    return {
        name: (
            inserting.get(job_id),
            [mark["mark"] for mark in told if mark["job_id"] == job_id and mark["mark"].endswith("_handled")],
        )
        for name, job_id in ids.items()
    }


@pytest.mark.scenario("kinds", "an error handler that cancels: the same rows on both sides")
def test_an_error_handler_that_cancels(river: Side, riverq_side: Side, adapter: str) -> None:
    theirs = _handled_by(river, riverq_side, "cancel")
    ours = _handled_by(riverq_side, river, "cancel")
    for name, (row, marks) in ours.items():
        other, other_marks = theirs[name]
        assert marks == other_marks, name
        same = ("state", "attempt", "max_attempts", "metadata", "args", "kind")
        assert {key: row[key] for key in same} == {key: other[key] for key in same}, name
        assert (row["finalized_at"] is None) == (other["finalized_at"] is None), name
        assert [each["attempt"] for each in row["errors"]] == [each["attempt"] for each in other["errors"]], name
    for name, (_, mark) in HANDLED.items():
        row, marks = ours[name]
        assert (row["state"], row["attempt"], marks) == ("cancelled", 1, [mark]), name
        assert row["finalized_at"] is not None
        assert theirs[name][0]["errors"][0]["error"] in row["errors"][0]["error"] or name == "a timeout"
    assert (ours["an unknown kind"][0]["state"], ours["an unknown kind"][1]) == ("cancelled", ["error_handled"])
    for name, (_, state) in UNHANDLED.items():
        assert (ours[name][0]["state"], ours[name][1]) == (state, []), name


@pytest.mark.scenario("kinds", "an error handler that only listens changes no row")
def test_an_error_handler_that_only_listens(river: Side, riverq_side: Side) -> None:
    theirs = _handled_by(river, riverq_side, "note")
    ours = _handled_by(riverq_side, river, "note")
    for name in HANDLED:
        expected = "discarded" if "last" in name else "retryable"
        assert theirs[name][0]["state"] == ours[name][0]["state"] == expected, name
    assert {name: marks for name, (_, marks) in theirs.items()} == {name: marks for name, (_, marks) in ours.items()}


@pytest.mark.scenario("kinds", "an error handler is not asked about a job that the other side cancelled, or a stop")
def test_an_error_handler_is_not_asked(giver: Side, taker: Side) -> None:
    jobs = {"cancelled": giver.insert(KIND, {"outcome": "wait"}), "stopped": giver.insert(KIND, {"outcome": "wait"})}
    client = taker.start(KIND, on_error="cancel")
    client.until_begun(*jobs.values())
    giver.cancel(jobs["cancelled"])
    client.events(1, kinds=["job_cancelled"], job_id=jobs["cancelled"])
    marks = client.marks()
    client.stop(cancel=True)
    assert {mark["mark"] for mark in marks} == {"began", "cancelled", "ended"}
    assert [giver.get(job_id)["state"] for job_id in jobs.values()] == ["cancelled", "available"]
    assert giver.get(jobs["stopped"])["errors"] == []


@pytest.mark.scenario("kinds", "a job that one side's error handler cancelled is retried by the other side")
def test_a_job_cancelled_by_the_handler_is_retried(giver: Side, taker: Side) -> None:
    job_id = taker.insert(KIND, {"acts": {"fail": {"outcome": "error", "message": "m"}}})
    with giver.working(KIND, script="fail", on_error="cancel") as client:
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    assert taker.get(job_id)["state"] == "cancelled"
    assert taker.retry(job_id)["state"] == "available"
    with taker.working(KIND) as client:
        client.events(1, kinds=["job_completed"], job_id=job_id)
    row = giver.get(job_id)
    assert (row["attempt"], len(row["errors"]), row["errors"][0]["attempt"]) == (2, 1, 1)
