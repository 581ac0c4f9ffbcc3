"""From a client's settings to its services. The only module that knows them all.

The connections are riverq's own, made like the application's but outside its pool: elections and completions that wait
for a drained pool are the way such systems fail. `riverq.client.lifecycle` starts and stops what is assembled here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from riverq.client.core import Core, Surveyed
from riverq.client.leading import Lanes, Leading, assemble_leading
from riverq.client.session import complete_in
from riverq.client.subscribing import subscribe_to
from riverq.config import Config, QueueConfig
from riverq.database import Database, control_engine
from riverq.driver import AnyEngine
from riverq.errors import ConfigError
from riverq.liveness import Liveness
from riverq.notifier import Notifier
from riverq.pause_ender import PauseEnder
from riverq.query.notify import notify_raw
from riverq.service import Service
from riverq.threads import DaemonThreads
from riverq.worker.completer import Completer
from riverq.worker.context import RunContext, Surroundings
from riverq.worker.executor import Executor, ExecutorConfig
from riverq.worker.loop_watch import LoopWatch
from riverq.worker.producer import Producer
from riverq.worker.producer_config import ProducerConfig

if TYPE_CHECKING:
    from riverq.client.async_client import AsyncClient
    from riverq.client.client import Client

CONTROL_CONNECTIONS = 3
"""Two for completing, claiming and upkeep, one that is only the elector's."""


@dataclass(frozen=True)
class Engines:
    """What the application gave instead of the connections that riverq makes itself."""

    control: AnyEngine | None
    listener: AnyEngine | None
    share_pool: bool

    def for_lookup(self, application: AnyEngine) -> tuple[AnyEngine, bool]:
        """An engine to look up the schema on, and whether it is ours to dispose of.

        Not the application's own unless it is shared: its only connection may be the one that a session holds.
        """
        if self.control is not None:
            return self.control, False
        return (application, False) if self.share_pool else (control_engine(application, size=1), True)


@dataclass(frozen=True)
class Faces:
    """How a running job gets at the client that runs it. `close` lets go of what that needed."""

    sync: Callable[[], Client]
    asynchronous: Callable[[], AsyncClient]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Databases:
    """The lanes to the database: general work, the elector's own slot, locked rows; and where other lanes come from.

    `source` is what a connection of one's own is copied from; `open_one` makes a database of one connection, for the
    caller to close.
    """

    general: Database
    elector: Database
    slow: Database
    listener_engine: AnyEngine
    source: AnyEngine
    open_one: Callable[[], Database]
    owned: tuple[Database, ...]
    can_listen: bool
    has_own_tables: bool


@dataclass(frozen=True)
class Services:
    """Everything that runs while a client works. `leading` and `pause_ender` are None where the client has no part."""

    core: Core
    general: Database
    loop_watch: LoopWatch
    completer: Completer
    liveness: Liveness
    notifier: Notifier
    pause_ender: PauseEnder | None
    leading: Leading | None
    executor: Executor
    threads: DaemonThreads
    producers: dict[str, Producer]

    def make_producer(self, name: str, queue: QueueConfig) -> Producer:
        """A producer for one queue, not started."""
        config = producer_config(self.core.config, name, queue)
        producer = Producer(self.core.ctx, self.general, self.notifier, self.executor, config)
        producer.control.on_change = self.core.subscriptions.queue_changed
        producer.lost_claims.incarnation = lambda: self.liveness.incarnation
        producer.lost_claims.grace = self.core.config.client_grace
        return producer

    def look_at_everything(self, _missed: timedelta) -> None:
        """The process stood still: others may have taken its jobs, or paused its queues, without its hearing it."""
        for producer in self.producers.values():
            producer.look_at_everything()

    def optional(self) -> list[Service]:
        """Those between the notifier and the producers that this client has."""
        elector = None if self.leading is None else self.leading.elector
        return [service for service in (self.pause_ender, elector) if service is not None]


def connect(core: Core, engines: Engines, found: Surveyed | None) -> Databases:
    """The lanes, for what was found in the database; nothing is opened before it is used."""
    shared = core.engine if engines.share_pool else None
    control = engines.control or shared or control_engine(core.engine, size=CONTROL_CONNECTIONS)
    slow = engines.control or shared or control_engine(core.engine, size=1)
    listener = engines.listener or shared or control_engine(core.engine, size=1)
    owned = engines.control is None and shared is None
    schema = "" if found is None else found.schema
    general = Database(control, core.driver, schema=schema, slots=CONTROL_CONNECTIONS - 1, owns_engine=owned)
    slow_lane = Database(slow, core.driver, schema=schema, slots=1, owns_engine=owned)
    source = engines.control or core.engine
    if found is not None:
        core.found(found.schema, found.server)
        for engine in (control, slow, listener):
            core.remember_server(engine)

    def open_one() -> Database:
        own = shared or control_engine(source, size=1)
        return Database(own, core.driver, schema=schema, slots=1, owns_engine=shared is None)

    return Databases(
        general=general,
        elector=general.limited(1),
        slow=slow_lane,
        listener_engine=listener,
        source=source,
        open_one=open_one,
        owned=(general, slow_lane),
        can_listen=core.driver.capabilities.listen and (found is None or found.server.listen_notify),
        has_own_tables=found is not None and found.has_own_tables,
    )


