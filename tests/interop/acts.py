"""What jobs of the oracle's kinds do when riverq works them: the twin of go/outcome.go.

The acts are written once, as coroutines. An `async def` worker awaits them; a `def` worker runs them to their end in
its thread, with `Blocking`, whose awaitables never wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import riverq
from tests.interop.peer_jobs import insert_item
from tests.interop.waiting import Tape

T = TypeVar("T")

RawJob = riverq.Job[dict[str, Any]]
TICK = 0.02


class Panic(BaseException):
    """What a worker raises that is no error of the program's: the nearest that Python has to Go's panic."""


class Way(Protocol):
    """How an act waits, and reaches the database: blocking, or in the loop."""

    async def pause(self, job: RawJob, seconds: float) -> None:
        """So long, unless the job is cancelled: then its cancellation is raised."""

    async def until_released(self, job: RawJob, gate: threading.Event) -> None:
        """Until the test releases, or the job is cancelled: then that is raised."""

    async def hold(self, gate: threading.Event) -> None:
        """Until the test releases, deaf to cancellation."""

    async def insert(self, job: RawJob, item: riverq.InsertItem) -> None:
        """By the client that works the job."""

    async def complete(self, job: RawJob, engine: Any, *, commit: bool) -> None:
        """In a transaction that also inserts a pending job of kind side_effect."""

    async def step(self, job: RawJob, step: Mapping[str, Any], body: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Run a step, or skip it."""

    async def save(self, job: RawJob, engine: Any, cursor: Any, act: Mapping[str, Any]) -> None:
        """Save the step, or its cursor, in a transaction that is then ended as the act wants it."""


def side_effect() -> riverq.InsertItem:
    return riverq.InsertItem(riverq.RawArgs("side_effect", "{}"), pending=True)


class Blocking:
    """The way of a `def` worker."""

    async def pause(self, job: RawJob, seconds: float) -> None:
        job.cancelled.wait(seconds)
        job.cancelled.raise_if_set()

    async def until_released(self, job: RawJob, gate: threading.Event) -> None:
        while not gate.is_set() and not job.cancelled.wait(TICK):
            pass
        job.cancelled.raise_if_set()

    async def hold(self, gate: threading.Event) -> None:
        gate.wait()

    async def insert(self, job: RawJob, item: riverq.InsertItem) -> None:
        job.client.insert_many([item])

    async def complete(self, job: RawJob, engine: Any, *, commit: bool) -> None:
        with engine.connect() as connection, connection.begin() as transaction:
            job.client.insert_many([side_effect()], session=connection)
            job.complete(connection)
            if not commit:
                transaction.rollback()

    async def step(self, job: RawJob, step: Mapping[str, Any], body: Callable[..., Coroutine[Any, Any, None]]) -> None:
        run: Any = job.cursor_step if step.get("cursor") else job.step
        run(step["name"], lambda *cursor: at_once(body(*cursor)))

    async def save(self, job: RawJob, engine: Any, cursor: Any, act: Mapping[str, Any]) -> None:
        with engine.connect() as connection, connection.begin() as transaction:
            if "set_cursor" in act:
                cursor.save(act["set_cursor"], session=connection)
            else:
                job.save_step(connection)
            if act["tx"] != "commit":
                transaction.rollback()


