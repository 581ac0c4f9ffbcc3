"""The peer's operations on clients that work: start, what they tell, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, TypedDict

import riverq
from tests.interop import neutral
from tests.interop.acts import Actor
from tests.interop.oracle import OracleError
from tests.interop.peer_jobs import insert_item
from tests.interop.waiting import PATIENCE, Tape

SECONDS = {
    "fetch_cooldown_seconds": "fetch_cooldown",
    "fetch_poll_seconds": "fetch_poll_interval",
    "grace_seconds": "client_grace",
    "rescue_seconds": "rescue_stuck_jobs_after",
    "soft_stop_seconds": "soft_stop_timeout",
    "stuck_seconds": "job_stuck_threshold",
}
"""What `start` is given in seconds, and the name of riverq's setting."""

EVENTS = 100_000
"""How many unread events a client keeps for the test."""


@dataclass(frozen=True)
class FixedRetry:
    """A retry policy whose answer is the same on both sides."""

    wait: timedelta

    def next_retry(self, job: riverq.JobRow, *, rng: Random) -> timedelta:
        return self.wait


class Handler:
    """Leaves a mark for each error it is told of, and cancels the job where the test wants that."""

    def __init__(self, marks: Tape, *, cancels: bool) -> None:
        self._marks = marks
        self._cancels = cancels

    def handle_error(self, row: riverq.JobRow, error: BaseException, /) -> Any:
        mark = "error_handled" if isinstance(error, Exception) else "panic_handled"
        self._marks.add(
            {"job_id": row.id, "kind": row.kind, "attempt": row.attempt, "mark": mark, "detail": str(error)}
        )
        return "cancel" if self._cancels else None


RARE: dict[str, Callable[[Any, Tape], dict[str, Any]]] = {
    "job_timeout_seconds": lambda given, _: {"job_timeout": None if given < 0 else timedelta(seconds=given)},
    "max_attempts": lambda given, _: {"max_attempts": given},
    "on_error": lambda given, marks: {"error_handler": Handler(marks, cancels=given == "cancel")},
    "only_known_kinds": lambda given, _: {"fetch_only_known_kinds": given},
    "reindex_seconds": lambda given, _: {"reindexer_schedule": riverq.every(timedelta(seconds=given))},
    "retention_seconds": lambda given, _: {
        f"{state}_job_retention_period": timedelta(seconds=seconds) for state, seconds in given.items()
    },
    "retry_seconds": lambda given, _: {"retry_policy": FixedRetry(timedelta(seconds=given))},
    "stuck_seconds": lambda _, marks: {"job_stuck_handler": _stuck_handler(marks)},
}
"""What else `start` may be given, and the settings that follow from it."""


@dataclass
class WorkingClient:
    """A client that was started under a name, and what it has told so far."""

    client: Any
    events: Tape
    marks: Tape
    gate: threading.Event
    stop_listening: Callable[[], None]


