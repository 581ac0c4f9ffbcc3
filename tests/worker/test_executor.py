from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq import Job, JobCancel, JobDiscard, JobSnooze, Worker
from riverq.errors import ConfigError, JobRunLostError, UsageError
from riverq.hook import AsyncWorkNext, WorkNext
from riverq.job import JobState
from riverq.registry import NO_TIMEOUT
from riverq.state import Reason
from riverq.worker.cancellation import CancelReason
from riverq.worker.executor import ExecutorConfig
from tests.fix_database import EngineMaker
from tests.worker.harness import House, until

Raw = Job[dict[str, Any]]


@pytest.fixture(params=["async def", "def"])
def style(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def register(house: House, style: str, body: Callable[[Raw], None], **options: Any) -> None:
    """`body` as the worker of `echo`, in either style."""
    if style == "def":
        house.workers.work(kind="echo", **options)(_def(body))
    else:
        house.workers.work(kind="echo", **options)(_async_def(body))


def _def(body: Callable[[Raw], None]) -> Callable[[Raw], None]:
    def worker(job: Raw) -> None:
        body(job)

    return worker


def _async_def(body: Callable[[Raw], None]) -> Callable[[Raw], Awaitable[None]]:
    async def worker(job: Raw) -> None:
        body(job)

    return worker


async def one(house: House, **columns: Any) -> dict[str, Any]:
    """Insert a job, run it, and return its row afterwards."""
    [job_id] = house.rows.insert(**columns)
    if not house.completer.is_running:
        await house.start(house.completer)
    await house.run_all()
    return house.rows.get(job_id)


def errors(row: dict[str, Any]) -> list[str]:
    return [entry["error"] for entry in row["errors"] or []]


async def test_defaults() -> None:
    assert ExecutorConfig().job_timeout == timedelta(seconds=60)


async def test_a_worker_sees_its_job_and_completes_it(any_house: House, style: str) -> None:
    house = any_house
    seen: list[Any] = []

    def work(job: Raw) -> None:
        row = job.row
        seen.append((job.args, job.id, row.kind, row.queue, row.attempt, row.state, row.attempted_by, row.tags))
        seen.append((row.metadata, row.priority, row.errors, job.cancelled.is_set(), dict(job.log.extra or {})))
        seen.append(threading.current_thread() is threading.main_thread())
        assert row.attempted_at is not None

    register(house, style, work)
    row = await one(house, args='{"a": [1, "ü"]}', tags=["x", "y"], metadata='{"m": 1}', priority=3)
    assert seen == [
        ({"a": [1, "ü"]}, row["id"], "echo", "default", 1, "running", ("c1",), ("x", "y")),
        (
            {"m": 1},
            3,
            (),
            False,
            {"job_id": row["id"], "kind": "echo", "queue": "default", "attempt": 1},
        ),
        style == "async def",
    ]
    assert (row["state"], row["attempt"], row["errors"], row["metadata"]) == ("completed", 1, None, {"m": 1})
    assert row["finalized_at"] >= row["attempted_at"]


async def test_each_way_to_end(house: House, style: str) -> None:
    ends: dict[str, Exception | None] = {
        "ok": None,
        "error": ValueError("it broke"),
        "snooze": JobSnooze(timedelta(hours=1)),
        "cancel": JobCancel("enough"),
        "discard": JobDiscard("hopeless"),
        "stop_iteration": StopIteration(),
    }

    def work(job: Raw) -> None:
        error = ends[job.args["end"]]
        if error is not None:
            raise error

    register(house, style, work)
    rows = {end: await one(house, args=json.dumps({"end": end}), max_attempts=3) for end in ends}
    assert {end: row["state"] for end, row in rows.items()} == {
        "ok": "completed",
        "error": "available",
        "snooze": "scheduled",
        "cancel": "cancelled",
        "discard": "discarded",
        "stop_iteration": "available",
    }
    assert errors(rows["error"]) == ["ValueError: it broke"]
    assert errors(rows["cancel"]) == ["JobCancelError: enough"]
    assert errors(rows["discard"]) == ["JobDiscard: hopeless"]
    assert "StopIteration" in errors(rows["stop_iteration"])[0]
    assert (rows["snooze"]["errors"], rows["snooze"]["attempt"], rows["snooze"]["metadata"]) == (
        None,
        0,
        {"snoozes": 1},
    )
    entry = rows["error"]["errors"][0]
    assert datetime.fromisoformat(entry["at"]) == rows["error"]["attempted_at"].astimezone(UTC)
    assert (entry["attempt"], sorted(entry)) == (1, ["at", "attempt", "error", "trace"])
    assert "worker/executor.py" not in entry["trace"]
    assert "in work" in entry["trace"]


async def test_the_last_attempt_discards(house: House, style: str) -> None:
    register(house, style, lambda job: 1 // 0)  # type: ignore[arg-type]
    row = await one(house, max_attempts=1)
    assert (row["state"], row["attempt"]) == ("discarded", 1)
    assert row["finalized_at"] is not None


async def test_an_unknown_kind_is_retried_with_rivers_text(house: House) -> None:
    row = await one(house, kind="nobody_knows")
    assert errors(row) == ["job kind is not registered in the client's Workers bundle: nobody_knows"]
    assert row["state"] == "available"


@riverq.job_args("typed")
@dataclass
class Typed:
    count: int


async def test_args_that_do_not_fit_fail_by_the_clients_policy(house: House) -> None:
    class TypedWorker(Worker[Typed]):
        async def work(self, job: Job[Typed]) -> None:
            raise AssertionError("must not begin")

        def next_retry(self, job: Job[Typed], error: BaseException) -> timedelta:
            raise AssertionError("must not be asked about args it never saw")

    house.workers.add(TypedWorker())
    row = await one(house, kind="typed", args='{"count": "many"}')
    assert row["state"] == "available"
    assert errors(row)[0].startswith("ArgsDecodeError: ")


async def test_a_worker_decides_on_its_retries(house: House) -> None:
    seen: list[tuple[int, str]] = []

    class TypedWorker(Worker[Typed]):
        def work(self, job: Job[Typed]) -> None:
            raise ValueError("again")

        def next_retry(self, job: Job[Typed], error: BaseException) -> timedelta:
            seen.append((job.args.count, str(error)))
            return timedelta(hours=2)

    house.workers.add(TypedWorker())
    row = await one(house, kind="typed", args='{"count": 5}')
    assert (row["state"], seen) == ("retryable", [(5, "again")])
    assert timedelta(hours=1, minutes=59) < row["scheduled_at"] - row["attempted_at"] < timedelta(hours=2, minutes=1)


async def test_texts_with_nul_and_surrogates_are_stored(house: House, style: str) -> None:
    def work(job: Raw) -> None:
        raise ValueError("nul \0 and \udc80")

    register(house, style, work)
    assert errors(await one(house)) == ["ValueError: nul \\x00 and \\udc80"]


async def test_metadata_and_output_are_stored_with_the_outcome(house: House, style: str) -> None:
    def work(job: Raw) -> None:
        job.record_output({"n": 1})
        job.record_output({"n": 2})
        job.set_metadata("note", ["ü"])
        if job.args.get("fail"):
            raise ValueError("x")

    register(house, style, work)
    stored = {"old": True, "output": {"n": 2}, "note": ["ü"]}
    assert (await one(house, metadata='{"old": true}'))["metadata"] == stored
    failed = await one(house, metadata='{"old": true}', args='{"fail": true}')
    assert (failed["state"], failed["metadata"]) == ("available", stored)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "metadata.output"),
        ("\0", "NUL"),
        (float("nan"), "nan"),
        ("x" * (33 * 1024 * 1024), "at most 33554432 bytes"),
    ],
    ids=["set", "nul", "nan", "large"],
)
async def test_output_that_cannot_be_stored_fails_the_attempt_in_the_workers_own_line(
    house: House, style: str, value: object, message: str
) -> None:
    register(house, style, lambda job: job.record_output(value))
    row = await one(house)
    assert (row["state"], row["metadata"]) == ("available", {})
    assert message in errors(row)[0]


