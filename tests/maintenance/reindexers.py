"""Reindexers for tests, each as its client would make it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from riverq.database import Database, control_engine
from riverq.driver import load_driver
from riverq.maintenance.reindexer import Reindexer, ReindexerConfig
from riverq.schedule import Schedule, every
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.query.reindexing import Operator

HOUR = timedelta(hours=1)
KIND, PKEY = "river_job_kind", "river_job_pkey"


class Setup:
    """Reindexers under a clock that stands still; the database's goes on."""

    def __init__(self, engines: EngineMaker, operator: Operator) -> None:
        self.engines = engines
        self.operator = operator
        self.clock = FakeClock(datetime(2026, 1, 1, 23, 30, tzinfo=UTC))
        self.ctx = ServiceContext(client_id="test", clock=self.clock, rng=random.Random(0))
        self.databases: list[Database] = []
        self.reindexers: list[Reindexer] = []

    def reindexer(
        self,
        adapter: str = "psycopg",
        *names: str,
        timeout: timedelta | None = None,
        schedule: Schedule = every(HOUR),  # noqa: B008  # immutable
    ) -> Reindexer:
        application = self.engines(adapter)
        driver, schema = load_driver(application), self.operator.schema

        def open_database() -> Database:
            self.databases.append(
                Database(control_engine(application, size=1), driver, schema=schema, slots=1, owns_engine=True)
            )
            return self.databases[-1]

        config = ReindexerConfig(index_names=names or (KIND,), schedule=schedule, timeout=timeout)
        reindexer = Reindexer(self.ctx, open_database, config)
        for signal in (reindexer.rebuilt, reindexer.passed_over, reindexer.failed, reindexer.dropped, reindexer.began):
            signal.watch()
        reindexer.ticked.watch()
        reindexer.tick_failed.watch()
        self.reindexers.append(reindexer)
        return reindexer
