"""From a client's settings to its services. The only module that knows them all.

The connections are riverq's own, made like the application's but outside its pool: elections and completions that wait
for a drained pool are the way such systems fail. `riverq.client.lifecycle` starts and stops what is assembled here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from riverq.client.core import Core
from riverq.client.session import complete_in
from riverq.config import Config, QueueConfig
from riverq.database import Database, control_engine
from riverq.driver import AnyEngine, ServerCapabilities
from riverq.elector import Elector
from riverq.errors import ConfigError
from riverq.insert import notify_queues
from riverq.maintenance.job_scheduler import JobScheduler
from riverq.maintenance.maintainer import Maintainer
from riverq.notifier import Notifier
from riverq.query.notify import notify_raw
from riverq.threads import DaemonThreads
from riverq.worker.completer import Completer
from riverq.worker.context import Surroundings
from riverq.worker.executor import Executor, ExecutorConfig
from riverq.worker.producer import Producer, ProducerConfig

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
    """The lanes to the database: general work, the elector's own slot, and locked rows."""

    general: Database
    elector: Database
    slow: Database
    listener_engine: AnyEngine
    owned: tuple[Database, ...]
    can_listen: bool


@dataclass(frozen=True)
class Services:
    """Everything that runs while a client works."""

    completer: Completer
    notifier: Notifier
    elector: Elector
    producers: tuple[Producer, ...]
    threads: DaemonThreads


def connect(core: Core, engines: Engines, schema: str, server: ServerCapabilities | None) -> Databases:
    """The lanes for `schema`; nothing is opened before it is used."""
    shared = core.engine if engines.share_pool else None
    control = engines.control or shared or control_engine(core.engine, size=CONTROL_CONNECTIONS)
    slow = engines.control or shared or control_engine(core.engine, size=1)
    listener = engines.listener or shared or control_engine(core.engine, size=1)
    owned = engines.control is None and shared is None
    general = Database(control, core.driver, schema=schema, slots=CONTROL_CONNECTIONS - 1, owns_engine=owned)
    slow_lane = Database(slow, core.driver, schema=schema, slots=1, owns_engine=owned)
    can_listen = core.driver.capabilities.listen and (server is None or server.listen_notify)
    return Databases(general, general.limited(1), slow_lane, listener, (general, slow_lane), can_listen)


def assemble(core: Core, databases: Databases, faces: Faces) -> Services:
    """The services, not started. Raises ConfigError for a client that has nothing to work."""
    config = core.config
    if config.queues and config.workers is not None and not len(config.workers):
        raise ConfigError("this client has queues but no worker (register one: @workers.work, or workers.add(…))")
    if not config.queues or config.workers is None:
        raise ConfigError(
            "this client has no queues, so it only inserts and cannot be started "
            "(give it Config(workers=…, queues={'default': QueueConfig(max_workers=…)}))"
        )
    ctx, general = core.ctx, databases.general
    completer = Completer(ctx, general, databases.slow)
    notifier = _notifier(core, databases)
    threads = DaemonThreads(sum(queue.max_workers for queue in config.queues.values()), name="riverq_job")
    executor = Executor(
        ctx,
        config.workers,
        completer,
        threads,
        _surroundings(core, general.schema, faces),
        ExecutorConfig(job_timeout=config.job_timeout, middleware=config.middleware, retry_policy=config.retry_policy),
    )
    producers = tuple(
        Producer(ctx, general, notifier, executor, _producer_config(config, name, queue))
        for name, queue in config.queues.items()
    )
    notifier.is_busy = lambda: any(producer.running_ids for producer in producers)
    return Services(completer, notifier, _elector(core, databases, notifier), producers, threads)


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


def _elector(core: Core, databases: Databases, notifier: Notifier) -> Elector:
    elector = Elector(core.ctx, databases.elector, notifier)

    async def notify(queues: Collection[str]) -> None:
        await databases.general.run(notify_queues, queues, core.limiter.take)

    scheduler = JobScheduler(core.ctx, databases.general, notify)
    maintainer = Maintainer(core.ctx, [scheduler], request_resign=elector.resign_soon)
    elector.on_gained, elector.on_lost = maintainer.gained, maintainer.lost
    return elector


def _surroundings(core: Core, schema: str, faces: Faces) -> Surroundings:
    return Surroundings(
        client_id=core.client_id,
        schema=schema,
        complete_in=complete_in,
        client=faces.sync,
        async_client=faces.asynchronous,
        log=core.ctx.log,
    )


def _producer_config(config: Config, name: str, queue: QueueConfig) -> ProducerConfig:
    return ProducerConfig(
        queue=name,
        max_workers=queue.max_workers,
        fetch_cooldown=queue.fetch_cooldown or config.fetch_cooldown,
        fetch_eager=config.fetch_eager,
        fetch_poll_interval=queue.fetch_poll_interval or config.fetch_poll_interval,
    )
