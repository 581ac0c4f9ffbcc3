"""Which queues a client works: taken from its settings, and changed while it runs.

The set belongs to the client and outlives its runs: what was added is worked again after the next start. `Core` holds
it, the facades show it as `client.queues`, the runtime is told of each change.

**One change of a queue at a time.** While a queue is being added or removed, another change of the same queue is
refused at once: an `add` during a `remove` would otherwise have to wait for jobs that may run for hours, or start a
second producer beside the first. Different queues do not touch each other.

**A start or a stop under way.** A start ends first: it has read the set already, and a queue added meanwhile would be
forgotten. While the client stops, changes concern the next start only.

**A caller that goes away** (a cancelled task, Ctrl-C) does not undo a change that has begun: it goes on in the
runtime's loop, and the queue can be changed again when it is through.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from riverq.config import Config, QueueConfig
from riverq.errors import ConfigError, UsageError
from riverq.validation import nearest
from riverq.worker.context import refuse_in_own_job

if TYPE_CHECKING:
    from riverq.client.async_client import AsyncClient
    from riverq.client.client import Client
    from riverq.client.lifecycle import Runtime

Change = Callable[["Runtime | None"], Coroutine[Any, Any, None]]
"""Given the runtime, or None where the client is not running; then it waits for nothing."""


class _Stage(Enum):
    ADDING = "added"
    WORKED = "worked"
    REMOVING = "removed"


class QueueSet:
    """The queues of one client by name, each with its config and whether it is just being changed. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._queues = {name: (_Stage.WORKED, queue) for name, queue in config.queues.items()}

    def snapshot(self) -> dict[str, QueueConfig]:
        """What is to be worked, as of now; without those being removed."""
        with self._lock:
            return {name: queue for name, (stage, queue) in self._queues.items() if stage is not _Stage.REMOVING}

    def begin_add(self, name: str, queue: QueueConfig) -> None:
        """Take the name. Raises UsageError where it is taken, ConfigError where it could not be worked."""
        self._check(name, queue)
        with self._lock:
            self._refuse_changing(name)
            if name in self._queues:
                raise UsageError(f"this client works queue {name!r} already (change it with queues.update)")
            self._queues[name] = (_Stage.ADDING, queue)

    def begin_remove(self, name: str) -> None:
        """Mark it as leaving. Raises UsageError where this client does not work it, or it is being changed."""
        with self._lock:
            self._queues[name] = (_Stage.REMOVING, self._worked(name))

    def change(self, name: str, queue: QueueConfig) -> None:
        """Give it another config. Raises as `begin_remove` and `begin_add`."""
        self._check(name, queue)
        with self._lock:
            self._worked(name)
            self._queues[name] = (_Stage.WORKED, queue)

    def is_worked(self, name: str) -> None:
        """The change under way is through."""
        with self._lock:
            self._queues[name] = (_Stage.WORKED, self._queues[name][1])

    def forget(self, name: str) -> None:
        """It is gone, or could not be added."""
        with self._lock:
            del self._queues[name]

    def _check(self, name: str, queue: QueueConfig) -> None:
        if self._config.workers is None or not len(self._config.workers):
            raise ConfigError("this client has no workers, so it cannot work a queue (make it with Config(workers=…))")
        replace(self._config, queues={name: queue})  # finds whatever is wrong with either, as at the client's making

    def _worked(self, name: str) -> QueueConfig:
        self._refuse_changing(name)
        if name not in self._queues:
            known = f" ({nearest(name, self._queues)})" if self._queues else ""
            raise UsageError(f"this client does not work queue {name!r}{known}")
        return self._queues[name][1]

    def _refuse_changing(self, name: str) -> None:
        stage = self._queues[name][0] if name in self._queues else _Stage.WORKED
        if stage is not _Stage.WORKED:
            why = ", and its running jobs are waited for" if stage is _Stage.REMOVING else ""
            raise UsageError(f"queue {name!r} is just being {stage.value}{why} (change it when that is through)")