class InLoop:
    """The way of an `async def` worker."""

    async def pause(self, job: RawJob, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def until_released(self, job: RawJob, gate: threading.Event) -> None:
        while not gate.is_set():  # noqa: ASYNC110  # the gate is opened from another thread
            await asyncio.sleep(TICK)

    async def hold(self, gate: threading.Event) -> None:
        while not gate.is_set():
            try:
                await asyncio.sleep(TICK)
            except asyncio.CancelledError:
                continue

    async def insert(self, job: RawJob, item: riverq.InsertItem) -> None:
        await job.async_client.insert_many([item])

    async def complete(self, job: RawJob, engine: Any, *, commit: bool) -> None:
        async with engine.connect() as connection, connection.begin() as transaction:
            await job.async_client.insert_many([side_effect()], session=connection)
            await job.complete(connection)
            if not commit:
                await transaction.rollback()

    async def step(self, job: RawJob, step: Mapping[str, Any], body: Callable[..., Coroutine[Any, Any, None]]) -> None:
        run: Any = job.cursor_step if step.get("cursor") else job.step
        await run(step["name"], body)

    async def save(self, job: RawJob, engine: Any, cursor: Any, act: Mapping[str, Any]) -> None:
        async with engine.connect() as connection, connection.begin() as transaction:
            if "set_cursor" in act:
                await cursor.save(act["set_cursor"], session=connection)
            else:
                await job.save_step(connection)
            if act["tx"] != "commit":
                await transaction.rollback()


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("a blocking act waited in a loop")


class Actor:
    """Works the jobs of one client: `work` in its loop, `work_blocking` in a thread."""

    def __init__(self, marks: Tape, gate: threading.Event, script: str, engine: Any, *, is_async: bool) -> None:
        self._marks = marks
        self._gate = gate
        self._script = script
        self._engine = engine
        self._way: Way = InLoop() if is_async else Blocking()

    async def work(self, job: RawJob) -> None:
        self.mark(job, "began")
        try:
            args = job.args
            await self._steps(job, args.get("steps", ()))
            await self.perform(job, args.get("acts", {}).get(self._script, args))
        finally:
            self.mark(job, "ended")

    def work_blocking(self, job: RawJob) -> None:
        at_once(self.work(job))

    def mark(self, job: RawJob, mark: str, detail: Any = None) -> None:
        self._marks.add(
            {"job_id": job.id, "kind": job.row.kind, "attempt": job.row.attempt, "mark": mark, "detail": detail}
        )

    async def perform(self, job: RawJob, act: Mapping[str, Any]) -> None:
        if "output" in act:
            job.record_output(act["output"])
        for key, value in act.get("metadata", {}).items():
            job.set_metadata(key, value)
        if "insert" in act:
            await self._way.insert(job, insert_item(act["insert"]))
        outcome = act.get("outcome", "complete")
        end: Callable[[RawJob, Mapping[str, Any]], Awaitable[None]] | None = getattr(self, f"_end_{outcome}", None)
        if end is None:
            raise ValueError(f"unknown outcome {outcome!r}")
        await end(job, act)

    # -- how it ends, by the outcome's name

    async def _end_complete(self, job: RawJob, act: Mapping[str, Any]) -> None:
        pass

    async def _end_error(self, job: RawJob, act: Mapping[str, Any]) -> None:
        raise RuntimeError(act.get("message", ""))

    async def _end_snooze(self, job: RawJob, act: Mapping[str, Any]) -> None:
        raise riverq.JobSnooze(timedelta(seconds=act["seconds"]))

    async def _end_cancel(self, job: RawJob, act: Mapping[str, Any]) -> None:
        raise riverq.JobCancel(act.get("message", ""))

    async def _end_discard(self, job: RawJob, act: Mapping[str, Any]) -> None:
        raise riverq.JobDiscard(act.get("message", ""))

    async def _end_panic(self, job: RawJob, act: Mapping[str, Any]) -> None:
        raise Panic(act.get("message", ""))

    async def _end_sleep(self, job: RawJob, act: Mapping[str, Any]) -> None:
        await self._way.pause(job, act["seconds"])

    async def _end_hold(self, job: RawJob, act: Mapping[str, Any]) -> None:
        await self._way.hold(self._gate)

    async def _end_wait(self, job: RawJob, act: Mapping[str, Any]) -> None:
        try:
            await self._way.until_released(job, self._gate)
        except BaseException:
            self.mark(job, "cancelled", job.cancelled.reason)
            raise

    async def _end_finish(self, job: RawJob, act: Mapping[str, Any]) -> None:
        try:
            await self._way.until_released(job, self._gate)
        except BaseException:  # noqa: BLE001  # this outcome is the one that ends well nevertheless
            self.mark(job, "cancelled", job.cancelled.reason)

    async def _end_complete_tx(self, job: RawJob, act: Mapping[str, Any]) -> None:
        await self._complete(job, act, commit=True)

    async def _end_complete_tx_rollback(self, job: RawJob, act: Mapping[str, Any]) -> None:
        await self._complete(job, act, commit=False)

    async def _complete(self, job: RawJob, act: Mapping[str, Any], *, commit: bool) -> None:
        await self._way.complete(job, self._engine, commit=commit)
        if act.get("message"):
            raise RuntimeError(act["message"])

    # -- steps

    async def _steps(self, job: RawJob, steps: Any) -> None:
        for step in steps:
            await self._way.step(job, step, partial(self._step, job, step))

    async def _step(self, job: RawJob, step: Mapping[str, Any], cursor: Any = None) -> None:
        """A step's body; one that has no cursor is called without."""
        where = {"name": step["name"]}
        self.mark(job, "step", where if cursor is None else where | {"cursor": cursor.value})
        act = step.get("acts", {}).get(self._script)
        if act is None:
            return
        if "tx" in act:
            await self._way.save(job, self._engine, cursor, act)
        elif "set_cursor" in act:
            cursor.set(act["set_cursor"])
        await self.perform(job, act)
