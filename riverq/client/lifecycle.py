"""How a client's services start and stop, in which order and why, and what a hard end leaves behind.

Start, each before what needs it; first the schema is looked up, since wrong tables must stop the start before anything
runs:

  1. the loop's watch, so that whatever blocks the start is named, too;
  2. the completer, so that whatever runs can be written;
  3. the proof of life: its row must be there before the first claim, else nobody can judge the claim's runs;
  4. the notifier, so that every first look at the tables comes after LISTEN; it takes the lock that (3) needs;
  5. the ender of timed pauses, before anybody asks whether a queue is paused;
  6. the elector, so that due jobs become available;
  7. the producers, which begin to claim.

Stop, the other way round, but for the completer and the proof of life, which outlast whatever they are needed by:

  1. the producers stop claiming and wait for running jobs; cancellations from outside still reach those;
  2. the elector resigns, so that another client leads at once;
  3. the ender of timed pauses, which others do as well;
  4. the notifier closes its connection, and with it the lock: from here the heartbeat alone shows life;
  5. the completer writes what is left;
  6. the proof of life ends: its row goes, unless jobs were left running, which are judged by it;
  7. the loop's watch;
  8. the connections are closed.

A start that fails stops what it started, in the same order, and may be tried again. Jobs that were claimed by then are
cancelled and given back: nobody else would tell them, and the caller of `start` would wait for them. `stop` may be
called any number of times; all calls wait for the same stopping, and a service that fails to stop spares none of the
others. Queues come and go in between: `add_queue`, `remove_queue`, `configure_queue`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import timedelta

from riverq.client.assembly import (
    CONTROL_CONNECTIONS,
    Databases,
    Engines,
    Faces,
    Services,
    assemble,
    connect,
    producer_config,
)
from riverq.client.core import MIGRATE, Core, survey
from riverq.config import QueueConfig
from riverq.errors import UsageError
from riverq.service import Service, start_all, to_the_end
from riverq.stats import ClientStats, LeaderStats, QueueStats
from riverq.worker.producer import Producer

__all__ = ["Engines", "Faces", "Runtime"]

NO_PART = LeaderStats(
    takes_part=False,
    is_leader=False,
    elected_at=None,
    last_renewal=None,
    failures_in_a_row=0,
    trust_left=timedelta(0),
)
"""What a client that may not lead has to say about leading."""


def start_order(services: Services) -> list[Service]:
    """The services in the order that the module gives."""
    first = [services.loop_watch, services.completer, services.liveness, services.notifier]
    return [*first, *services.optional(), *services.producers.values()]


def stop_order(services: Services) -> list[Service]:
    """The services but the producers, which stop together and first, in the order that the module gives."""
    last = [services.notifier, services.completer, services.liveness, services.loop_watch]
    return [*reversed(services.optional()), *last]


class Runtime:
    """One run of a client: made and started together, stopped once."""

    def __init__(self, core: Core, engines: Engines, faces: Faces) -> None:
        self._core = core
        self._engines = engines
        self._faces = faces
        self._databases: Databases | None = None
        self._services: Services | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._left: list[int] = []
        self._has_started = False

    async def start(self) -> None:
        """Start everything, or nothing. Raises ConfigError, SchemaError or DatabaseError."""
        self._databases = await self._connect()
        try:
            self._services = services = assemble(self._core, self._databases, self._faces)
            await start_all(start_order(services), undo=self._undo_start)
            self._has_started = True
        except BaseException:
            await to_the_end(self._close())
            raise
        self._core.ctx.log.info("Client: Started: %s", self.describe())

    async def stop(self) -> None:
        """Stop as the module says; running jobs are cancelled after `soft_stop_timeout`."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="riverq.stop")
        await asyncio.shield(self._stopping)

    async def stop_and_cancel(self) -> None:
        """Stop, and cancel running jobs now; they are given back."""
        self.cancel_jobs()
        await self.stop()

    def cancel_jobs(self) -> None:
        """Tell every running job to end because the client stops."""
        if self._services is not None:
            for producer in self._services.producers.values():
                producer.cancel_jobs()

    async def abort(self, grace: timedelta) -> list[int]:
        """Stop without waiting for jobs, within `grace`; returns the ids of jobs that still run, for rescue.

        What is known of finished jobs is written. The others keep their rows `running`: their code may still be at
        work, and giving them back would run it twice at once.
        """
        if self._services is None:
            return []
        self.cancel_jobs()
        stopping = asyncio.ensure_future(self.stop())
        await asyncio.wait({stopping}, timeout=grace.total_seconds() / 2)  # polite jobs end, and are given back
        self._left = [job_id for producer in self._services.producers.values() for job_id in producer.leave()]
        await asyncio.wait({stopping}, timeout=grace.total_seconds() / 2)
        self._services.completer.leave()
        return self._left

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for, by whomever; it is not taken back."""
        return self._stopping is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the stop that was asked for has come to its end."""
        return self._stopping is not None and self._stopping.done()

    # -- queues that come and go

    async def add_queue(self, name: str, queue: QueueConfig) -> None:
        """Begin to work one more queue. Raises DatabaseError where its row cannot be had; then nothing has changed."""
        services = self.services
        producer = services.make_producer(name, queue)
        services.threads.grow(sum(each.config.max_workers for each in services.producers.values()) + queue.max_workers)
        services.producers[name] = producer
        try:
            await producer.start()
            self._check_not_stopped(name)
        except BaseException:
            del services.producers[name]
            await producer.stop()
            raise

    async def remove_queue(self, name: str) -> None:
        """Stop working a queue, when its running jobs have ended. Does nothing for one that is not worked."""
        producer = self.services.producers.get(name)
        if producer is not None:
            await producer.stop()
            self.services.producers.pop(name, None)

    def configure_queue(self, name: str, queue: QueueConfig) -> None:
        """Work a queue in another way from its next claim on. Does nothing for one that is not worked."""
        services = self.services
        producer = services.producers.get(name)
        if producer is not None:
            producer.reconfigure(producer_config(self._core.config, name, queue))
            services.threads.grow(sum(each.config.max_workers for each in services.producers.values()))

    def _check_not_stopped(self, name: str) -> None:
        if self.is_stopping:
            raise UsageError(f"queue {name!r} was not begun: the client is stopping")

    # -- what to say of it

    def describe(self) -> str:
        """Who works what, and how many connections that takes."""
        queues = ", ".join(f"{name} ({queue.max_workers})" for name, queue in self._core.queues.items())
        return f"{self._core.client_id} works {queues}; {self._connections()}"

    def summary(self) -> str:
        """What was done."""
        if self._services is None:
            return "nothing was started"
        stats = self._services.completer.stats
        worked = f"{stats.written} job{'' if stats.written == 1 else 's'} worked"
        return worked + (f", {stats.lost} lost to another run" if stats.lost else "")

    def stats(self) -> ClientStats:
        """How it fares now. For any thread; the figures of a thread that is not the loop's may be a moment apart.

        Raises UsageError in a forked child, where the figures would stand still for ever.
        """
        self._core.check_process()
        services = self.services
        leading, completer = services.leading, services.completer.stats
        return ClientStats(
            client_id=self._core.client_id,
            queues=tuple(_queue_stats(producer) for producer in list(services.producers.values())),
            leader=NO_PART if leading is None else leading.elector.stats(),
            liveness=services.liveness.stats(),
            loop=services.loop_watch.stats,
            listening=services.notifier.is_connected,
            delivering=services.notifier.is_delivering,
            poll_only=services.notifier.poll_only,
            written=completer.written,
            lost=completer.lost,
            unknown_stuck=0 if leading is None else leading.left_unknown,
        )

    @property
    def services(self) -> Services:
        """The running services, for tests and figures. Raises UsageError before they were started."""
        if self._services is None:
            raise UsageError("the client is not running (start it first)")
        return self._services

    def _connections(self) -> str:
        services, shared = self.services, self._engines.share_pool
        listening, beating = not services.notifier.poll_only, services.liveness.enabled
        parts = [f"{CONTROL_CONNECTIONS} control"] * (not shared)
        parts += ["1 to listen"] * listening + ["1 heartbeat"] * beating
        held = CONTROL_CONNECTIONS * (not shared) + listening + beating
        often = f"shares the application's pool for {CONTROL_CONNECTIONS} connections" if shared else ""
        own = f"holds up to {held} connections ({', '.join(parts)})" if held else ""
        rarely = "1 more once rows are locked" + (", 1 while it rebuilds indexes" if services.leading else "")
        return f"{' and '.join(filter(None, (often, own)))}; {rarely}"

    # -- private

    async def _connect(self) -> Databases:
        unresolved = connect(self._core, self._engines, None)
        try:
            found = await unresolved.general.run(survey, self._core.config.schema)
        finally:
            await to_the_end(_close_all(unresolved))
        if not found.has_own_tables:
            self._core.ctx.log.warning(
                "Client: Found no tables of riverq's own in schema %s, so dead workers' jobs are rescued by the hour "
                "only, periodic jobs cannot be durable, and pauses have no end (run: %s)",
                found.schema,
                MIGRATE,
            )
        return connect(self._core, self._engines, found)

    async def _undo_start(self, _started: Iterable[Service]) -> None:
        """Stop whatever runs, the queues that jobs have added meanwhile included; those not started do nothing."""
        await self.stop_and_cancel()

    async def _stop(self) -> None:
        services = self.services
        errors = await _attempt(self._stop_producers(services))
        for service in stop_order(services):
            if service is services.liveness:
                services.liveness.keep_row = self._may_leave_rows(services)
            errors += await _attempt(service.stop())
        errors += await _attempt(self._close())
        if self._has_started:  # whoever subscribed before a start that failed still waits for the next one
            self._core.subscriptions.end()
        self._core.ctx.log.info("Client: Stopped: %s: %s", self._core.client_id, self.summary())
        if errors:
            raise errors[0]

    def _may_leave_rows(self, services: Services) -> bool:
        """Whether rows may stay running that were claimed here; they are judged by this client's row."""
        cut = any(producer.claim_was_cut for producer in services.producers.values())
        return bool(self._left or services.completer.unwritten or cut)

    async def _stop_producers(self, services: Services) -> None:
        stops = [asyncio.create_task(producer.stop()) for producer in services.producers.values()]
        if not stops:
            return
        limit = self._core.config.soft_stop_timeout
        _, pending = await asyncio.wait(stops, timeout=None if limit is None else limit.total_seconds())
        if pending:
            self._core.ctx.log.info("Client: Cancelling jobs that still run after %s", limit)
            self.cancel_jobs()
            await asyncio.wait(stops)
        for stop in stops:
            stop.result()

    async def _close(self) -> None:
        self._faces.close()
        if self._services is not None:
            self._services.threads.shutdown(wait=False)
        if self._databases is not None:
            await _close_all(self._databases)


async def _close_all(databases: Databases) -> None:
    for database in databases.owned:
        await database.close()


async def _attempt(work: Awaitable[None]) -> list[Exception]:
    """What went wrong, for the end: the next step of a stop is taken all the same."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # raised at the end
        return [error]
    return []


def _queue_stats(producer: Producer) -> QueueStats:
    stats = producer.stats
    return QueueStats(
        name=stats.queue,
        max_workers=stats.max_workers,
        running=stats.running,
        stuck=stats.stuck,
        paused=stats.paused,
        claims=stats.claims,
        claimed=stats.claimed,
        ended=stats.ended,
        failed_claims=stats.failed_claims,
    )