class Queues:
    """`client.queues`: the queues that this client works. Usable from any thread, and from jobs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, name: str, config: QueueConfig) -> None:
        """Work one more queue: at once if the client runs, else from the next start on.

        Raises ConfigError for a name or config that cannot be or a client without workers, UsageError for a queue that
        is worked already, and DatabaseError where it could not be begun; then it was not added.
        """
        self._client._in_runtime(_adding(self._set, name, config))

    def remove(self, name: str) -> None:
        """Stop working a queue, and wait for its running jobs. The queue itself stays, for other clients.

        Raises UsageError for a queue that this client does not work, or in one of the client's own jobs.
        """
        _refuse_in_a_job(self._client.id)
        self._client._in_runtime(_removing(self._set, name))

    def update(self, name: str, config: QueueConfig) -> None:
        """Work a queue by another config, from the next claim on. Jobs above a smaller `max_workers` run to their end.

        Raises ConfigError for a config that cannot be, UsageError for a queue that this client does not work.
        """
        self._client._in_runtime(_changing(self._set, name, config))

    def list(self) -> Mapping[str, QueueConfig]:
        """The queues this client works, or will work from the next start on, by name."""
        return self._set.snapshot()

    @property
    def _set(self) -> QueueSet:
        return self._client._core.queue_set


class AsyncQueues:
    """`client.queues`: the queues that this client works. Usable in the client's event loop, and from jobs."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def add(self, name: str, config: QueueConfig) -> None:
        """Work one more queue: at once if the client runs, else from the next start on.

        Raises ConfigError for a name or config that cannot be or a client without workers, UsageError for a queue that
        is worked already, and DatabaseError where it could not be begun; then it was not added.
        """
        await self._client._in_runtime(_adding(self._set, name, config))

    async def remove(self, name: str) -> None:
        """Stop working a queue, and wait for its running jobs. The queue itself stays, for other clients.

        Raises UsageError for a queue that this client does not work, or in one of the client's own jobs.
        """
        _refuse_in_a_job(self._client.id)
        await self._client._in_runtime(_removing(self._set, name))

    async def update(self, name: str, config: QueueConfig) -> None:
        """Work a queue by another config, from the next claim on. Jobs above a smaller `max_workers` run to their end.

        Raises ConfigError for a config that cannot be, UsageError for a queue that this client does not work.
        """
        await self._client._in_runtime(_changing(self._set, name, config))

    def list(self) -> Mapping[str, QueueConfig]:
        """The queues this client works, or will work from the next start on, by name."""
        return self._set.snapshot()

    @property
    def _set(self) -> QueueSet:
        return self._client._core.queue_set


def without_waiting(work: Coroutine[Any, Any, None]) -> None:
    """Run a change that has no runtime to wait for, where there is no loop either."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise AssertionError("a change of a client that is not running waited for something")


def _adding(queues: QueueSet, name: str, config: QueueConfig) -> Change:
    async def change(runtime: Runtime | None) -> None:
        queues.begin_add(name, config)
        try:
            if runtime is not None and not runtime.is_stopping:
                await runtime.add_queue(name, config)
        except BaseException:
            if runtime is None or not runtime.is_stopping:
                queues.forget(name)
                raise
        queues.is_worked(name)

    return change


def _removing(queues: QueueSet, name: str) -> Change:
    async def change(runtime: Runtime | None) -> None:
        queues.begin_remove(name)
        try:
            if runtime is not None and not runtime.is_stopping:
                await runtime.remove_queue(name)
        finally:
            queues.forget(name)

    return change


def _changing(queues: QueueSet, name: str, config: QueueConfig) -> Change:
    async def change(runtime: Runtime | None) -> None:
        queues.change(name, config)
        if runtime is not None:
            runtime.configure_queue(name, config)

    return change


def refuse_in_own_loop(client_id: str) -> None:
    """Raises UsageError in an `async def` job of the sync client: its loop would wait for itself for ever."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    try:
        refuse_in_own_job(client_id)
    except UsageError:
        raise UsageError("client.queues would block the event loop here (use job.async_client.queues)") from None


def _refuse_in_a_job(client_id: str) -> None:
    try:
        refuse_in_own_job(client_id)
    except UsageError:
        raise UsageError("a job cannot remove a queue of the client that runs it (it may wait for itself)") from None
