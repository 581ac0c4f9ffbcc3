from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.errors import UsageError
from riverq.registry import NO_TIMEOUT
from riverq.state import Reason
from riverq.worker.cancellation import CancelReason
from riverq.worker.executor import ExecutorConfig
from tests.worker.harness import House, Raw, errors, one, register, until


async def test_a_timeout_cancels_an_async_worker(house: House) -> None:
    ends: list[str] = []

    @house.workers.work(kind="echo", timeout=timedelta(milliseconds=20))
    async def work(job: Raw) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ends.append(str(job.cancelled.reason))
            if job.args.get("returns"):
                return  # noqa: B012  # the point is that it swallows the cancellation

    assert (await one(house, args='{"returns": true}'))["state"] == "completed"
    assert errors(await one(house)) == ["job timed out after 0.02 s"]
    assert ends == ["timeout", "timeout"]


async def test_a_timeout_only_tells_a_def_worker(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = threading.Event()
    submit = house.threads.submit

    def submit_and_begin(*given: Any) -> Future[Any]:
        began.clear()
        future = submit(*given)
        assert began.wait(10)  # holds up the loop: a job whose time is over before its thread is there never begins
        return future

    monkeypatch.setattr(house.threads, "submit", submit_and_begin)

    @house.workers.work(kind="echo", timeout=timedelta(milliseconds=20))
    def work(job: Raw) -> None:
        began.set()
        assert job.cancelled.wait(10)
        assert job.cancelled.reason == "timeout"
        if job.args.get("gives_up"):
            raise asyncio.CancelledError

    assert (await one(house))["state"] == "completed"
    assert errors(await one(house, args='{"gives_up": true}')) == ["job timed out after 0.02 s"]
    assert "job timed out after 0.02 s" in caplog.text


async def test_a_worker_may_have_no_timeout(house: House) -> None:
    house.executor_config = ExecutorConfig(job_timeout=timedelta(milliseconds=1))

    @house.workers.work(kind="echo", timeout=NO_TIMEOUT)
    async def work(job: Raw) -> None:
        await asyncio.sleep(0.02)

    assert (await one(house))["state"] == "completed"


async def test_the_stop_interrupts_and_gives_the_attempt_back(house: House, style: str) -> None:
    def work(job: Raw) -> None:
        job.cancelled.wait(10)
        raise asyncio.CancelledError

    if style == "def":
        register(house, style, work)
    else:

        @house.workers.work(kind="echo")
        async def sleep(job: Raw) -> None:
            job.record_output("half")
            await asyncio.sleep(3600)

    [job_id] = house.rows.insert()
    await house.start(house.completer)
    [context] = await house.claim()
    running = asyncio.create_task(house.executor().run(context))
    await until(lambda: context.is_async is not None)
    await asyncio.sleep(0)
    context.cancelled.set(CancelReason.STOPPING)
    await running
    settled = await house.settled.wait()
    row = house.rows.get(job_id)
    assert settled.finished.state.reason is Reason.INTERRUPTED
    assert (row["state"], row["attempt"], row["errors"], row["finalized_at"]) == ("available", 0, None, None)
    assert row["metadata"] == ({} if style == "def" else {"output": "half"})


async def test_a_job_told_to_end_before_it_begins_does_not_begin(house: House, style: str) -> None:
    began: list[int] = []
    register(house, style, lambda job: began.append(job.id))
    expected = {
        CancelReason.STOPPING: ("available", 0),
        CancelReason.CANCELLED: ("cancelled", 1),
        CancelReason.LOST: ("available", 0),
    }
    await house.start(house.completer)
    for reason, (state, attempt) in expected.items():
        [job_id] = house.rows.insert(scheduled_at=datetime(2020, 1, 1, tzinfo=UTC))
        [context] = await house.claim(limit=1)
        context.cancelled.set(reason)
        await house.run_all([context])
        row = house.rows.get(job_id)
        assert (row["state"], row["attempt"]) == (state, attempt)
        house.rows.sql("DELETE FROM JOB WHERE true RETURNING id")
    assert began == []


async def test_cancelling_oneself_is_a_failed_attempt(house: House) -> None:
    @house.workers.work(kind="echo")
    async def work(job: Raw) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by myself")
        await asyncio.sleep(3600)

    assert errors(await one(house)) == ["CancelledError: by myself"]


async def test_a_def_worker_that_exits_does_not_end_the_process(house: House, style: str) -> None:
    def work(job: Raw) -> None:
        raise SystemExit(1)

    register(house, style, work)
    assert errors(await one(house)) == ["SystemExit: 1"]


async def test_the_face_of_the_client_fits_the_worker(house: House, style: str) -> None:
    seen: list[Any] = []

    def work(job: Raw) -> None:
        for face in ("client", "async_client"):
            try:
                seen.append(getattr(job, face))
            except UsageError:
                seen.append("refused")

    register(house, style, work)
    assert (await one(house))["state"] == "completed"
    assert seen == (["the sync client", "refused"] if style == "def" else ["refused", "the async client"])


async def test_a_def_worker_that_returns_an_awaitable_fails(house: House) -> None:
    async def inner() -> None: ...

    @house.workers.work(kind="echo")
    def work(job: Raw) -> Any:
        return inner()

    assert "declare the worker async def" in errors(await one(house))[0]


async def test_a_thread_at_work_when_its_task_is_cancelled_is_not_reported(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    began, go_on = threading.Event(), threading.Event()

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        began.set()
        go_on.wait(10)

    [job_id] = house.rows.insert()
    [context] = await house.claim()
    await house.start(house.completer)
    running = asyncio.create_task(house.executor().run(context))
    await asyncio.to_thread(began.wait, 10)
    running.cancel()  # as the end of the loop does
    await asyncio.wait([running])
    assert f"job {job_id}: Left its thread at work" in caplog.text
    go_on.set()
    await until(lambda: not context.thread_runs)
    await house.completer.stop()
    assert house.rows.get(job_id)["state"] == "running"
