"""What a client does while it leads: the elector, and the services that it starts for the length of a term.

They run on two lanes inside the general one. What may take long (cleaning, the horizon) has one slot of the general
two, so that the upkeep of a big table never takes both from claims and completions for long; what must not wait for it
(scheduling, dead clients' jobs, periodic jobs) has a lane beside it, whose statements are short. Right before each
statement the lane asks the elector whether this client still leads: a process that was suspended for longer than its
term writes nothing more in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import Engine

from riverq.client.core import Core
from riverq.config import Config
from riverq.database import Database
from riverq.elector import Elector
from riverq.insert import notify_queues
from riverq.liveness import Liveness
from riverq.maintenance.base import MaintenanceTiming
from riverq.maintenance.job_cleaner import CLEANER_INTERVAL, JobCleaner, Retention
from riverq.maintenance.job_rescuer import JobRescuer, StuckJobRules
from riverq.maintenance.job_scheduler import JobScheduler, NotifyQueues
from riverq.maintenance.maintainer import Maintainer
from riverq.maintenance.orphan_rescuer import OrphanRescuer, OrphanTiming
from riverq.maintenance.periodic_enqueuer import PeriodicEnqueuer
from riverq.maintenance.periodic_insert import InsertPath
from riverq.maintenance.queue_cleaner import QueueCleaner
from riverq.maintenance.reindexer import Reindexer, ReindexerConfig
from riverq.notifier import Notifier
from riverq.registry import Workers
from riverq.service import Service, within

NOTIFY_LIMIT = 5.0
"""Seconds; who is not notified polls, so nothing waits for an answer that does not come."""


@dataclass(frozen=True)
class Lanes:
    """The ways to the database that leading needs: the elector's own slot, general work, and a new connection."""

    elector: Database
    general: Database
    open_one: Callable[[], Database]


@dataclass(frozen=True)
class Leading:
    """The elector, and what it starts."""

    elector: Elector
    maintainer: Maintainer
    rescuers: tuple[JobRescuer | OrphanRescuer, ...]

    @property
    def left_unknown(self) -> int:
        """How many stuck jobs were left because no worker here knows their kind."""
        return len(frozenset().union(*(rescuer.left_unknown for rescuer in self.rescuers)))


def assemble_leading(core: Core, lanes: Lanes, notifier: Notifier, liveness: Liveness) -> Leading:
    """The elector, with the leader's services in the order in which they start; `Maintainer` says why in that one."""
    elector = Elector(core.ctx, lanes.elector, notifier)
    upkeep = lanes.general.share(1, check=elector.check_leading)
    quick = lanes.general.share(1, check=elector.check_leading)
    rescuers = _rescuers(core, (upkeep, quick), _notify(core, lanes.general), liveness)
    services: list[Service] = [
        JobScheduler(core.ctx, quick, _notify(core, lanes.general)),
        PeriodicEnqueuer(core.ctx, quick, core.periodic_jobs, _insert_path(core), has_tables=liveness.enabled),
        *rescuers,
        JobCleaner(core.ctx, upkeep, _retention(core.config), _cleaner_timing(core.config)),
        QueueCleaner(core.ctx, upkeep),
        Reindexer(core.ctx, lanes.open_one, _reindexing(core.config)),
    ]
    maintainer = Maintainer(core.ctx, services, request_resign=elector.resign_soon)
    elector.on_gained, elector.on_lost = maintainer.gained, maintainer.lost
    return Leading(elector, maintainer, rescuers)


def _rescuers(
    core: Core, lanes: tuple[Database, Database], notify: NotifyQueues, liveness: Liveness
) -> tuple[JobRescuer | OrphanRescuer, ...]:
    config, (upkeep, quick) = core.config, lanes
    rules = StuckJobRules(
        core.ctx,
        config.workers or Workers(),
        job_timeout=config.job_timeout,
        retry_policy=config.retry_policy,
        on_unknown_kind=config.on_unknown_stuck_kind,
    )
    grace = config.client_grace if liveness.enabled else None
    by_horizon = JobRescuer(core.ctx, upkeep, rules, horizon=config.rescue_horizon, grace=grace)
    if not liveness.enabled:
        return (by_horizon,)
    orphans = OrphanRescuer(core.ctx, quick, rules, notify, liveness, OrphanTiming(grace=config.client_grace))
    return (orphans, by_horizon)


def _notify(core: Core, general: Database) -> NotifyQueues:
    async def notify(queues: Collection[str]) -> None:
        await within(NOTIFY_LIMIT, "notifying", general.run(notify_queues, queues, core.limiter.take))

    return notify


def _insert_path(core: Core) -> InsertPath:
    return InsertPath(
        prepare=core.prepare_item,
        limiter=core.limiter,
        middleware=core.config.middleware,
        may_block=isinstance(core.engine, Engine),
    )


def _retention(config: Config) -> Retention:
    return Retention(
        cancelled=config.cancelled_job_retention_period,
        completed=config.completed_job_retention_period,
        discarded=config.discarded_job_retention_period,
    )


def _cleaner_timing(config: Config) -> MaintenanceTiming:
    return MaintenanceTiming(interval=CLEANER_INTERVAL, timeout=config.job_cleaner_timeout)


def _reindexing(config: Config) -> ReindexerConfig:
    return ReindexerConfig(
        index_names=config.reindexer_index_names,
        schedule=config.reindexer_schedule,
        timeout=config.reindexer_timeout,
    )