async def test_rivers_own_metadata_keys_are_refused(house: House) -> None:
    def work(job: Raw) -> None:
        with pytest.raises(ConfigError, match="not starting with 'river:'"):
            job.set_metadata("river:log", 1)

    register(house, "async def", work)
    assert (await one(house))["state"] == "completed"


async def test_a_row_with_broken_errors_and_metadata_still_runs(house: House) -> None:
    seen: list[Any] = []
    register(house, "async def", lambda job: seen.append((job.row.metadata, len(job.row.errors))))
    [job_id] = house.rows.insert(metadata="[1]")
    house.rows.sql(
        "UPDATE JOB SET errors = ARRAY['\"text\"', '{\"at\": 5}']::jsonb[] WHERE id = %(id)s RETURNING id", id=job_id
    )
    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert (row["state"], row["metadata"], row["errors"]) == ("completed", [1], ["text", {"at": 5}])
    assert seen == [({}, 0)]


# -- being told to end


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

    assert errors(await one(house)) == ["job timed out after 0.02 s"]
    assert (await one(house, args='{"returns": true}'))["state"] == "completed"
    assert ends == ["timeout", "timeout"]


async def test_a_timeout_only_tells_a_def_worker(house: House) -> None:
    @house.workers.work(kind="echo", timeout=timedelta(milliseconds=20))
    def work(job: Raw) -> None:
        assert job.cancelled.wait(10)
        assert job.cancelled.reason == "timeout"
        if job.args.get("gives_up"):
            raise asyncio.CancelledError

    assert (await one(house))["state"] == "completed"
    assert errors(await one(house, args='{"gives_up": true}')) == ["job timed out after 0.02 s"]


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
    assert f"The thread of job {job_id} (echo) is at work still" in caplog.text
    go_on.set()
    await until(lambda: not context.thread_runs)
    await house.completer.stop()
    assert house.rows.get(job_id)["state"] == "running"


