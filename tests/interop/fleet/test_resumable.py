"""Resumable jobs begun in one language and gone on with in the other: steps, cursors, and what is stored between."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from tests.interop.conftest import ProcessMaker
from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import until

KIND = "oracle_outcome"
HOUR = 3600.0
STEP, CURSORS = "river:resumable_step", "river:resumable_cursor"
FAIL = {"outcome": "error", "message": "not now"}


def _step(name: str, **acts: Any) -> dict[str, Any]:
    return {"name": name, "acts": acts}


def _cursor_step(name: str, **acts: Any) -> dict[str, Any]:
    return {"name": name, "cursor": True, "acts": acts}


def _run(side: Side, job_id: int, script: str = "", **config: Any) -> list[dict[str, Any]]:
    """One attempt; the steps that were entered, with their cursors."""
    with side.working(KIND, script=script, retry_seconds=HOUR, **config) as client:
        client.events(1, job_id=job_id)
        return [mark["detail"] for mark in client.marks(mark="step", job_id=job_id)]


def _names(steps: list[dict[str, Any]]) -> list[str]:
    return [step["name"] for step in steps]


def _stored(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row["metadata"].items() if key.startswith("river:")}


# -- steps


@pytest.mark.scenario("resumable", "steps that one side has done are skipped by the other, back and forth")
def test_steps_are_skipped_by_the_other_side(giver: Side, taker: Side, adapter: str) -> None:
    steps = [_step("a"), _step("é🦫", first=FAIL), _step("c"), _step("d", second=FAIL), _step("e", third=FAIL)]
    job_id = giver.insert(KIND, {"steps": steps}, metadata={"kept": 1})
    went = []
    for side, other, script in (
        (giver, taker, "first"),
        (taker, giver, "second"),
        (giver, taker, "third"),
        (taker, giver, ""),
    ):
        entered = _names(_run(side, job_id, script))
        row = other.get(job_id)
        went.append((entered, row["state"], row["metadata"].get(STEP)))
        if row["state"] == "retryable":
            other.retry(job_id)
    assert went[:3] == [
        (["a", "é🦫"], "retryable", "a"),
        (["é🦫", "c", "d"], "retryable", "c"),
        (["d", "e"], "retryable", "d"),
    ]
    assert went[3][:2] == (["e"], "completed")
    assert giver.get(job_id)["metadata"]["kept"] == 1
    assert [error["error"].endswith("not now") for error in giver.get(job_id)["errors"]] == [True] * 3


@pytest.mark.scenario("resumable", "nothing is stored where no step is done")
def test_nothing_is_stored_where_nothing_is_done(giver: Side, taker: Side) -> None:
    job_id = giver.insert(KIND, {"steps": [_step("a", first=FAIL), _step("b")]}, metadata={"kept": 1})
    assert _names(_run(giver, job_id, "first")) == ["a"]
    assert taker.get(job_id)["metadata"] == {"kept": 1}
    taker.retry(job_id)
    assert _names(_run(taker, job_id)) == ["a", "b"]
    assert giver.get(job_id)["metadata"] == {"kept": 1}


LEAVING: dict[str, tuple[dict[str, Any], str]] = {
    "a snooze": ({"outcome": "snooze", "seconds": HOUR}, "scheduled"),
    "a cancellation": ({"outcome": "cancel", "message": "enough"}, "cancelled"),
    "a timeout": ({"outcome": "wait"}, "retryable"),
    "the last attempt": (FAIL, "discarded"),
}


@pytest.mark.parametrize(
    "how",
    [pytest.param(how, marks=pytest.mark.scenario("resumable", f"left off by {how}, gone on with")) for how in LEAVING],
)
def test_left_off_and_gone_on_with(giver: Side, taker: Side, adapter: str, how: str) -> None:
    act, state = LEAVING[how]
    steps = [_step("a"), _cursor_step("b", begin={"set_cursor": {"row": 7}, **act}), _step("c")]
    job_id = taker.insert(KIND, {"steps": steps}, max_attempts=1 if how == "the last attempt" else 25)
    limit = {"job_timeout_seconds": 2} if how == "a timeout" else {}
    assert _names(_run(giver, job_id, "begin", **limit)) == ["a", "b"]
    row = taker.get(job_id)
    assert (row["state"], _stored(row)) == (state, {STEP: "a", CURSORS: {"b": {"row": 7}}})
    assert taker.retry(job_id)["state"] == "available"
    assert _run(taker, job_id) == [{"name": "b", "cursor": {"row": 7}}, {"name": "c"}]
    assert giver.get(job_id)["state"] == "completed"


@pytest.mark.scenario("resumable", "left off by a panic: in Go nothing is kept, in riverq all is")
def test_left_off_by_a_panic(giver: Side, taker: Side, adapter: str) -> None:
    steps = [_step("a"), _cursor_step("b", begin={"set_cursor": 1, "outcome": "panic", "message": "m"})]
    job_id = taker.insert(KIND, {"steps": steps})
    assert _names(_run(giver, job_id, "begin")) == ["a", "b"]
    keeps = giver.name == "riverq"
    assert _stored(taker.retry(job_id)) == ({STEP: "a", CURSORS: {"b": 1}} if keeps else {})
    assert _run(taker, job_id)[-1] == {"name": "b", "cursor": 1 if keeps else None}


@pytest.mark.scenario("resumable", "left off by a stop, gone on with by the other side")
def test_left_off_by_a_stop(giver: Side, taker: Side, adapter: str) -> None:
    steps = [_step("a"), _cursor_step("b", begin={"set_cursor": [1, "é"], "outcome": "wait"}), _step("c")]
    job_id = taker.insert(KIND, {"steps": steps})
    client = giver.start(KIND, script="begin")
    until(lambda: len(client.marks(mark="step", job_id=job_id)) == 2, "the second step to be entered")
    assert [event["kind"] for event in client.stop(cancel=True)] == ["job_interrupted"]
    row = taker.get(job_id)
    assert (row["state"], row["attempt"], row["errors"]) == ("available", 0, [])
    assert _stored(row) == {STEP: "a", CURSORS: {"b": [1, "é"]}}
    assert _run(taker, job_id) == [{"name": "b", "cursor": [1, "é"]}, {"name": "c"}]
    assert giver.get(job_id)["state"] == "completed"


@pytest.mark.scenario(
    "resumable", "left off by a cancellation from the other side, which goes on with it after a retry"
)
def test_left_off_by_the_other_sides_cancellation(giver: Side, taker: Side, adapter: str) -> None:
    steps = [_step("a"), _cursor_step("b", begin={"set_cursor": "half", "outcome": "wait"}), _step("c")]
    job_id = taker.insert(KIND, {"steps": steps})
    with giver.working(KIND, script="begin") as client:
        until(lambda: len(client.marks(mark="step", job_id=job_id)) == 2, "the second step to be entered")
        assert taker.cancel(job_id)["state"] == "running"
        client.events(1, kinds=["job_cancelled"], job_id=job_id)
    assert _stored(taker.retry(job_id)) == {STEP: "a", CURSORS: {"b": "half"}}
    assert _run(taker, job_id) == [{"name": "b", "cursor": "half"}, {"name": "c"}]
    assert giver.get(job_id)["state"] == "completed"


# -- cursors

CURSOR_VALUES: tuple[Any, ...] = (
    {"page": 3, "é🦫": {"n": 2**53 + 1}},
    0,
    7,
    2**63,
    -(10**30),
    1.5,
    "",
    "é🦫 <&>\u2028",
    [],
    [1, [None]],
    {},
    False,
)


@pytest.mark.scenario("resumable", "cursors of every JSON type reach the other side as they are")
def test_cursors_of_every_type(fleet: Place, giver: Side, taker: Side, adapter: str) -> None:
    values = dict(enumerate(CURSOR_VALUES))
    ids = {
        number: giver.insert(KIND, {"steps": [_step("a"), _cursor_step("b", begin={"set_cursor": value, **FAIL})]})
        for number, value in values.items()
    }
    with giver.working(KIND, script="begin", retry_seconds=HOUR) as client:
        for job_id in ids.values():
            client.events(1, kinds=["job_failed"], job_id=job_id)
    for number, job_id in ids.items():
        assert _stored(taker.retry(job_id)) == {STEP: "a", CURSORS: {"b": values[number]}}
    # As texts, since to Python 1 is True and 1.0.
    assert fleet.scalars("SELECT id FROM {schema}.river_job WHERE " + SAME_CURSOR) == []
    with taker.working(KIND) as client:
        for number, job_id in ids.items():
            client.events(1, kinds=["job_completed"], job_id=job_id)
            [mark] = client.marks(mark="step", job_id=job_id)
            assert repr(mark["detail"]["cursor"]) == repr(values[number])


SAME_CURSOR = (
    f"metadata->'{CURSORS}'->'b' IS DISTINCT FROM jsonb_path_query_first(args, '$.steps[1].acts.begin.set_cursor')"
)


@pytest.mark.scenario("resumable", "a cursor set in the very first step, which fails")
def test_a_cursor_in_the_very_first_step(giver: Side, taker: Side, adapter: str) -> None:
    steps = [
        _cursor_step("a", first={"set_cursor": {"n": 1}, **FAIL}, second={"set_cursor": {"n": 2}, **FAIL}),
        _cursor_step("b", third={"set_cursor": "b's", **FAIL}),
    ]
    job_id = taker.insert(KIND, {"steps": steps})
    went = []
    for side, other, script in (
        (giver, taker, "first"),
        (taker, giver, "second"),
        (giver, taker, "third"),
        (taker, giver, ""),
    ):
        entered = _run(side, job_id, script)
        went.append((entered, _stored(other.get(job_id))))
        if script:
            other.retry(job_id)
    assert went[:3] == [
        ([{"name": "a", "cursor": None}], {CURSORS: {"a": {"n": 1}}}),
        ([{"name": "a", "cursor": {"n": 1}}], {CURSORS: {"a": {"n": 2}}}),
        ([{"name": "a", "cursor": {"n": 2}}, {"name": "b", "cursor": None}], {STEP: "a", CURSORS: {"b": "b's"}}),
    ]
    assert went[3][0] == [{"name": "b", "cursor": "b's"}]
    assert giver.get(job_id)["state"] == "completed"


@pytest.mark.scenario("resumable", "a cursor is forgotten when its step is done")
def test_a_cursor_is_forgotten_when_its_step_is_done(giver: Side, taker: Side) -> None:
    steps = [_step("a"), _cursor_step("b", first={"set_cursor": 1, **FAIL}), _step("c", second=FAIL)]
    job_id = giver.insert(KIND, {"steps": steps})
    _run(giver, job_id, "first")
    taker.retry(job_id)
    assert _run(taker, job_id, "second") == [{"name": "b", "cursor": 1}, {"name": "c"}]
    assert _stored(giver.retry(job_id)) == {STEP: "b", CURSORS: None}
    assert _names(_run(giver, job_id)) == ["c"]


# -- saved in a transaction of the worker's


@pytest.mark.scenario("resumable", "a step saved in a committed transaction is done, though its attempt panics")
def test_a_step_saved_in_a_transaction(giver: Side, taker: Side, adapter: str) -> None:
    steps = [_step("a"), _step("b", begin={"tx": "commit", "outcome": "panic", "message": "m"}), _step("c")]
    job_id = taker.insert(KIND, {"steps": steps})
    assert _names(_run(giver, job_id, "begin")) == ["a", "b"]
    assert _stored(taker.retry(job_id)) == {STEP: "b", CURSORS: None}
    assert _names(_run(taker, job_id)) == ["c"]


@pytest.mark.scenario("resumable", "a cursor saved in a committed transaction, then its step panics")
def test_a_cursor_saved_in_a_transaction(giver: Side, taker: Side, adapter: str) -> None:
    save = {"tx": "commit", "set_cursor": {"n": 2**60}, "outcome": "panic", "message": "m"}
    job_id = taker.insert(KIND, {"steps": [_cursor_step("a", begin=save), _step("b")]})
    assert _names(_run(giver, job_id, "begin")) == ["a"]
    assert _stored(taker.retry(job_id)) == {STEP: "a", CURSORS: {"a": {"n": 2**60}}}
    assert _run(taker, job_id) == [{"name": "a", "cursor": {"n": 2**60}}, {"name": "b"}]


@pytest.mark.scenario("resumable", "a step or cursor whose transaction is rolled back is not done")
@pytest.mark.parametrize("cursor", [{}, {"set_cursor": 5}], ids=["step", "cursor"])
def test_a_step_whose_transaction_is_rolled_back(
    giver: Side, taker: Side, adapter: str, cursor: dict[str, Any]
) -> None:
    """Go then forgets the steps before it, too; they run again. riverq hears of the rollback and keeps them."""
    make = _cursor_step if cursor else _step
    steps = [_step("a"), make("b", begin={"tx": "rollback", **cursor, **FAIL}), _step("c")]
    job_id = taker.insert(KIND, {"steps": steps})
    assert _names(_run(giver, job_id, "begin")) == ["a", "b"]
    kept = {} if giver.name == "river" else {STEP: "a"}
    row = taker.retry(job_id)
    assert {key: value for key, value in _stored(row).items() if value is not None} == kept
    assert _names(_run(taker, job_id)) == (["b", "c"] if kept else ["a", "b", "c"])


@pytest.mark.scenario("resumable", "what a killed process had saved is gone on with by the other side")
def test_a_killed_processs_steps(fleet: Place, giver: Side, taker: Side, process_of: ProcessMaker) -> None:
    save = {"tx": "commit", "set_cursor": ["half"], "outcome": "hold"}
    steps = [_step("a", begin={"tx": "commit"}), _step("b"), _cursor_step("c", begin=save), _step("d")]
    job_id = taker.insert(KIND, {"steps": steps})
    dying = process_of(giver.name)
    client = dying.start(KIND, script="begin", no_leader=True)
    until(lambda: CURSORS in taker.get(job_id)["metadata"], "the first cursor to be saved")
    until(lambda: taker.get(job_id)["metadata"][CURSORS] is not None, "the cursor to be saved")
    assert len(client.marks(mark="step")) == 3
    dying.process.kill()
    _give_back(fleet, job_id)
    assert _run(taker, job_id) == [{"name": "c", "cursor": ["half"]}, {"name": "d"}]


def _give_back(place: Place, job_id: int) -> None:
    """As a rescuer does, which would take its time."""
    with place.engine.begin() as connection:
        statement = f"UPDATE \"{place.schema}\".river_job SET state = 'available' WHERE id = :id AND state = 'running'"
        assert connection.execute(sa.text(statement), {"id": job_id}).rowcount == 1


# -- after success


@pytest.mark.scenario("resumable", "a completed job that is retried by hand, after Go and after riverq")
@pytest.mark.parametrize("end", [{}, {"end": {"outcome": "complete_tx"}}], ids=["complete", "complete_tx"])
def test_a_completed_job_that_is_retried(giver: Side, taker: Side, adapter: str, end: dict[str, Any]) -> None:
    """Go leaves the last stored step, and a next run skips up to it. riverq clears it, and all steps run."""
    steps = [_step("a"), _step("b", begin=FAIL), _step("c", **end)]
    job_id = giver.insert(KIND, {"steps": steps})
    _run(taker, job_id, "begin")
    giver.retry(job_id)
    assert _names(_run(giver, job_id, "end")) == ["b", "c"]
    row = taker.get(job_id)
    assert row["state"] == "completed"
    assert _stored(row) == {STEP: "a" if giver.name == "river" else None}
    assert taker.retry(job_id)["state"] == "available"
    assert _names(_run(taker, job_id)) == (["b", "c"] if giver.name == "river" else ["a", "b", "c"])


# -- what does not fit

A, B = _step("a"), _step("b")
A_CURSOR = _cursor_step("a")
MISFITS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "a name that comes twice": ({}, [A, B, A], 'river: duplicate resumable step name "a"'),
    "a name that comes twice and is skipped": ({STEP: "b"}, [A, A, B], 'river: duplicate resumable step name "a"'),
    "a step that no worker has": ({STEP: "gone"}, [A, B], 'river: resumable step "gone" not found in Worker'),
    "a step, and no steps": ({STEP: "gone"}, [], 'river: resumable step "gone" not found in Worker'),
    "a cursor whose step no worker has": (
        {CURSORS: {"gone": 1, "z": 2}},
        [A, B],
        'river: resumable cursor step "gone" not found in Worker',
    ),
    "a cursor of what is a plain step now": (
        {CURSORS: {"a": 1}},
        [A],
        'river: resumable cursor step "a" requires a cursor step',
    ),
    "a step saved in front of a cursor": (
        {CURSORS: {"b": 1}},
        [_step("a", run={"tx": "commit"}), _cursor_step("b")],
        'river: resumable checkpoint cannot precede saved cursor step "b"',
    ),
    "cursors that are a list": ({CURSORS: []}, [A], "river: "),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.scenario("resumable", f"refused: {what}")) for what in MISFITS]
)
def test_what_does_not_fit_fails_the_attempt(river: Side, riverq_side: Side, what: str) -> None:
    """With River's text on both sides, and nothing stored is lost."""
    metadata, steps, text = MISFITS[what]
    rows, entered = [], []
    for side, other in ((river, riverq_side), (riverq_side, river)):
        job_id = other.insert(KIND, {"steps": steps}, metadata=metadata)
        entered.append(_run(side, job_id, "run"))
        rows.append(other.get(job_id))
    assert [row["state"] for row in rows] == ["retryable"] * 2
    for row in rows:
        assert row["errors"][0]["error"].startswith(text)
    assert entered[0] == entered[1]
    assert rows[0]["metadata"] == rows[1]["metadata"]


AS_NOTHING: tuple[dict[str, Any], ...] = (
    {STEP: None, CURSORS: None},
    {STEP: 5},
    {STEP: ""},
    {STEP: ["a"]},
    {CURSORS: {}},
    {CURSORS: "text"},
    {CURSORS: 5},
    {CURSORS: True},
)


@pytest.mark.scenario("resumable", "what is stored in another shape reads as nothing, on both sides")
def test_what_reads_as_nothing(giver: Side, taker: Side, adapter: str) -> None:
    steps = [A_CURSOR, B]
    ids = [giver.insert(KIND, {"steps": steps}, metadata=metadata) for metadata in AS_NOTHING]
    with taker.working(KIND) as client:
        for job_id in ids:
            client.events(1, kinds=["job_completed"], job_id=job_id)
            marks = client.marks(mark="step", job_id=job_id)
            assert [mark["detail"] for mark in marks] == [{"name": "a", "cursor": None}, {"name": "b"}]
