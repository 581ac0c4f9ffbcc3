"""What a panic is here, who hears of it, and what an error handler must be."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import riverq
from riverq import JobTimeoutError
from riverq.errors import ConfigError
from riverq.worker.cancellation import Cancellation
from riverq.worker.error_handling import PanicHandler, check_error_handler
from riverq.worker.run_loop import call_cancellable
from tests.worker.handlers import Panics, Told, handled_by, raising
from tests.worker.harness import House, Raw, errors, one, register

PANICS: list[BaseException] = [
    SystemExit(3),
    GeneratorExit("mine"),
    asyncio.CancelledError("mine"),
    BaseExceptionGroup("several", [ValueError("x"), SystemExit(1)]),
]


@pytest.mark.parametrize("error", PANICS, ids=repr)
async def test_a_panic_is_what_except_exception_does_not_catch(house: House, style: str, error: BaseException) -> None:
    handler = Panics()
    assert isinstance(handler, PanicHandler)
    handled_by(house, handler)
    register(house, style, raising(error))
    row = await one(house)
    [(seen, trace)] = handler.panics
    assert (seen, handler.errors) == (error, [])
    assert trace == row["errors"][0]["trace"]
    assert "in work" in trace
    assert (row["state"], errors(row)[0].split(":")[0]) == ("cancelled", type(error).__name__)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), TypeError("x"), AssertionError()], ids=repr)
async def test_programming_errors_are_ordinary_errors(house: House, style: str, error: BaseException) -> None:
    handler = Panics()
    handled_by(house, handler)
    register(house, style, raising(error))
    assert (await one(house))["state"] == "available"
    assert (handler.errors, handler.panics) == ([error], [])


async def test_a_timeout_is_an_ordinary_error(house: House) -> None:
    handler = Panics()
    handled_by(house, handler)

    @house.workers.work(kind="echo", timeout=timedelta(milliseconds=1))
    async def work(job: Raw) -> None:
        await asyncio.sleep(3600)

    assert (await one(house))["state"] == "available"
    assert [type(error) for error in handler.errors] == [JobTimeoutError]


@pytest.mark.parametrize("error", PANICS, ids=repr)
async def test_without_handle_panic_panics_are_errors(house: House, error: BaseException) -> None:
    told = Told("def")
    handled_by(house, told)
    register(house, "async def", raising(error))
    await one(house)
    assert [seen for _, seen in told.calls] == [error]


async def test_what_would_end_the_process_is_only_a_failed_attempt_where_a_thread_raised_it(house: House) -> None:
    """Ctrl-C never arrives in these threads. Passed on, it would end the loop and leave the row running for ever."""
    handler, error = Panics(), KeyboardInterrupt()
    handled_by(house, handler)
    register(house, "def", raising(error))
    row = await one(house)
    assert (row["state"], errors(row)) == ("cancelled", ["KeyboardInterrupt"])
    assert [seen for seen, _ in handler.panics] == [error]


async def test_a_job_whose_task_is_closed_ends_there() -> None:
    """What the interpreter does with a task that is left over: then GeneratorExit comes from outside, and must pass.

    This worker swallowed a cancellation, which would be waited out if the end were its own.
    """
    never = asyncio.Event()

    async def work() -> None:
        try:
            await never.wait()
        except asyncio.CancelledError:
            await never.wait()

    coroutine = call_cancellable(work, Cancellation())
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    coroutine.close()
    task.cancel()
    await asyncio.wait({task})


# -- what is a handler


class NotAHandler:
    handle_error = "text"


class HalfAHandler(Panics):
    handle_panic = None  # type: ignore[assignment]  # a mistake on purpose


class BadPanics(Panics):
    handle_panic = "text"  # type: ignore[assignment]  # a mistake on purpose


@pytest.mark.parametrize("handler", [Told, "text", object(), NotAHandler(), BadPanics(), lambda row, error: None])
def test_what_is_no_handler_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigError, match="expected error_handler to be an object with a handle_error method"):
        riverq.Config(error_handler=handler)


def test_none_and_handlers_are_accepted() -> None:
    for handler in (None, Told("def"), Panics(), HalfAHandler()):
        check_error_handler(handler)