# -- completing in the worker's own transaction


@pytest.fixture
async def own_engine(make_engine: EngineMaker, style: str) -> Engine | AsyncEngine:
    """The application's engine, fit for the worker's style."""
    return make_engine("psycopg" if style == "def" else "psycopg_async")


def register_completing(
    house: House, engine: Engine | AsyncEngine, *, commit: bool, after: Callable[[Raw], None] = lambda _: None
) -> None:
    if isinstance(engine, Engine):

        @house.workers.work(kind="echo")
        def work(job: Raw) -> None:
            job.record_output("staged")
            with engine.connect() as conn:
                job.complete(session=conn)
                if commit:
                    conn.commit()
            after(job)

    else:

        @house.workers.work(kind="echo")
        async def work_async(job: Raw) -> None:
            job.record_output("staged")
            async with engine.connect() as conn:
                await job.complete(session=conn)
                if commit:
                    await conn.commit()
            after(job)


async def test_completing_in_a_transaction_that_commits(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True)
    [job_id] = house.rows.insert()
    await house.start(house.completer)
    [settled] = await house.run_all()
    row = house.rows.get(job_id)
    assert (row["state"], row["errors"], row["metadata"]) == ("completed", None, {"output": "staged"})
    assert (settled.state, settled.lost) == (JobState.COMPLETED, False)
    assert settled.row is not None
    assert settled.row.output == "staged"


async def test_an_error_after_such_a_commit_changes_nothing(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True, after=lambda _: 1 // 0)  # type: ignore[arg-type]
    row = await one(house)
    assert (row["state"], row["errors"]) == ("completed", None)


async def test_a_transaction_that_does_not_commit_fails_the_attempt(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=False)
    row = await one(house)
    assert (row["state"], errors(row)) == ("available", ["completed in a transaction that did not commit"])
    assert row["metadata"] == {"output": "staged"}


async def test_completing_a_lost_run_raises_and_writes_nothing(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True)
    [job_id] = house.rows.insert()
    contexts = await house.claim()
    house.rows.steal(job_id)
    before = house.rows.get(job_id)
    await house.start(house.completer)
    [settled] = await house.run_all(contexts)
    assert isinstance(settled.finished.error, JobRunLostError)
    assert settled.lost
    assert house.rows.get(job_id) == before


# -- middleware


class AroundDef:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def work(self, job: Job[Any], call_next: WorkNext) -> None:
        self.calls.append(f"{self.name} {threading.current_thread() is threading.main_thread()}")
        call_next(job)


class AroundAsync:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    async def work(self, job: Job[Any], call_next: AsyncWorkNext) -> None:
        self.calls.append(self.name)
        try:
            await call_next(job)
        except ValueError as error:
            raise JobCancel("translated") from error


async def test_middleware_goes_around_from_the_first_to_the_worker(house: House, style: str) -> None:
    calls: list[str] = []
    house.executor_config = ExecutorConfig(
        middleware=[AroundDef("1", calls), AroundAsync("2", calls), AroundDef("3", calls)]
    )

    def work(job: Raw) -> None:
        calls.append("work")
        raise ValueError("x")

    register(house, style, work)
    row = await one(house)
    assert errors(row) == ["JobCancelError: translated"]
    assert calls == ["1 True", "2", f"3 {style == 'async def'}", "work"]


async def test_middleware_of_a_worker_is_outside_of_the_clients(house: House) -> None:
    calls: list[str] = []
    house.executor_config = ExecutorConfig(middleware=[AroundDef("client", calls)])

    class TypedWorker(Worker[Typed]):
        def work(self, job: Job[Typed]) -> None:
            calls.append("work")

        def middleware(self) -> list[Any]:
            return [AroundDef("worker", calls)]

    house.workers.add(TypedWorker())
    assert (await one(house, kind="typed", args='{"count": 1}'))["state"] == "completed"
    assert calls == ["worker False", "client False", "work"]
