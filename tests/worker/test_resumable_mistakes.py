"""Steps that are used as they cannot be: an error at once, in the first attempt already."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from riverq import ConfigError, StepCursor, UsageError
from riverq.worker.context import RunContext, enter_job, running_job
from tests.fix_database import EngineMaker
from tests.worker.harness import House, Raw, run_context
from tests.worker.steps import CURSOR, STEP, failure, kept

UNAWAITED = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


async def outcome(house: House, work: Callable[[Raw], Any], metadata: str = "{}") -> dict[str, Any]:
    """The row after one attempt of this worker."""
    house.workers.work(kind="echo")(work)
    [job_id] = house.rows.insert(metadata=metadata)
    await house.start(house.completer)
    await house.run_all()
    return house.rows.get(job_id)


async def nothing() -> None:
    pass


# -- names and order


async def test_a_name_twice(house: House) -> None:
    def work(job: Raw) -> None:
        job.step("a", print)
        job.step("a", print)

    row = await outcome(house, work)
    assert (failure(row), kept(row)) == ('river: duplicate resumable step name "a"', {STEP: "a"})


async def test_a_name_twice_though_both_are_skipped(house: House) -> None:
    def work(job: Raw) -> None:
        job.step("a", print)
        job.cursor_step("a", print)
        job.step("b", print)

    row = await outcome(house, work, f'{{"{STEP}": "b"}}')
    assert (failure(row), kept(row)) == ('river: duplicate resumable step name "a"', {STEP: "b"})


@pytest.mark.parametrize("name", ["", None, 7, "a\0b"])
def test_a_name_that_cannot_be_stored(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"step's name|step name"):
        run_context().steps.step(name, print)


@pytest.mark.parametrize("swallows", [True, False])
async def test_a_step_within_a_step(house: House, swallows: bool) -> None:
    ran: list[str] = []

    def outer(job: Raw) -> None:
        try:
            job.step("inner", ran.append, "inner")
        except UsageError:
            if not swallows:
                raise

    def work(job: Raw) -> None:
        job.step("a", ran.append, "a")
        job.step("outer", outer, job)
        job.step("b", ran.append, "b")

    row = await outcome(house, work)
    assert failure(row).startswith('river: resumable steps cannot be nested: "inner" was begun while "outer" was under')
    assert (kept(row), ran) == ({STEP: "a"}, ["a"])


# -- what is never awaited


@UNAWAITED
async def test_a_last_step_that_is_not_awaited(house: House) -> None:
    async def work(job: Raw) -> None:
        await job.step("a", nothing)
        job.step("b", nothing)  # type: ignore[unused-coroutine]

    row = await outcome(house, work)
    gc.collect()
    assert failure(row) == 'river: resumable step "b" was begun and never ended (await it)'
    assert kept(row) == {STEP: "a"}


@UNAWAITED
async def test_a_step_that_is_not_awaited_before_the_next(house: House) -> None:
    async def work(job: Raw) -> None:
        job.step("a", nothing)  # type: ignore[unused-coroutine]
        await job.step("b", nothing)

    row = await outcome(house, work)
    gc.collect()
    assert '"b" was begun while "a" was under way (await each step' in failure(row)


@UNAWAITED
def test_python_itself_warns_of_it() -> None:
    context = run_context()
    context.is_async = True
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        del [context.steps.step("a", nothing)][0]


@UNAWAITED
async def test_steps_side_by_side(house: House) -> None:
    async def work(job: Raw) -> None:
        await asyncio.gather(job.step("a", nothing), job.step("b", nothing))

    assert "steps cannot be nested" in failure(await outcome(house, work))


@UNAWAITED
async def test_a_save_that_is_not_awaited(house: House, make_engine: EngineMaker) -> None:
    engine: Any = make_engine("psycopg_async")

    async def body(job: Raw) -> None:
        async with engine.begin() as conn:
            job.save_step(conn)

    async def work(job: Raw) -> None:
        await job.step("a", body, job)

    row = await outcome(house, work)
    gc.collect()
    assert failure(row) == 'river: resumable step "a" was saved without waiting (await what saves it)'
    assert kept(row) == {}


async def test_an_async_body_in_a_def_worker(house: House) -> None:
    def work(job: Raw) -> None:
        job.step("a", nothing)  # type: ignore[unused-coroutine]

    row = await outcome(house, work)
    assert (
        failure(row) == 'river: resumable step "a" is async def, and its worker is not (declare the worker async def)'
    )


@pytest.mark.parametrize("stored", ["{}", f'{{"{STEP}": "c"}}'])
async def test_every_step_of_an_async_worker_may_be_awaited_run_or_skipped(house: House, stored: str) -> None:
    """What is awaited in one attempt must not fail in another only because the step is skipped there."""
    ran: list[str] = []

    async def work(job: Raw) -> None:
        await job.step("a", ran.append, "a")  # type: ignore[misc]
        await asyncio.create_task(job.step("b", lambda: nothing()))  # noqa: PLW0108  # a body that does not show what it is
        job.step("c", ran.append, "c")
        await asyncio.create_task(job.step("d", ran.append, "d"))  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as group:
            group.create_task(job.step("e", nothing))

    row = await outcome(house, work, stored)
    assert row["state"] == "completed"
    assert ran == (["a", "c", "d"] if stored == "{}" else ["d"])


# -- out of place


def test_saving_outside_a_step() -> None:
    with pytest.raises(UsageError, match="no step under way"):
        run_context().steps.save(object())


async def test_a_cursor_out_of_its_step(house: House) -> None:
    kept_cursor: list[StepCursor] = []

    def work(job: Raw) -> None:
        job.cursor_step("a", kept_cursor.append)
        with pytest.raises(UsageError, match='step "a" not under way'):
            kept_cursor[0].set(1)
        job.step("b", late)

    def late() -> None:
        with pytest.raises(UsageError, match='step "a" not under way'):
            kept_cursor[0].save(1, session=None)  # type: ignore[call-overload]

    assert (await outcome(house, work))["state"] == "completed"


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), "a\0b", object(), {1: 2}])
async def test_a_cursor_that_is_not_json_leaves_the_one_before(house: House, value: object) -> None:
    def body(cursor: StepCursor) -> None:
        cursor.set([1])
        cursor.set(value)

    def work(job: Raw) -> None:
        job.cursor_step("a", body)

    row = await outcome(house, work)
    assert "cursor" in failure(row)
    assert kept(row) == {CURSOR: {"a": [1]}}


def test_a_cursor_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverq.worker.step_runner.CURSOR_LIMIT", 10)
    cursors: list[StepCursor] = []

    def body(cursor: StepCursor) -> None:
        cursor.set("12345678")
        with pytest.raises(ConfigError, match="at most 10 bytes"):
            cursor.set("ü2345678")
        cursors.append(cursor)

    run_context().steps.cursor_step("a", body)
    assert cursors


def test_a_cursor_that_python_cannot_read() -> None:
    context = run_context(metadata=f'{{"{CURSOR}": {{"a": {"1" * 5000}}}}}')
    with pytest.raises(UsageError, match='cannot read the resumable cursor of step "a"'):
        context.steps.cursor_step("a", lambda cursor: print(cursor.value))


# -- what others ask of a running job


def test_the_recorded_output_is_known_as_it_will_be_stored() -> None:
    context = run_context()
    assert context.recorded_output() is None
    context.set_metadata("x", 1)
    assert context.recorded_output() is None
    context.record_output({"a": "first"})
    context.record_output({"b": "<last>"})
    assert context.recorded_output() == r'{"b":"\u003clast\u003e"}'


async def test_a_job_is_found_by_its_own_code_only() -> None:
    own_run = run_context()
    assert running_job("me", own_run.claimed.id) is None
    enter_job("me", own_run)
    assert running_job("me", own_run.claimed.id) is own_run
    assert running_job("me", own_run.claimed.id + 1) is None
    assert running_job("another client", own_run.claimed.id) is None
    assert await asyncio.create_task(_look(own_run.claimed.id)) is own_run
    enter_job("me")
    assert running_job("me", own_run.claimed.id) is None


async def _look(job_id: int) -> RunContext | None:
    return running_job("me", job_id)


async def test_a_job_is_found_in_its_worker(house: House, style: str) -> None:
    found: list[Any] = []

    def work(job: Raw) -> None:
        job.record_output(1)
        run = running_job(house.ctx.client_id, job.id)
        found.append(run and run.recorded_output())

    async def work_async(job: Raw) -> None:
        work(job)

    await outcome(house, work if style == "def" else work_async)
    assert found == ["1"]
    assert running_job(house.ctx.client_id, 1) is None
