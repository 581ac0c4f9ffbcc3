from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import riverq
from riverq import Job, JobCancel, JobDiscard, JobSnooze, Worker
from riverq.errors import ConfigError
from riverq.hook import AsyncWorkNext, WorkNext
from riverq.worker.executor import ExecutorConfig
from tests.worker.harness import House, Raw, errors, one, register


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


async def test_attempts_that_failed_or_were_given_up_are_logged_and_others_are_not(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    ends: dict[str, Exception | None] = {
        "ok": None,
        "error": ValueError("it broke"),
        "snooze": JobSnooze(timedelta(hours=1)),
        "cancel": JobCancel("enough"),
        "discard": JobDiscard("hopeless"),
    }

    def work(job: Raw) -> None:
        error = ends[job.args["end"]]
        if error is not None:
            raise error

    register(house, "async def", work)
    for end in ends:
        await one(house, args=json.dumps({"end": end}))
    logged = [record.getMessage().split(": ", 1)[1] for record in caplog.records if record.levelname == "WARNING"]
    assert logged == [
        "Attempt failed, to become available (kind=echo, queue=default, attempt=1, error=ValueError: it broke)",
        "Attempt failed, to become discarded (kind=echo, queue=default, attempt=1, error=JobDiscard: hopeless)",
    ]


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