def assemble(core: Core, databases: Databases, faces: Faces) -> Services:
    """The services, not started. Raises ConfigError for a client that has nothing to work."""
    config, queues = core.config, core.queues
    if queues and config.workers is not None and not len(config.workers):
        raise ConfigError("this client has queues but no worker (register one: @workers.work, or workers.add(…))")
    if not queues or config.workers is None:
        raise ConfigError(
            "this client has no queues, so it only inserts and cannot be started "
            "(give it Config(workers=…, queues={'default': QueueConfig(max_workers=…)}))"
        )
    ctx, general = core.ctx, databases.general
    completer = Completer(ctx, general, databases.slow)
    subscribe_to(core, completer)
    notifier = _notifier(core, databases)
    liveness = _liveness(core, databases, notifier)
    threads = DaemonThreads(sum(queue.max_workers for queue in queues.values()), name="riverq_job")
    producers: dict[str, Producer] = {}
    lanes = Lanes(databases.elector, general, databases.open_one)
    services = Services(
        core=core,
        general=general,
        loop_watch=LoopWatch(ctx, config.loop_block_threshold, partial(_run_of, producers)),
        completer=completer,
        liveness=liveness,
        notifier=notifier,
        pause_ender=PauseEnder(ctx, general, notifier) if databases.has_own_tables else None,
        leading=assemble_leading(core, lanes, notifier, liveness) if config.leader_election else None,
        executor=_executor(core, completer, threads, _surroundings(core, general.schema, faces)),
        threads=threads,
        producers=producers,
    )
    producers.update({name: services.make_producer(name, queue) for name, queue in queues.items()})
    services.loop_watch.on_standstill = services.look_at_everything
    notifier.is_busy = lambda: any(producer.running_ids for producer in producers.values())
    return services


def _run_of(producers: dict[str, Producer], task: asyncio.Task[Any]) -> RunContext | None:
    """The run that a task works, for any thread."""
    found = (producer.run_of(task) for producer in list(producers.values()))
    return next((run for run in found if run is not None), None)


def producer_config(config: Config, name: str, queue: QueueConfig) -> ProducerConfig:
    """How a queue is worked: what its own config says, else the client's."""
    return ProducerConfig(
        queue=name,
        max_workers=queue.max_workers,
        fetch_cooldown=queue.fetch_cooldown or config.fetch_cooldown,
        fetch_eager=config.fetch_eager,
        fetch_only_known_kinds=config.fetch_only_known_kinds,
        fetch_poll_interval=queue.fetch_poll_interval or config.fetch_poll_interval,
    )


def _executor(core: Core, completer: Completer, threads: DaemonThreads, around: Surroundings) -> Executor:
    config = core.config
    assert config.workers is not None, "a client without workers is not assembled"
    how = ExecutorConfig(
        error_handler=config.error_handler,
        job_stuck_handler=config.job_stuck_handler,
        job_stuck_threshold=config.job_stuck_threshold,
        job_timeout=config.job_timeout,
        middleware=config.middleware,
        retry_policy=config.retry_policy,
    )
    return Executor(core.ctx, config.workers, completer, threads, around, how)


def _notifier(core: Core, databases: Databases) -> Notifier:
    async def notify(channel: str, payload: str) -> None:
        await databases.general.run_single(notify_raw, channel, payload)

    return Notifier(
        core.ctx,
        make_listener=lambda: core.driver.listener(databases.listener_engine),
        schema=databases.general.schema,
        notify=notify,
        poll_only=core.config.poll_only or not databases.can_listen,
    )


def _liveness(core: Core, databases: Databases, notifier: Notifier) -> Liveness:
    liveness = Liveness(
        core.ctx,
        databases.source,
        core.driver,
        schema=databases.general.schema,
        grace=core.config.client_grace,
        enabled=databases.has_own_tables,
    )
    liveness.is_listening = lambda: notifier.is_connected
    notifier.on_proven, notifier.on_gone = liveness.on_proven, liveness.on_gone
    return liveness


def _surroundings(core: Core, schema: str, faces: Faces) -> Surroundings:
    return Surroundings(
        client_id=core.client_id,
        schema=schema,
        complete_in=complete_in,
        client=faces.sync,
        async_client=faces.asynchronous,
        log=core.ctx.log,
    )
