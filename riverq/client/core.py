"""What both faces of a client share, with no opinion on sync or async: who it is, and jobs made ready for writing.

Facades differ only in who supplies a connection. The schema is resolved once, on connections of riverq's own, never on
the application's session: `SET search_path` there would send a job to another table and its notification to a channel
that nobody hears.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.client.queues import QueueSet
from riverq.config import Config, QueueConfig
from riverq.driver import POSTGRES, AnyEngine, Driver, ServerCapabilities, load_driver
from riverq.errors import ConfigError, SchemaError, UnknownJobKindError, UsageError
from riverq.insert import NotifyLimiter
from riverq.insert_opts import ClientDefaults, InsertItem, InsertParams, resolve
from riverq.job_args import spec_of
from riverq.periodic import PeriodicJobs
from riverq.query.schema import current_schema, migration_versions, server_capabilities, table_exists
from riverq.query.statement import remember_server, server_of
from riverq.service import ServiceContext
from riverq.validation import fail, nearest
from riverq.worker.subscription import Subscriptions

MIGRATE = "riverq migrate-up"

REQUIRED_VERSION = 7
"""The oldest version of River's main line that riverq works on. 008 changes nothing on Postgres, and a fleet whose Go
clients are older than 0.48 has no row for it, so its absence is no reason to refuse."""


class Core:
    """One client's identity, settings and preparation of inserts. Made by the facades, shared with the runtime."""

    def __init__(self, engine_or_driver: AnyEngine | Driver, config: Config | None) -> None:
        self.config = config or Config()
        if not isinstance(self.config, Config):
            raise ConfigError(f"expected config to be a riverq.Config, got: {config!r}")
        self.driver: Driver = (
            load_driver(engine_or_driver)
            if isinstance(engine_or_driver, (Engine, AsyncEngine))
            else _checked_driver(engine_or_driver)
        )
        self.engine = self.driver.engine
        self.ctx = ServiceContext(client_id=self.config.client_id or "")
        self.ctx = replace(self.ctx, client_id=self.config.client_id or make_client_id(self.ctx.clock.now()))
        self.limiter = NotifyLimiter(self.ctx.clock, self.config.fetch_cooldown)
        self.queue_set = QueueSet(self.config)
        self.periodic_jobs = PeriodicJobs(
            self.config.periodic_jobs, may_lead=self.config.leader_election, clock=self.ctx.clock
        )
        self.subscriptions = Subscriptions(self.ctx)
        self.schema: str | None = None
        self.server: ServerCapabilities = POSTGRES
        self._pid = os.getpid()

    @property
    def client_id(self) -> str:
        """What is written to `attempted_by` and `river_leader`."""
        return self.ctx.client_id

    @property
    def queues(self) -> dict[str, QueueConfig]:
        """What is to be worked now: the configured queues, with what was added, removed and changed since. A copy."""
        return self.queue_set.snapshot()

    def found(self, schema: str, server: ServerCapabilities) -> None:
        """This is what the database is; statements on the client's engine are written for it from here on."""
        self.server = server
        self.remember_server(self.engine)
        self.schema = schema  # last, for other threads write as soon as it is there

    def remember_server(self, conn: Connection | AnyEngine) -> None:
        """A session of another engine, too, leads to the same server."""
        if server_of(conn.dialect) != self.server:
            remember_server(conn.dialect, self.server)

    def check_process(self) -> None:
        """Raises UsageError in a forked child: pools, threads and loops do not survive a fork."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"this client was made in process {self._pid} and is used in {os.getpid()} "
                "(make the engine and the client after the fork)"
            )

    def check_other_engines(self, **engines: object) -> None:
        """Raises ConfigError for an engine that this client's driver cannot use."""
        for name, engine in engines.items():
            if engine is None:
                continue
            kind = AsyncEngine if isinstance(self.engine, AsyncEngine) else Engine
            if not isinstance(engine, kind) or engine.dialect.driver != self.engine.dialect.driver:
                wanted = f"to be an {kind.__name__} of postgresql+{self.engine.dialect.driver}, as the client's own is"
                raise fail(name, wanted, engine)

    def prepare_many(self, items: Sequence[object], options: Mapping[str, object]) -> list[InsertParams]:
        """Everything that can be wrong with `items` is found here, before anything is written."""
        if not isinstance(items, Iterable) or isinstance(items, (str, bytes, Mapping)):
            raise ConfigError(f"expected a list of args or of InsertItem, got: {items!r} (insert takes a single one)")
        now = self.ctx.clock.now()
        params = [self._prepare_one(item, options, now) for item in items]
        if not params:
            raise ConfigError("no jobs to insert: expected at least one, got an empty batch")
        return params

    def prepare_item(self, item: InsertItem, now: datetime) -> InsertParams:
        """One job of `prepare_many`, as of `now`."""
        return self._prepare_one(item, {}, now)

    def _prepare_one(self, item: object, options: Mapping[str, object], now: datetime) -> InsertParams:
        args, given = (item.args, item.options) if isinstance(item, InsertItem) else (item, options)
        if isinstance(item, InsertItem) and options:
            raise ConfigError(f"options go into the InsertItem or beside plain args, got both: {', '.join(options)}")
        if isinstance(args, type):
            raise ConfigError(f"expected args to be an instance, got the class {args.__qualname__} (call it)")
        spec = spec_of(args)
        self._check_kind(spec.kind)
        defaults = ClientDefaults(max_attempts=self.config.max_attempts, period_basis=self.config.period_basis)
        return resolve(spec, args, given, defaults=defaults, now=now)

    def _check_kind(self, kind: str) -> None:
        workers = self.config.workers
        if workers is None or self.config.skip_unknown_job_check or workers.get(kind) is not None:
            return
        raise UnknownJobKindError(
            f"this client has workers, but none for kind {kind!r}: {nearest(kind, workers.kinds())} "
            "(register one, or set skip_unknown_job_check=True where other clients work it)"
        )


