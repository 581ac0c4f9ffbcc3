"""Every setting of a client, with its default and its limits, checked when it is made.

Names and defaults are River's, durations are `timedelta`. Nothing here reads the environment; only the command line
does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from riverq.cron import CronSchedule
from riverq.errors import ConfigError
from riverq.hook import Middleware, check_middleware
from riverq.insert_opts import check_queue_name
from riverq.periodic import PeriodicJob
from riverq.registry import Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy
from riverq.schedule import Schedule
from riverq.stuck import StuckHandler
from riverq.validation import duration, fail, integer, known_options
from riverq.worker.error_handling import ErrorHandler, check_error_handler

C = TypeVar("C", bound=type)

MILLISECOND = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
LEAST_CLIENT_GRACE = timedelta(seconds=6)
KEEP = timedelta(seconds=-1)
"""A retention that means: keep for ever, as None does. River spells it -1."""

MIDNIGHT_UTC = CronSchedule("0 0 * * *")

REINDEXED = (
    "river_job_args_index",
    "river_job_kind",
    "river_job_metadata_index",
    "river_job_pkey",
    "river_job_prioritized_fetching_index",
    "river_job_state_and_finalized_at_index",
    "river_job_unique_idx",
)

MAX_SCHEMA_LENGTH = 46
"""63 bytes of a Postgres identifier, less the dot and the longest topic, `river_leadership`."""

_SCHEMA = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


def _known_fields_only(cls: C) -> C:
    """A misspelt setting is refused with the nearest name; a plain dataclass would not say it."""
    names = [item.name for item in fields(cls)]
    plain: Callable[..., None] = cls.__init__  # type: ignore[misc]  # the dataclass's own, on this class

    @functools.wraps(plain)
    def checked(self: object, **given: Any) -> None:
        known_options(f"setting of {cls.__name__}", given, names)
        plain(self, **given)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@_known_fields_only
@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How one queue is worked by this client.

    `max_workers` jobs at most run at once (1 to 10 000). `fetch_cooldown` and `fetch_poll_interval`
    override the client's.
    """

    max_workers: int
    fetch_cooldown: timedelta | None = None
    fetch_poll_interval: timedelta | None = None

    def __post_init__(self) -> None:
        integer("max_workers", self.max_workers, 1, 10_000)
        for name in ("fetch_cooldown", "fetch_poll_interval"):
            if getattr(self, name) is not None:
                duration(name, getattr(self, name), MILLISECOND)


