"""What a type checker infers from riverq's decorators; checked by mypy, imported by a test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, TypedDict, assert_type

import msgspec

from riverq.errors import JobSnooze
from riverq.fields import nanoseconds, omitempty
from riverq.insert_opts import InsertItem, InsertOptions
from riverq.job import Job, StepCursor
from riverq.job_args import RawArgs, TypedArgs, job_args
from riverq.registry import NO_TIMEOUT, Worker, Workers
from riverq.retry_policy import DefaultRetryPolicy
from riverq.unique import UniqueOpts, unique


@job_args("typing_send_email", queue="mail", max_attempts=5, unique_opts=UniqueOpts(by_args=True))
@dataclass
class SendEmail:
    to: Annotated[str, unique]
    wait: Annotated[timedelta, nanoseconds] = timedelta(0)
    note: Annotated[str, omitempty] = ""


@job_args("typing_resize")
class Resize(msgspec.Struct):
    width: int


@job_args("typing_dict")
class Notify(TypedDict):
    user_id: int


workers = Workers()


@workers.work(timeout=timedelta(seconds=30), retry_policy=DefaultRetryPolicy())
def send_email(job: Job[SendEmail]) -> None:
    assert_type(job.args, SendEmail)
    assert_type(job.args.to, str)
    raise JobSnooze(job.args.wait)


@workers.work
async def resize(job: Job[Resize]) -> None:
    assert_type(job.args.width, int)


@workers.work(kind="typing_raw", timeout=NO_TIMEOUT)
def raw(job: Job[dict[str, Any]]) -> None:
    assert_type(job.args, dict[str, Any])


class NotifyWorker(Worker[Notify]):
    """The class form."""

    async def work(self, job: Job[Notify]) -> None:
        assert_type(job.args["user_id"], int)

    def timeout(self, job: Job[Notify]) -> timedelta | None:
        return timedelta(seconds=job.args["user_id"])

    def next_retry(self, job: Job[Notify], error: BaseException) -> timedelta | datetime | None:
        return None if isinstance(error, ValueError) else timedelta(seconds=job.args["user_id"])


class SyncWorker(Worker[SendEmail]):
    """The same in a thread."""

    def work(self, job: Job[SendEmail]) -> None:
        assert_type(job.args, SendEmail)


workers.add(NotifyWorker())

options: InsertOptions = {"queue": "mail", "priority": 2, "delay": timedelta(hours=1), "tags": ["a-b"]}
items = [
    InsertItem(SendEmail("a@b.c"), **options),
    InsertItem(Resize(5), scheduled_at=None),
    InsertItem(TypedArgs(Notify, {"user_id": 1})),
    InsertItem(RawArgs("typing_raw", {"a": 1}), metadata={"trace": "x"}),
]

# The decorators give back what they were given.
assert_type(SendEmail("a").to, str)
assert_type(Resize(1).width, int)

# Each ignore would itself be an error if the mistake were not found.
InsertOptionsMistake: InsertOptions = {"priorty": 2}  # type: ignore[typeddict-unknown-key]


def count(cursor: StepCursor, upto: int) -> int:
    """A body may return something, which is dropped."""
    return upto


async def count_later(cursor: StepCursor, upto: int) -> int:
    """The same."""
    return upto


async def charge(cents: int) -> str:
    """The same."""
    return f"receipt for {cents}"


async def steps(job: Job[SendEmail]) -> None:
    """Never called. What a step needs to be awaited is found, whatever its body returns."""
    job.step("def", job.client.insert, Resize(5), queue="mail")
    job.step("nothing", print, "text")
    job.step("lambda", lambda: len(job.args.to))
    await job.step("async def", job.async_client.insert, Resize(5))
    job.cursor_step("count", count, 5)
    await job.cursor_step("count_later", count_later, upto=5)
    job.step("not awaited", charge, 5)  # type: ignore[unused-coroutine]
    job.step("a text", charge, "5")  # type: ignore[call-overload]
    job.cursor_step("not awaited", count_later, 5)  # type: ignore[unused-coroutine]
    job.cursor_step("a text", count, "5")  # type: ignore[call-overload]


def mistakes() -> None:
    """Never called."""
    InsertItem(Resize(5), queue=5)  # type: ignore[arg-type]
    InsertItem(Resize(5), qeue="x")  # type: ignore[call-arg]
    job_args("typing_mistake", metadata={})  # type: ignore[call-arg]
    TypedArgs[Notify](Notify, {"user": 1})  # type: ignore[typeddict-item]
    workers.work(lambda: None)  # type: ignore[type-var]
    workers.work(timeout=5)  # type: ignore[call-overload]