class WorkOperations:
    """Each is the twin of the oracle's operation of that name."""

    schema: str
    is_async: bool
    engine: Any
    _working: dict[str, WorkingClient]

    def wait(self, result: Any) -> Any:
        raise NotImplementedError

    def client(self, config: riverq.Config) -> Any:
        raise NotImplementedError

    # -- beginning

    def op_start(self, *, client: str, **asked: Any) -> str:
        if client in self._working:
            raise OracleError(f"a client named {client!r} runs already")
        marks, events, gate = Tape(), Tape(), threading.Event()
        actor = Actor(marks, gate, asked.get("script", ""), self.engine, is_async=self.is_async)
        made = self.client(self._config(asked, marks, actor))
        working = WorkingClient(made, events, marks, gate, self._listen(made, events))
        try:
            self.wait(made.start())
        except BaseException:
            working.stop_listening()
            raise
        self._working[client] = working
        client_id: str = made.id
        return client_id

    def _config(self, asked: Mapping[str, Any], marks: Tape, actor: Actor) -> riverq.Config:
        given: dict[str, Any] = {
            "client_id": asked.get("client_id"),
            "leader_election": not asked.get("no_leader", False),
            "periodic_jobs": [periodic_job(each) for each in asked.get("periodic", ())],
            "poll_only": asked.get("poll_only", False),
            "queues": _queues(asked),
            "reindexer_schedule": riverq.never(),
            "schema": self.schema,
            "skip_unknown_job_check": not asked.get("check_kinds", False),
            "workers": _workers(asked, actor, is_async=self.is_async),
        }
        for name, setting in SECONDS.items():
            if name in asked:
                given[setting] = timedelta(seconds=asked[name])
        for name, settings in RARE.items():
            if name in asked:
                given |= settings(asked[name], marks)
        if "rescue_seconds" in asked:
            given.setdefault("job_timeout", None)
        return riverq.Config(**given, **asked.get("riverq", {}))

    def _listen(self, client: Any, events: Tape) -> Callable[[], None]:
        """Write down what the client's subscription tells; the function that this returns ends that, all being read."""
        if self.is_async:
            subscription, reading = self.wait(_listen_in_loop(client, events))

            async def end() -> None:
                subscription.close()
                await reading

            return lambda: self.wait(end())

        subscription = client.subscribe(buffer=EVENTS)

        def read() -> None:
            for event in subscription:
                events.add(event_entry(event))

        thread = threading.Thread(target=read, name="interop_events")
        thread.start()

        def close() -> None:
            subscription.close()
            thread.join()

        return close

    # -- what it tells

    def op_events(
        self, *, client: str, count: int = 0, seconds: float = PATIENCE, kinds: Any = None, job_id: int = 0
    ) -> list[dict[str, Any]]:
        def fits(entry: Mapping[str, Any]) -> bool:
            return (kinds is None or entry["kind"] in kinds) and job_id in (0, entry.get("job_id"))

        return self._named(client).events.wait_for(count, seconds, "events", fits)

    def op_marks(
        self, *, client: str, count: int = 0, seconds: float = PATIENCE, mark: str = "", job_id: int = 0
    ) -> list[dict[str, Any]]:
        def fits(entry: Mapping[str, Any]) -> bool:
            return mark in ("", entry["mark"]) and job_id in (0, entry.get("job_id"))

        return self._named(client).marks.wait_for(count, seconds, "marks", fits)

    # -- changes while it runs

    def op_release(self, *, client: str) -> None:
        self._named(client).gate.set()

    def op_queue_add(self, *, client: str, queue: str, max_workers: int = 10) -> None:
        queues = self._named(client).client.queues
        self.wait(queues.add(queue, riverq.QueueConfig(max_workers=max_workers)))

    def op_queue_remove(self, *, client: str, queue: str) -> None:
        self.wait(self._named(client).client.queues.remove(queue))

    def op_periodic_add(self, *, client: str, periodic: Mapping[str, Any]) -> None:
        self._named(client).client.periodic_jobs.add(periodic_job(periodic))

    def op_periodic_remove(self, *, client: str, periodic_id: str) -> bool:
        removed: bool = self._named(client).client.periodic_jobs.remove_by_id(periodic_id)
        return removed

    # -- end

    def op_stop(self, *, client: str, cancel: bool = False, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        working = self._named(client)
        stop = working.client.stop_and_cancel if cancel else working.client.stop
        self.wait(stop(timeout=timedelta(seconds=seconds)))
        with contextlib.suppress(KeyError):  # somebody else stopped it too
            del self._working[client]
        working.stop_listening()
        return working.events.wait_for(0, 0, "events", lambda _entry: True)

    def _named(self, name: str) -> WorkingClient:
        if name not in self._working:
            raise OracleError(f"no client named {name!r} runs")
        return self._working[name]


def periodic_job(asked: Mapping[str, Any]) -> riverq.PeriodicJob:
    """A periodic job as the oracle's `start` takes it."""
    schedule: Any = riverq.never()
    if asked.get("seconds"):
        schedule = riverq.every(timedelta(seconds=asked["seconds"]))
    if asked.get("cron"):
        schedule = riverq.cron(asked["cron"])
    return riverq.PeriodicJob(
        schedule,
        lambda: insert_item(asked["job"]),
        id=asked.get("id"),
        run_on_start=asked.get("run_on_start", False),
        durable=asked.get("durable", False),
    )


async def _listen_in_loop(client: Any, events: Tape) -> Any:
    subscription = client.subscribe(buffer=EVENTS)

    async def read() -> None:
        async for event in subscription:
            events.add(event_entry(event))

    return subscription, asyncio.create_task(read())


def event_entry(event: Any) -> dict[str, Any]:
    """An event as the oracle tells it."""
    told: dict[str, Any] = {"kind": str(event.kind)}
    if event.job is not None:
        told["job"], told["job_id"] = neutral.river_row(event.job), event.job.id
    if event.queue is not None:
        told["queue"] = event.queue.name
    return told


def _queues(asked: Mapping[str, Any]) -> dict[str, riverq.QueueConfig]:
    sizes = asked.get("queues") or {asked.get("queue", "default"): asked.get("max_workers", 10)}
    return {name: riverq.QueueConfig(max_workers=size) for name, size in sizes.items()}


def _args_class(kind: str, aliases: Any) -> Any:
    """A class of this kind's own, which raw args cannot be: only a class has aliases."""

    class Args(TypedDict, total=False):
        outcome: str
        message: str
        seconds: float
        output: Any
        metadata: Any
        insert: Any
        acts: Any
        steps: Any

    return riverq.job_args(kind, aliases=aliases)(Args)


def _workers(asked: Mapping[str, Any], actor: Actor, *, is_async: bool) -> riverq.Workers:
    workers = riverq.Workers()
    for kind in asked.get("kinds", ()):
        aliases = asked.get("aliases", {}).get(kind)
        args_class: Any = _args_class(kind, aliases) if aliases else dict[str, Any]
        job_class: Any = riverq.Job

        async def work(job: Any) -> None:
            await actor.work(job)

        def work_blocking(job: Any) -> None:
            actor.work_blocking(job)

        chosen = work if is_async else work_blocking
        chosen.__annotations__["job"] = job_class[args_class]
        workers.work(kind=None if aliases else kind)(chosen)
    return workers


def _stuck_handler(marks: Tape) -> Any:
    def handle(stuck: riverq.StuckJob) -> riverq.StuckAnswer:
        marks.add({"job_id": stuck.job_id, "kind": stuck.kind, "mark": "stuck", "detail": stuck.total_stuck})
        return riverq.StuckAnswer.ADD_WORKER_SLOT

    return handle