@_known_fields_only
@dataclass(frozen=True, kw_only=True)
class Config:
    """A client's settings.

    A client without `queues` only inserts; one with `queues` also needs `workers`.

    - `cancelled_job_retention_period` (24 h), `completed_job_retention_period` (24 h), `discarded_job_retention_period`
      (7 days): how long the leader keeps finished jobs; None or -1 second keeps them for ever.
    - `client_grace` (30 s, at least 6 s): how long a client may be silent before it may be taken for dead. The same for
      all clients of a fleet.
    - `client_id`: at most 100 characters; made from host name and time when not given. Written to `attempted_by` and
      `river_leader`.
    - `error_handler`: hears of each attempt that failed, and may cancel its job.
    - `fetch_cooldown` (100 ms): the least time between two claims of one queue. `fetch_poll_interval` (1 s): how often
      a queue is looked at when nothing is heard.
    - `fetch_eager` (True): claim again at once while claims come back full and slots are free.
    - `fetch_only_known_kinds` (False): leave jobs of kinds that no worker is registered for to other clients.
    - `job_cleaner_timeout` (30 s): how long one statement of the job cleaner may take.
    - `job_stuck_threshold` (10 s): how long past its timeout a job may run on before it counts as stuck, and
      `job_stuck_handler` is told.
    - `job_timeout` (60 s): how long an attempt may take, unless its worker says otherwise; None for no limit.
    - `leader_election` (True): whether this client may lead. One that may not cannot have `periodic_jobs`.
    - `loop_block_threshold` (1 s): for how long the event loop may stand still before the job that blocks it is named.
    - `max_attempts` (25): for jobs whose options do not say.
    - `middleware`: wraps inserting and working; see docs/internals/worker.md.
    - `on_unknown_stuck_kind` (`"leave"`): what this client, leading, does with dead clients' jobs of kinds that it has
      no worker for: `"leave"`, `"retry"` or `"discard"` (as Go River).
    - `period_basis`: what `by_period` counts from: `"scheduled_time"`, or `"insert_time"` for fleets with Go River
      before 0.48.
    - `periodic_jobs`: inserted by a schedule while this client leads; register the same in every client that may lead.
    - `poll_only` (False): never LISTEN.
    - `reindexer_schedule` (midnight UTC), `reindexer_timeout` (1 minute each; None for no limit),
      `reindexer_index_names` (River's seven; empty for none): when which indexes are rebuilt.
    - `rescue_stuck_jobs_after`: after how long a running job whose client gives no proof of life is taken for stuck;
      None: 1 h, or `job_timeout` + 1 h where that was set.
    - `retry_policy`: River's fourth power of the number of errors, in seconds, ±10 %.
    - `schema`: where River's tables are; None means the engine's `current_schema()`, asked once.
    - `skip_unknown_job_check` (False): let a client with workers insert kinds that it has no worker for.
    - `soft_stop_timeout` (None): how long `stop` waits for running jobs before it cancels them; None waits for ever.
    - `workers`, `queues`: what is worked, and where.

    Raises ConfigError for a value outside its limits or a setting that does not exist.
    """

    cancelled_job_retention_period: timedelta | None = timedelta(hours=24)
    client_grace: timedelta = timedelta(seconds=30)
    client_id: str | None = None
    completed_job_retention_period: timedelta | None = timedelta(hours=24)
    discarded_job_retention_period: timedelta | None = timedelta(days=7)
    error_handler: ErrorHandler | None = None
    fetch_cooldown: timedelta = timedelta(milliseconds=100)
    fetch_eager: bool = True
    fetch_only_known_kinds: bool = False
    fetch_poll_interval: timedelta = timedelta(seconds=1)
    job_cleaner_timeout: timedelta = timedelta(seconds=30)
    job_stuck_handler: StuckHandler | None = None
    job_stuck_threshold: timedelta = timedelta(seconds=10)
    job_timeout: timedelta | None = timedelta(seconds=60)
    leader_election: bool = True
    loop_block_threshold: timedelta = timedelta(seconds=1)
    max_attempts: int = 25
    middleware: Sequence[Middleware] = ()
    on_unknown_stuck_kind: Literal["leave", "retry", "discard"] = "leave"
    period_basis: Literal["scheduled_time", "insert_time"] = "scheduled_time"
    periodic_jobs: Sequence[PeriodicJob] = ()
    poll_only: bool = False
    queues: Mapping[str, QueueConfig] = field(default_factory=dict)
    reindexer_index_names: Sequence[str] = REINDEXED
    reindexer_schedule: Schedule = MIDNIGHT_UTC
    reindexer_timeout: timedelta | None = timedelta(minutes=1)
    rescue_stuck_jobs_after: timedelta | None = None
    retry_policy: RetryPolicy = field(default_factory=DefaultRetryPolicy)
    schema: str | None = None
    skip_unknown_job_check: bool = False
    soft_stop_timeout: timedelta | None = None
    workers: Workers | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_names()
        self._check_times()
        integer("max_attempts", self.max_attempts, 1, 32_767)
        if self.period_basis not in ("scheduled_time", "insert_time"):
            raise fail("period_basis", "to be 'scheduled_time' or 'insert_time'", self.period_basis)
        if self.on_unknown_stuck_kind not in ("leave", "retry", "discard"):
            raise fail("on_unknown_stuck_kind", "to be 'leave', 'retry' or 'discard'", self.on_unknown_stuck_kind)
        self._check_queues()
        self._check_leading()

    @property
    def rescue_horizon(self) -> timedelta:
        """`rescue_stuck_jobs_after`, or what stands for it where it was not given."""
        if self.rescue_stuck_jobs_after is not None:
            return self.rescue_stuck_jobs_after
        default = Config.__dataclass_fields__["job_timeout"].default
        return HOUR if self.job_timeout in (None, default) else HOUR + self.job_timeout

    def _check_names(self) -> None:
        if self.client_id is not None and not (isinstance(self.client_id, str) and 1 <= len(self.client_id) <= 100):
            raise fail("client_id", "to be a text of 1 to 100 characters", self.client_id)
        if self.client_id is not None and ("\0" in self.client_id or not _is_unicode(self.client_id)):
            raise fail("client_id", "to hold no NUL character and no lone surrogate", self.client_id)
        if self.schema is not None and not _is_schema(self.schema):
            raise fail(
                "schema",
                f"to be at most {MAX_SCHEMA_LENGTH} letters, digits and underscores, not starting with a digit",
                self.schema,
                "a schema with another name is reached by leaving schema out and setting search_path on the role",
            )

    def _check_times(self) -> None:
        duration("fetch_cooldown", self.fetch_cooldown, MILLISECOND)
        duration("fetch_poll_interval", self.fetch_poll_interval, MILLISECOND)
        _cooldown_fits(self.fetch_cooldown, self.fetch_poll_interval)
        if self.job_timeout is not None:
            duration("job_timeout", self.job_timeout, MILLISECOND)
        if self.soft_stop_timeout is not None:
            duration("soft_stop_timeout", self.soft_stop_timeout)
        duration("client_grace", self.client_grace, LEAST_CLIENT_GRACE)
        for name in ("job_cleaner_timeout", "job_stuck_threshold", "loop_block_threshold"):
            duration(name, getattr(self, name), MILLISECOND)
        for state in ("cancelled", "completed", "discarded"):
            name = f"{state}_job_retention_period"
            if getattr(self, name) not in (None, KEEP):
                duration(name, getattr(self, name))
        if self.reindexer_timeout is not None:
            duration("reindexer_timeout", self.reindexer_timeout, MILLISECOND)
        if self.rescue_stuck_jobs_after is not None:
            duration("rescue_stuck_jobs_after", self.rescue_stuck_jobs_after, self.job_timeout or MILLISECOND)

    def _check_kinds(self) -> None:
        for name in ("fetch_eager", "fetch_only_known_kinds", "leader_election", "poll_only", "skip_unknown_job_check"):
            if not isinstance(getattr(self, name), bool):
                raise fail(name, "to be True or False", getattr(self, name))
        if not isinstance(self.queues, Mapping):
            raise fail("queues", "to be a dict of names and QueueConfig", self.queues)
        if not isinstance(self.middleware, Sequence) or isinstance(self.middleware, str):
            raise fail("middleware", "to be a list", self.middleware)
        if isinstance(self.retry_policy, type) or not callable(getattr(self.retry_policy, "next_retry", None)):
            raise fail("retry_policy", "to be an object with a next_retry method", self.retry_policy)
        check_error_handler(self.error_handler)

    def _check_queues(self) -> None:
        for name, queue in self.queues.items():
            check_queue_name(name)
            if not isinstance(queue, QueueConfig):
                raise fail(f"queues[{name!r}]", "to be a QueueConfig", queue)
            _cooldown_fits(
                queue.fetch_cooldown or self.fetch_cooldown, queue.fetch_poll_interval or self.fetch_poll_interval
            )
        if self.queues and self.workers is None:
            raise ConfigError("queues need workers: pass workers=riverq.Workers() with a worker for each kind")
        if self.workers is not None and not isinstance(self.workers, Workers):
            raise fail("workers", "to be a riverq.Workers", self.workers)
        object.__setattr__(self, "queues", MappingProxyType(dict(self.queues)))
        object.__setattr__(self, "middleware", tuple(self.middleware))
        for item in self.middleware:
            check_middleware(item)

    def _check_leading(self) -> None:
        if not callable(getattr(self.reindexer_schedule, "next", None)):
            raise fail("reindexer_schedule", "to be a schedule", self.reindexer_schedule, "riverq.cron(…), every(…)")
        for name in ("periodic_jobs", "reindexer_index_names"):
            if not isinstance(getattr(self, name), Sequence) or isinstance(getattr(self, name), str):
                raise fail(name, "to be a list", getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for index in self.reindexer_index_names:
            if not isinstance(index, str) or not index:
                raise fail("reindexer_index_names", "to hold names", index)
        for job in self.periodic_jobs:
            if not isinstance(job, PeriodicJob):
                raise fail("periodic_jobs", "to hold PeriodicJobs", job)
        if self.periodic_jobs and not self.leader_election:
            raise ConfigError("periodic jobs need a client that may lead (drop leader_election=False or periodic_jobs)")
        if self.job_stuck_handler is not None and not callable(self.job_stuck_handler):
            raise fail("job_stuck_handler", "to be a function", self.job_stuck_handler)


def _is_unicode(text: str) -> bool:
    return text == text.encode(errors="replace").decode()


def _is_schema(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_SCHEMA_LENGTH and _SCHEMA.fullmatch(name) is not None


def _cooldown_fits(cooldown: timedelta, poll: timedelta) -> None:
    if poll < cooldown:
        raise fail("fetch_poll_interval", f"to be at least fetch_cooldown ({cooldown.total_seconds():g} s)", poll)