def look_up(conn: Connection, _schema: str, configured: str | None) -> tuple[str, ServerCapabilities]:
    """The schema, as `find_schema` finds it, and what the server can do."""
    return find_schema(conn, "", configured), server_capabilities(conn)


def find_schema(conn: Connection, _schema: str, configured: str | None) -> str:
    """The schema that River's tables are in. Raises SchemaError, with the command, where they are missing or old."""
    schema = configured or current_schema(conn)
    if schema is None:
        raise SchemaError(
            "the connection has no current schema, so riverq cannot tell where River's tables are "
            "(create the schema that search_path names, or set Config(schema=…))"
        )
    applied = migration_versions(conn, schema)
    option = f" --schema {schema}" if configured else ""
    if not applied:
        raise SchemaError(f"River's tables are not in schema {schema!r} (run: {MIGRATE}{option})")
    missing = [version for version in range(1, REQUIRED_VERSION + 1) if version not in applied]
    if missing:
        raise SchemaError(
            f"River's tables in schema {schema!r} are at version {missing[0] - 1}, "
            f"riverq needs {REQUIRED_VERSION} (run: {MIGRATE}{option})"
        )
    return schema


@dataclass(frozen=True)
class Surveyed:
    """What a client learns of its database before it starts."""

    schema: str
    server: ServerCapabilities
    has_own_tables: bool


def survey(conn: Connection, _schema: str, configured: str | None) -> Surveyed:
    """Look up the schema, what the server can do, and whether riverq's own tables are there. Raises SchemaError."""
    schema = find_schema(conn, "", configured)
    return Surveyed(schema, server_capabilities(conn), table_exists(conn, schema, "riverq_migration"))


def make_client_id(now: datetime) -> str:
    """`<hostname>_<time in UTC>`, as every River client makes it."""
    host = re.sub(r"\.", "_", socket.gethostname())[:60] or "localhost"
    return f"{host}_{now:%Y_%m_%dT%H_%M_%S}_{now.microsecond:06}"


def _checked_driver(driver: Driver) -> Driver:
    if not hasattr(driver, "capabilities") or not hasattr(driver, "engine"):
        raise ConfigError(f"expected an engine or a riverq driver, got: {driver!r} (make one with create_engine)")
    return driver
