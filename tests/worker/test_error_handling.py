from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import riverq
from riverq import ErrorResult, Job, JobCancel, JobDiscard, JobSnooze, JobTimeoutError
from riverq.errors import UnknownJobKindError
from riverq.job import JobRow
from riverq.registry import NO_TIMEOUT
from riverq.worker.cancellation import CancelReason
from riverq.worker.context import refuse_in_own_job
from tests.fix_database import EngineMaker
from tests.worker.handlers import Told, handled_by, raising
from tests.worker.harness import House, Raw, errors, one, register


@pytest.fixture(params=["async def handler", "def handler"])
def told(request: pytest.FixtureRequest, house: House) -> Told:
    told = Told(request.param.removesuffix(" handler"))
    handled_by(house, told)
    return told


async def test_it_sees_the_row_as_claimed_and_the_error_where_it_was_raised(
    house: House, told: Told, style: str
) -> None:
    register(house, style, raising(ValueError("it broke")))
    row = await one(house, args='{"a": 1}', metadata='{"m": 2}', attempt=3)
    [(seen, error)] = told.calls
    assert (seen.id, seen.attempt, seen.state, seen.args, seen.metadata) == (
        row["id"],
        4,
        "running",
        {"a": 1},
        {"m": 2},
    )
    assert seen.attempted_by == ("c1",)
    assert (str(error), error.__traceback__ is None) == ("it broke", False)
    assert (row["state"], errors(row)) == ("available", ["ValueError: it broke"])
    assert told.threads == [told.handle_error == told._handle_async]


