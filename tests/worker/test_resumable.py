"""Which steps run in which attempt, and what the row keeps in between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from riverq.errors import JobCancel, JobSnooze
from riverq.worker.cancellation import CancelReason
from riverq.worker.context import RunContext
from riverq.worker.resumable import Steps as Books
from tests.worker.harness import NEVER, House, Raw, errors, run_context
from tests.worker.steps import BOOM, CURSOR, STEP, Steps, code, cursor_step, failure, kept, raising, setting, step


@pytest.fixture
def steps(house: House, style: str) -> Steps:
    return Steps(house, style)


def stored(after: object = None, cursors: object = None) -> str:
    """Metadata as an earlier attempt left it."""
    keys = {STEP: after, CURSOR: cursors}
    return json.dumps({key: value for key, value in keys.items() if value is not None})


# -- order, and what is skipped


async def test_steps_that_succeed_run_in_order_and_leave_nothing(steps: Steps) -> None:
    row = await steps.run([step("a"), cursor_step("b", setting(1)), step("c")])
    assert (row["state"], row["metadata"]) == ("completed", {})
    assert steps.ran == ["a", ("b", None), "c"]


async def test_the_next_attempt_skips_up_to_and_including_the_last_step_that_was_done(steps: Steps) -> None:
    row = await steps.run([step("a"), step("b"), step("c", BOOM), step("d")])
    assert steps.ran == ["a", "b", "c"]
    assert (failure(row), kept(row)) == ("boom", {STEP: "b"})
    row = await steps.go_on([step("a"), step("b"), step("c"), step("d")])
    assert steps.ran == ["c", "d"]
    assert row["state"] == "completed"


async def test_a_first_step_that_fails_leaves_nothing(steps: Steps) -> None:
    row = await steps.run([step("a", BOOM)])
    assert kept(row) == {}


async def test_skipped_steps_do_not_count_as_new(steps: Steps) -> None:
    row = await steps.run([step("a"), code(BOOM)], metadata=stored("a"))
    assert (steps.ran, kept(row)) == ([], {STEP: "a"})


async def test_names_of_any_letters_are_found_again(steps: Steps) -> None:
    name = 'a"b<é\u2028 \\'
    row = await steps.run([step(name), step("b", BOOM)])
    assert kept(row) == {STEP: name}
    await steps.go_on([step(name), step("b")])
    assert steps.ran == ["b"]


# -- cursors


async def test_a_step_goes_on_from_its_cursor(steps: Steps) -> None:
    row = await steps.run([step("a"), cursor_step("b", setting({"at": 5}, BOOM)), step("c")])
    assert kept(row) == {STEP: "a", CURSOR: {"b": {"at": 5}}}
    row = await steps.go_on([step("a"), cursor_step("b"), step("c", BOOM)])
    assert steps.ran == [("b", {"at": 5}), "c"]
    assert kept(row) == {STEP: "b", CURSOR: None}
    await steps.go_on([step("a"), cursor_step("b"), step("c")])
    assert steps.ran == ["c"]


async def test_the_cursor_of_the_very_first_step_is_kept(steps: Steps) -> None:
    row = await steps.run([cursor_step("a", setting(5, BOOM)), step("b")])
    assert kept(row) == {CURSOR: {"a": 5}}
    row = await steps.go_on([cursor_step("a", setting(7, BOOM)), step("b")])
    assert (steps.ran, kept(row)) == ([("a", 5)], {CURSOR: {"a": 7}})
    row = await steps.go_on([cursor_step("a"), step("b", BOOM)])
    assert (steps.ran, kept(row)) == ([("a", 7), "b"], {STEP: "a", CURSOR: None})


async def test_a_cursor_that_was_not_moved_stays(steps: Steps) -> None:
    row = await steps.run([step("a"), cursor_step("b", BOOM)], metadata=stored("a", {"b": 8}))
    assert kept(row) == {STEP: "a", CURSOR: {"b": 8}}


async def test_a_last_step_that_has_a_cursor_is_not_done_yet(steps: Steps) -> None:
    row = await steps.run([step("a"), cursor_step("b", setting(10, BOOM))], metadata=stored("b", {"b": 9}))
    assert (steps.ran, kept(row)) == ([("b", 9)], {STEP: "b", CURSOR: {"b": 10}})


async def test_such_a_step_is_skipped_where_it_takes_no_cursor_any_more(steps: Steps) -> None:
    await steps.run([step("a"), step("b"), step("c")], metadata=stored("b", {"b": 9}))
    assert steps.ran == ["c"]


async def test_cursors_of_others_are_kept_to_the_last_digit(steps: Steps) -> None:
    metadata = '{"river:resumable_step": "a", "river:resumable_cursor": {"old": {"n": 1.10, "big": 1e400, "s": "ü"}}}'
    await steps.run([step("a"), step("b"), step("c", BOOM)], metadata=metadata)
    [found] = steps.house.rows.sql("SELECT metadata #>> '{river:resumable_cursor,old}' AS old FROM JOB")
    assert found["old"] == '{"n": 1.10, "s": "ü", "big": 1' + "0" * 400 + "}"


async def test_null_is_a_cursor_too(steps: Steps) -> None:
    row = await steps.run([cursor_step("a", setting(None, BOOM))])
    assert kept(row) == {CURSOR: {"a": None}}
    await steps.go_on([cursor_step("a")])
    assert steps.ran == [("a", None)]


# -- how an attempt ends


@pytest.mark.parametrize(
    ("error", "state"), [(JobSnooze(NEVER), "scheduled"), (JobCancel("why"), "cancelled"), (ValueError(), "available")]
)
@pytest.mark.parametrize("where", ["in a step", "between steps"])
async def test_whatever_ends_the_attempt_keeps_how_far_it_came(
    steps: Steps, error: Exception, state: str, where: str
) -> None:
    end = step("c", raising(error)) if where == "in a step" else code(raising(error))
    row = await steps.run([step("a"), cursor_step("b"), end], metadata=stored(cursors={"b": 1}))
    assert (row["state"], kept(row)) == (state, {STEP: "b", CURSOR: None})


async def test_a_step_that_failed_fails_the_job_though_the_worker_goes_on(house: House, style: str) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise ValueError("boom")

    def work(job: Raw) -> None:
        job.step("a", ran.append, "a")
        with pytest.raises(ValueError, match="boom"):
            job.step("b", fail)
        job.step("c", ran.append, "c")
        job.cursor_step("d", lambda _: ran.append("d"))
        ran.append("code")

    async def work_async(job: Raw) -> None:
        work(job)

    if style == "def":
        house.workers.work(kind="echo")(work)
    else:
        house.workers.work(kind="echo")(work_async)
    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert (failure(row), kept(row), ran) == ("boom", {STEP: "a"}, ["a", "code"])


async def test_what_the_worker_raises_itself_comes_first(steps: Steps) -> None:
    def swallow(job: Raw, _: object) -> None:
        with pytest.raises(ValueError, match="in a step"):
            job.step("b", fail)
        raise ValueError("boom")

    def fail() -> None:
        raise ValueError("in a step")

    row = await steps.run([step("a"), code(swallow)])
    assert (failure(row), kept(row)) == ("boom", {STEP: "a"})


# -- success leaves nothing to resume


async def test_success_clears_what_was_kept(steps: Steps) -> None:
    await steps.run([step("a"), cursor_step("b", setting(1, BOOM))])
    row = await steps.go_on([step("a"), cursor_step("b")])
    assert (row["state"], kept(row)) == ("completed", {STEP: None, CURSOR: None})
    await steps.go_on([step("a"), cursor_step("b", BOOM)])
    assert steps.ran == ["a", ("b", None)], "a job retried by hand begins anew"


async def test_only_keys_that_are_there_are_cleared(steps: Steps) -> None:
    row = await steps.run([step("a"), step("b")], metadata=stored("a"))
    assert row["metadata"] == {STEP: None}


@pytest.mark.parametrize("metadata", ["{}", '{"x": "river:resumable"}', stored(cursors=None)])
def test_a_plain_success_stays_plain(metadata: str) -> None:
    context = run_context(metadata=metadata)
    context.worker_begins(0.0)
    context.steps.step("a", lambda: None)
    assert context.ended(None) is None
    assert context.encoded_metadata() is None


def test_a_job_without_steps_costs_nothing() -> None:
    context = run_context(metadata='{"output": [1]}')
    context.worker_begins(0.0)
    assert context.ended(None) is None
    assert context._steps is None


def test_cleared_is_absent() -> None:
    books = Books(f'{{"{STEP}": null, "{CURSOR}": null}}')
    assert books.begin("a", has_cursor=False)
    books.finished()
    assert books.cleared() == {}
    assert books.left_off() == {STEP: '"a"'}


# -- what an earlier attempt left does not fit


async def test_a_step_that_is_not_found_again(steps: Steps) -> None:
    row = await steps.run([step("x"), step("y")], metadata=stored("a"))
    assert errors(row) == ['river: resumable step "a" not found in Worker']
    assert (steps.ran, kept(row)) == ([], {STEP: "a"})


async def test_is_no_error_of_its_own_where_the_worker_has_one(steps: Steps) -> None:
    row = await steps.run([code(BOOM)], metadata=stored("a"))
    assert (failure(row), kept(row)) == ("boom", {STEP: "a"})


async def test_a_cursor_whose_step_is_not_found_again(steps: Steps) -> None:
    row = await steps.run([step("x")], metadata=stored(cursors={"b": 1, "a": 2}))
    assert failure(row) == 'river: resumable cursor step "a" not found in Worker'
    assert (steps.ran, kept(row)) == (["x"], {CURSOR: {"a": 2, "b": 1}})


async def test_a_cursor_whose_step_takes_none_any_more(steps: Steps) -> None:
    row = await steps.run([step("a")], metadata=stored(cursors={"a": 2}))
    assert failure(row) == 'river: resumable cursor step "a" requires a cursor step (job.cursor_step)'
    assert (steps.ran, kept(row)) == ([], {CURSOR: {"a": 2}})


async def test_no_step_is_kept_as_done_in_front_of_a_cursor_that_waits(steps: Steps) -> None:
    row = await steps.run([step("x"), step("y", BOOM), cursor_step("a")], metadata=stored(cursors={"a": 2}))
    assert kept(row) == {CURSOR: {"a": 2}}
    row = await steps.go_on([step("x"), cursor_step("a", setting(3, BOOM))])
    assert (steps.ran, kept(row)) == (["x", ("a", 2)], {STEP: "x", CURSOR: {"a": 3}})


async def test_nor_is_a_cursor_dropped_then(steps: Steps) -> None:
    row = await steps.run([cursor_step("new", setting(1, BOOM)), cursor_step("a")], metadata=stored(cursors={"a": 2}))
    assert kept(row) == {CURSOR: {"a": 2, "new": 1}}


async def test_not_even_that_of_a_step_that_is_done(steps: Steps) -> None:
    """Nothing says that it is done, so it runs again, and should not begin anew."""
    row = await steps.run([cursor_step("a", setting(3)), step("x", BOOM)], metadata=stored(cursors={"a": 2, "b": 1}))
    assert kept(row) == {CURSOR: {"a": 3, "b": 1}}


@pytest.mark.parametrize("cursors", ["[]", "[1]"])
async def test_cursors_in_a_list_fail_the_attempt_before_the_worker_begins(steps: Steps, cursors: str) -> None:
    begun: list[Raw] = []
    row = await steps.run([code(lambda job, _: begun.append(job))], metadata=f'{{"{CURSOR}": {cursors}}}')
    assert begun == []
    assert failure(row).startswith("river: expected the resumable cursors to be a JSON object, got: [")
    assert kept(row) == {CURSOR: json.loads(cursors)}


@pytest.mark.parametrize("value", ["5", "true", "{}", "[]", '""', "null", '{"x": 1}'])
def test_a_last_step_that_is_no_text_counts_for_nothing(value: str) -> None:
    assert Books(f'{{"{STEP}": {value}}}').begin("a", has_cursor=False)


@pytest.mark.parametrize("value", ["5", "true", "{}", '"text"', "null"])
def test_cursors_that_are_no_object_count_for_nothing(value: str) -> None:
    books = Books(f'{{"{CURSOR}": {value}}}')
    assert books.begin("a", has_cursor=True)
    assert books.cursor("a") is None
    books.finished()
    assert books.left_off() == {STEP: '"a"'}


@pytest.mark.parametrize("metadata", ["[]", '["river:resumable_step"]', '"river:resumable_step"'])
def test_metadata_that_is_no_object_has_nothing_to_resume(metadata: str) -> None:
    assert Books(metadata).begin("a", has_cursor=False)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"a":1,"river:resumable_step":"s","river:resumable_cursor":{"c":[1,{"x":"}"}],"d":null}}',
        '{ "a" : "\\"r",\n "river:resumable_step": "s", "river:resumable_cursor"\t: { "c" : [1,{"x":"}"}],"d":null } }',
    ],
)
def test_metadata_is_read_however_it_is_spaced(metadata: str) -> None:
    books = Books(metadata)
    assert not books.begin("s", has_cursor=False)
    assert (books.cursor("c"), books.cursor("d"), books.cursor("e")) == ('[1,{"x":"}"}]', "null", None)


# -- told to end


async def test_an_interrupted_job_keeps_how_far_it_came(house: House, style: str) -> None:
    began: list[RunContext] = []

    def stop(job: Raw) -> None:
        began[0].cancelled.set(CancelReason.STOPPING)
        job.cancelled.raise_if_set()

    steps = Steps(house, style)
    steps.ops = [step("a"), cursor_step("b", setting(3, lambda job, _: stop(job)))]
    steps._register()
    [job_id] = house.rows.insert()
    await house.start(house.completer)
    began.extend(await house.claim())
    await house.run_all(list(began))
    row = house.rows.get(job_id)
    assert (row["state"], row["attempt"], row["errors"]) == ("available", 0, None)
    assert kept(row) == {STEP: "a", CURSOR: {"b": 3}}


def test_a_thread_that_was_left_at_work_is_let_be() -> None:
    context = run_context(metadata=stored("a"))
    context.worker_begins(0.0)
    context.thread_id = 7
    assert context.ended(None) is None
    assert context.encoded_metadata() is None


async def test_no_step_begins_after_the_job_has_ended(house: House) -> None:
    jobs: list[Raw] = []
    house.workers.work(kind="echo")(_keep(jobs))
    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    assert house.rows.get(job_id)["state"] == "completed"
    with pytest.raises(RuntimeError, match="begun after the job had ended"):
        jobs[0].step("late", print)


def _keep(jobs: list[Raw]) -> Any:
    def work(job: Raw) -> None:
        job.step("a", jobs.append, job)

    return work


def test_books_that_fail_do_not_cost_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    context = run_context()
    context.steps.step("a", lambda: None)
    monkeypatch.setattr(Books, "left_off", lambda _: 1 // 0)
    mistake = ValueError("the job's own")
    assert context.ended(mistake) is mistake
