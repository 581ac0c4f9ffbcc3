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

from riverq.errors import ConfigError
from riverq.hook import Middleware, check_middleware
from riverq.insert_opts import check_queue_name
from riverq.registry import Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy
from riverq.validation import duration, fail, integer, known_options

C = TypeVar("C", bound=type)

MILLISECOND = timedelta(milliseconds=1)
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

    - `client_id`: at most 100 characters; made from host name and time when not given. Written to `attempted_by` and
      `river_leader`.
    - `fetch_cooldown` (100 ms): the least time between two claims of one queue. `fetch_poll_interval` (1 s): how often
      a queue is looked at when nothing is heard.
    - `fetch_eager` (True): claim again at once while claims come back full and slots are free.
    - `job_timeout` (60 s): how long an attempt may take, unless its worker says otherwise; None for no limit.
    - `max_attempts` (25): for jobs whose options do not say.
    - `middleware`: wraps inserting and working; see docs/internals/worker.md.
    - `period_basis`: what `by_period` counts from: `"scheduled_time"`, or `"insert_time"` for fleets with Go River
      before 0.48.
    - `poll_only` (False): never LISTEN.
    - `retry_policy`: River's fourth power of the number of errors, in seconds, ±10 %.
    - `schema`: where River's tables are; None means the engine's `current_schema()`, asked once.
    - `skip_unknown_job_check` (False): let a client with workers insert kinds that it has no worker for.
    - `soft_stop_timeout` (None): how long `stop` waits for running jobs before it cancels them; None waits for ever.
    - `workers`, `queues`: what is worked, and where.

    Raises ConfigError for a value outside its limits or a setting that does not exist.
    """

    client_id: str | None = None
    fetch_cooldown: timedelta = timedelta(milliseconds=100)
    fetch_eager: bool = True
    fetch_poll_interval: timedelta = timedelta(seconds=1)
    job_timeout: timedelta | None = timedelta(seconds=60)
    max_attempts: int = 25
    middleware: Sequence[Middleware] = ()
    period_basis: Literal["scheduled_time", "insert_time"] = "scheduled_time"
    poll_only: bool = False
    queues: Mapping[str, QueueConfig] = field(default_factory=dict)
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
        self._check_queues()

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

    def _check_kinds(self) -> None:
        for name in ("fetch_eager", "poll_only", "skip_unknown_job_check"):
            if not isinstance(getattr(self, name), bool):
                raise fail(name, "to be True or False", getattr(self, name))
        if not isinstance(self.queues, Mapping):
            raise fail("queues", "to be a dict of names and QueueConfig", self.queues)
        if not isinstance(self.middleware, Sequence) or isinstance(self.middleware, str):
            raise fail("middleware", "to be a list", self.middleware)
        if isinstance(self.retry_policy, type) or not callable(getattr(self.retry_policy, "next_retry", None)):
            raise fail("retry_policy", "to be an object with a next_retry method", self.retry_policy)

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


def _is_unicode(text: str) -> bool:
    return text == text.encode(errors="replace").decode()


def _is_schema(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_SCHEMA_LENGTH and _SCHEMA.fullmatch(name) is not None


def _cooldown_fits(cooldown: timedelta, poll: timedelta) -> None:
    if poll < cooldown:
        raise fail("fetch_poll_interval", f"to be at least fetch_cooldown ({cooldown.total_seconds():g} s)", poll)