async def test_it_may_cancel_the_job(house: House, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    told.answer = lambda _: ErrorResult.CANCEL

    def work(job: Raw) -> None:
        job.record_output("half")
        raise ValueError("it broke")

    register(house, "async def", work)
    row = await one(house)
    assert (row["state"], row["attempt"], row["metadata"]) == ("cancelled", 1, {"output": "half"})
    assert row["finalized_at"] is not None
    assert errors(row) == ["ValueError: it broke"]
    assert "in work" in row["errors"][0]["trace"]
    assert "Attempt failed, to become cancelled" in caplog.text
    assert (await one(house, max_attempts=1))["state"] == "cancelled"  # rather than discarded


async def test_no_answer_and_continue_leave_the_job_to_its_retries(house: House, told: Told) -> None:
    register(house, "async def", raising(ValueError("x")))
    for answer in (None, ErrorResult.CONTINUE, "continue"):
        told.answer = lambda _, answer=answer: answer  # type: ignore[misc]  # the default binds it
        assert (await one(house))["state"] == "available"
        assert (await one(house, max_attempts=1))["state"] == "discarded"
    told.answer = lambda _: "cancel"
    assert (await one(house))["state"] == "cancelled"


@riverq.job_args("typed")
@dataclass
class Typed:
    count: int


async def test_it_hears_of_unknown_kinds_args_that_do_not_fit_and_timeouts(house: House, told: Told) -> None:
    told.answer = lambda error: ErrorResult.CANCEL if isinstance(error, UnknownJobKindError) else None

    @house.workers.work
    async def typed(job: Job[Typed]) -> None: ...

    @house.workers.work(kind="echo", timeout=timedelta(milliseconds=1))
    async def slow(job: Raw) -> None:
        await asyncio.sleep(3600)

    unknown = await one(house, kind="nobody_knows")
    undecodable = await one(house, kind="typed", args='{"count": "many"}')
    late = await one(house)
    kinds = [UnknownJobKindError, riverq.ArgsDecodeError, JobTimeoutError]
    assert [isinstance(error, kind) for (_, error), kind in zip(told.calls, kinds, strict=True)] == [True] * 3
    assert [row["state"] for row in (unknown, undecodable, late)] == ["cancelled", "available", "available"]
    assert errors(unknown) == ["job kind is not registered in the client's Workers bundle: nobody_knows"]


async def test_it_hears_nothing_of_ends_that_are_no_failures(house: House, told: Told, style: str) -> None:
    ends: dict[str, BaseException | None] = {
        "completed": None,
        "scheduled": JobSnooze(timedelta(hours=1)),
        "cancelled": JobCancel("enough"),
        "discarded": JobDiscard("hopeless"),
    }

    def work(job: Raw) -> None:
        error = ends[job.args["end"]]
        if error is not None:
            raise error

    register(house, style, work)
    for end in ends:
        assert (await one(house, args=f'{{"end": "{end}"}}'))["state"] == end
    assert told.calls == []


async def test_it_hears_nothing_of_jobs_that_others_ended(house: House, told: Told) -> None:
    register(house, "async def", raising(ValueError("x")))
    await house.start(house.completer)
    reasons = [CancelReason.CANCELLED, CancelReason.STOPPING, CancelReason.LOST]
    house.rows.insert(count=len(reasons))
    contexts = await house.claim()
    for context, reason in zip(contexts, reasons, strict=True):
        context.cancelled.set(reason)
    house.rows.steal(contexts[2].run.job_id)
    await house.run_all(contexts)
    states = [house.rows.get(context.run.job_id)["state"] for context in contexts]
    assert states == ["cancelled", "available", "running"]
    assert told.calls == []


async def test_it_hears_nothing_where_only_the_database_knows_whether_the_attempt_failed(
    house: House, told: Told, make_engine: EngineMaker
) -> None:
    """A completion in a transaction, committed, rolled back, or refused because the run was lost."""
    told.answer = lambda _: ErrorResult.CANCEL
    engine: Any = make_engine("psycopg_async")

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        if job.args["end"] == "lost":
            house.rows.steal(job.id)
        async with engine.connect() as conn:
            await job.complete(session=conn)
            if job.args["end"] == "committed":
                await conn.commit()

    ends = {"committed": "completed", "rolled back": "available", "lost": "running"}
    assert {end: (await one(house, args=f'{{"end": "{end}"}}'))["state"] for end in ends} == ends
    assert told.calls == []


async def test_it_hears_of_an_error_after_a_completion_and_cannot_undo_that(
    house: House, told: Told, make_engine: EngineMaker
) -> None:
    told.answer = lambda _: ErrorResult.CANCEL
    engine: Any = make_engine("psycopg_async")

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        async with engine.connect() as conn:
            await job.complete(session=conn)
            if job.args["commit"]:
                await conn.commit()
        raise ValueError("afterwards")

    assert (await one(house, args='{"commit": true}'))["state"] == "completed"
    row = await one(house, args='{"commit": false}')
    assert (row["state"], errors(row)) == ("cancelled", ["ValueError: afterwards"])
    assert [str(error) for _, error in told.calls] == ["afterwards"] * 2


async def test_what_happens_while_it_thinks_does_not_change_how_the_attempt_ended(house: House) -> None:
    """The stop comes after the worker raised its own cancellation, so this is no interruption."""
    asked, go_on = asyncio.Event(), asyncio.Event()
    house.gates.append(go_on)

    class Slow:
        async def handle_error(self, row: JobRow, error: BaseException, /) -> None:
            asked.set()
            await go_on.wait()

    handled_by(house, Slow())
    register(house, "async def", raising(asyncio.CancelledError("mine")))
    await house.start(house.completer)
    [job_id] = house.rows.insert()
    contexts = await house.claim()
    running = asyncio.create_task(house.run_all(contexts))
    await asked.wait()
    contexts[0].cancelled.set(CancelReason.STOPPING)
    go_on.set()
    await running
    row = house.rows.get(job_id)
    assert (row["state"], row["attempt"], errors(row)) == ("available", 1, ["CancelledError: mine"])


# -- handlers that fail


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), StopIteration()], ids=repr
)
async def test_a_handler_that_raises_is_logged_and_ignored(
    house: House, told: Told, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: BaseException) -> None:
        raise error

    told.answer = answer
    register(house, "async def", raising(ValueError("x")))
    row = await one(house)
    assert (row["state"], errors(row)) == ("available", ["ValueError: x"])
    assert "Ignored its error handler, which failed (kind=echo)" in caplog.text
    assert (await one(house, max_attempts=1))["state"] == "discarded"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_in_a_thread_a_handler_may_raise_anything(
    house: House, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: BaseException) -> None:
        raise error

    handled_by(house, Told("def", answer))
    register(house, "async def", raising(ValueError("x")))
    assert errors(await one(house)) == ["ValueError: x"]
    assert f"an error handler raised {error!r}" in caplog.text


async def test_an_answer_that_is_none_is_logged_and_ignored(
    house: House, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.answer = lambda _: "give up"
    register(house, "async def", raising(ValueError("x")))
    assert (await one(house))["state"] == "available"
    assert "'give up' is not a valid ErrorResult" in caplog.text


async def test_its_time_is_not_the_jobs(house: House, told: Told) -> None:
    """A job without a timeout whose handler takes its time: the run's duration is the worker's."""
    clock = house.ctx.clock
    ends: list[float] = []
    told.answer = lambda _: ends.append(clock.monotonic())

    @house.workers.work(kind="echo", timeout=NO_TIMEOUT)
    async def work(job: Raw) -> None:
        raise ValueError("x")

    house.rows.insert()
    await house.start(house.completer)
    [settled] = await house.run_all()
    assert settled.finished.ended <= ends[0]


async def test_a_handler_is_the_jobs_code(house: House, told: Told, style: str) -> None:
    """It cannot stop the client that runs the job, and sees the context variables that the client was started in."""
    seen: list[Any] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def answer(_: BaseException) -> None:
        seen.append(variable.get())
        try:
            refuse_in_own_job("c1")
        except riverq.UsageError as error:
            seen.append(type(error))

    told.answer = answer
    register(house, style, raising(ValueError("x")))
    variable.set("set")
    await one(house)
    assert seen == ["set", riverq.UsageError]
