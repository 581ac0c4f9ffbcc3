"""Error handlers that hang, and those that are cancelled: neither costs the job."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from riverq.job import JobRow
from riverq.threads import DaemonThreads
from riverq.worker import error_handling
from riverq.worker.error_handling import ErrorHandling
from tests.worker.handlers import Told, handled_by, raising
from tests.worker.harness import House, Raw, errors, one, register, until


def hang_once_called(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    """The time limit is short, and begins when the handler has been called: its thread may be late."""
    waited = ErrorHandling._waited

    async def waited_once_called(handling: ErrorHandling, task: asyncio.Task[bool]) -> bool:
        before = len(told.calls)
        await until(lambda: len(told.calls) > before or task.done())
        return await waited(handling, task)

    monkeypatch.setattr(error_handling, "TIME_LIMIT", 0.05)
    monkeypatch.setattr(ErrorHandling, "_waited", waited_once_called)


async def test_a_def_handler_that_hangs_costs_neither_the_job_nor_a_thread(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One thread for `def` workers, which the handler keeps: the next job gets another, until the handler returns."""
    go_on = threading.Event()

    def answer(error: BaseException) -> None:
        if str(error) == "hang":
            assert go_on.wait(10)

    told = Told("def", answer)
    handled_by(house, told)
    hang_once_called(monkeypatch, told)
    house.threads = DaemonThreads(1, name="riverq_job")

    def work(job: Raw) -> None:
        raise ValueError(job.args["text"])

    register(house, "def", work)
    try:
        row = await one(house, args='{"text": "hang"}')
        assert (row["state"], errors(row)) == ("available", ["ValueError: hang"])
        assert "Went on without its error handler, which took longer than 0.05 s (kind=echo)" in caplog.text
        assert house.threads._lent == 1
        house.rows.sql("DELETE FROM JOB WHERE true RETURNING id")  # else it may be due again, and claimed with the next
        monkeypatch.setattr(error_handling, "TIME_LIMIT", 60.0)
        assert errors(await one(house, args='{"text": "quick"}')) == ["ValueError: quick"]
        assert len(told.calls) == 2
    finally:
        go_on.set()
    await until(lambda: house.threads._lent == 0)


async def test_an_async_handler_that_hangs_is_cancelled(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(error_handling, "TIME_LIMIT", 0.02)
    ends: list[BaseException] = []

    class Hangs:
        async def handle_error(self, row: JobRow, error: BaseException, /) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as cancelled:
                ends.append(cancelled)
                raise

    handled_by(house, Hangs())
    register(house, "async def", raising(ValueError("x")))
    assert (await one(house))["state"] == "available"
    assert len(ends) == 1
    assert "which took longer than 0.02 s" in caplog.text
    assert "which failed" not in caplog.text


async def test_cancelling_the_handlers_own_task_does_not_cost_the_job(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    class EndsItself:
        async def handle_error(self, row: JobRow, error: BaseException, /) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    handled_by(house, EndsItself())
    register(house, "async def", raising(ValueError("x")))
    row = await one(house)
    assert (row["state"], errors(row)) == ("available", ["ValueError: x"])
    assert "Went on without its error handler, which was cancelled (kind=echo)" in caplog.text


async def test_a_job_that_somebody_cancels_while_its_handler_thinks_is_written_all_the_same(house: House) -> None:
    """The worker left something behind that cancels the job's task, a timer for instance."""
    tasks: list[asyncio.Task[Any]] = []
    ends: list[BaseException] = []

    class Cancelled:
        async def handle_error(self, row: JobRow, error: BaseException, /) -> None:
            tasks[0].cancel()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as cancelled:
                ends.append(cancelled)
                raise

    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        raise ValueError("x")

    handled_by(house, Cancelled())
    await house.start(house.completer)
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    running = asyncio.create_task(house.executor().run(context))
    await house.settled.wait()
    await running
    row = house.rows.get(job_id)
    assert (row["state"], errors(row), len(ends)) == ("available", ["ValueError: x"], 1)


async def test_a_handler_that_always_hangs_is_asked_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(error_handling, "OVERDUE_LIMIT", 2)
    go_on = threading.Event()
    told = Told("def", lambda _: go_on.wait(10) and None)
    handled_by(house, told)
    hang_once_called(monkeypatch, told)
    register(house, "async def", raising(ValueError("x")))
    executor = house.executor()
    await house.start(house.completer)

    async def fail_once() -> None:
        house.rows.insert(max_attempts=1)  # a second attempt might come among the next jobs
        await asyncio.gather(*(executor.run(context) for context in await house.claim()))
        await house.settled.wait()

    try:
        for _ in range(3):
            await fail_once()
        assert len(told.calls) == 2
        assert "Went on without its error handler, 2 calls of which have not returned (kind=echo)" in caplog.text
    finally:
        go_on.set()
    await until(lambda: house.threads._lent == 0)
    monkeypatch.setattr(error_handling, "TIME_LIMIT", 60.0)
    await fail_once()
    assert len(told.calls) == 3
