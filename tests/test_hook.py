"""Middleware: order, both kinds around both insides, errors, cancellation and context."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from riverq.errors import ConfigError, UsageError
from riverq.hook import (
    AsyncInsertNext,
    AsyncWorkNext,
    InsertNext,
    WorkNext,
    chain_insert_async,
    chain_insert_sync,
    chain_work_async,
    chain_work_sync,
    check_middleware,
    is_async,
    work_middleware,
)
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult, Job, JobContext, JobRow

PARAMS = [InsertParams(kind="k", encoded_args="{}")]
JOB: Job[Any] = Job("args", cast("JobContext", None))
Seen = list[str]
current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="")


class Sync:
    def __init__(self, name: str, seen: Seen) -> None:
        self.name, self.seen = name, seen

    def insert(self, params: Sequence[InsertParams], call_next: InsertNext) -> list[InsertResult]:
        self.seen.append(f"{self.name} before")
        token = current.set(current.get() + self.name)
        try:
            return call_next([replace(param, queue=param.queue + self.name) for param in params])
        finally:
            current.reset(token)
            self.seen.append(f"{self.name} after")

    def work(self, job: Job[Any], call_next: WorkNext) -> None:
        self.seen.append(f"{self.name} before")
        try:
            call_next(job)
        finally:
            self.seen.append(f"{self.name} after")


class Async:
    def __init__(self, name: str, seen: Seen) -> None:
        self.name, self.seen = name, seen

    async def insert(self, params: Sequence[InsertParams], call_next: AsyncInsertNext) -> list[InsertResult]:
        self.seen.append(f"{self.name} before")
        await asyncio.sleep(0)
        results = await call_next([replace(param, queue=param.queue + self.name) for param in params])
        self.seen.append(f"{self.name} after")
        return results

    async def work(self, job: Job[Any], call_next: AsyncWorkNext) -> None:
        self.seen.append(f"{self.name} before")
        try:
            await call_next(job)
        finally:
            self.seen.append(f"{self.name} after")


class InsertOnly:
    def insert(self, params: Sequence[InsertParams], call_next: InsertNext) -> list[InsertResult]:
        return call_next(params)


class WorkOnly:
    def work(self, job: Job[Any], call_next: WorkNext) -> None:
        call_next(job)


def results(params: Sequence[InsertParams]) -> list[InsertResult]:
    return [InsertResult(cast("JobRow", param.queue)) for param in params]


def test_the_first_is_the_outermost() -> None:
    seen: Seen = []

    def write(params: Sequence[InsertParams]) -> list[InsertResult]:
        seen.append("write")
        return results(params)

    [result] = chain_insert_sync([Sync("a", seen), WorkOnly(), Sync("b", seen)], write)(PARAMS)
    assert cast("object", result.job) == "defaultab"
    assert seen == ["a before", "b before", "write", "b after", "a after"]


async def test_both_kinds_around_an_asynchronous_write() -> None:
    seen: Seen = []

    async def write(params: Sequence[InsertParams]) -> list[InsertResult]:
        await asyncio.sleep(0)
        seen.append(f"write {current.get()}")
        return results(params)

    middleware = [Sync("a", seen), Async("b", seen), WorkOnly(), Sync("c", seen), Sync("d", seen)]
    for _ in range(2):
        [result] = await chain_insert_async(middleware, write)(PARAMS)
        assert cast("object", result.job) == "defaultabcd"
        assert seen == [
            *("a before", "b before", "c before", "d before"),
            *("write acd", "d after", "c after", "b after", "a after"),
        ]
        assert current.get() == ""
        seen.clear()


def test_nothing_around_is_the_write_itself() -> None:
    assert chain_insert_sync([], results) is results
    assert chain_insert_sync([WorkOnly()], results) is results


async def test_many_at_once_do_not_mix() -> None:
    seen: Seen = []

    async def write(params: Sequence[InsertParams]) -> list[InsertResult]:
        for _ in range(5):
            await asyncio.sleep(0)
        return results(params)

    chain = chain_insert_async([Sync("a", seen), Sync("b", seen)], write)
    batches = [[InsertParams(kind="k", encoded_args="{}", queue=str(number))] for number in range(20)]
    found = await asyncio.gather(*(chain(batch) for batch in batches))
    assert [cast("object", each[0].job) for each in found] == [f"{number}ab" for number in range(20)]


async def test_errors_pass_through_in_order() -> None:
    seen: Seen = []

    async def fail(_job: Job[Any]) -> None:
        await asyncio.sleep(0)
        raise ValueError("worker")

    with pytest.raises(ValueError, match="worker"):
        await chain_work_async([Sync("a", seen), Async("b", seen), Sync("c", seen)], fail)(JOB)
    assert seen == ["a before", "b before", "c before", "c after", "b after", "a after"]


async def test_a_sync_middleware_may_swallow_repeat_or_skip() -> None:
    calls: list[int] = []

    class Twice:
        def work(self, job: Job[Any], call_next: WorkNext) -> None:
            for _ in range(2):
                try:
                    call_next(job)
                except ValueError:
                    calls.append(-1)

    class Skips:
        def work(self, job: Job[Any], call_next: WorkNext) -> None:
            pass

    async def fail(_job: Job[Any]) -> None:
        calls.append(1)
        raise ValueError

    await chain_work_async([Twice()], fail)(JOB)
    assert calls == [1, -1, 1, -1]
    await chain_work_async([Skips()], fail)(JOB)
    assert calls == [1, -1, 1, -1]


async def test_cancellation_reaches_the_inside_and_the_middleware() -> None:
    seen: Seen = []
    started = asyncio.Event()

    async def wait(_job: Job[Any]) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("inside cancelled")
            raise

    async def run() -> None:
        await chain_work_async([Sync("a", seen), Sync("b", seen)], wait)(JOB)

    task = asyncio.create_task(run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["a before", "b before", "inside cancelled", "b after", "a after"]


async def test_call_next_belongs_to_its_call() -> None:
    kept: list[WorkNext] = []

    class Keeps:
        def work(self, _job: Job[Any], call_next: WorkNext) -> None:
            kept.append(call_next)

    async def work(_job: Job[Any]) -> None:
        pass

    await chain_work_async([Keeps()], work)(JOB)
    with pytest.raises(UsageError, match="call_next"):
        kept[0](JOB)


def test_sync_chains_refuse_async_middleware() -> None:
    with pytest.raises(UsageError, match="is async"):
        chain_insert_sync([Async("a", [])], results)
    with pytest.raises(UsageError, match="is async"):
        chain_work_sync([Async("a", [])], lambda _job: None)


def test_work_in_one_thread() -> None:
    seen: Seen = []
    chain_work_sync([Sync("a", seen), InsertOnly(), Sync("b", seen)], lambda job: seen.append(job.args))(JOB)
    assert seen == ["a before", "b before", "args", "b after", "a after"]


def test_what_middleware_is() -> None:
    items = [Sync("a", []), Async("a", []), InsertOnly(), WorkOnly()]
    for item in items:
        check_middleware(item)
    assert [is_async(item) for item in items] == [False, True, False, False]
    assert work_middleware(items) == [items[0], items[1], items[3]]
    wrong: list[object] = [object(), Sync, lambda: None]
    for item in wrong:
        with pytest.raises(ConfigError, match="insert or work method"):
            check_middleware(item)
