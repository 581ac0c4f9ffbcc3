"""What the tests of periodic jobs are arranged with: leaders on a clock that stands still, connections that fail."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import UnavailableError
from riverq.insert import NotifyLimiter
from riverq.insert_opts import ClientDefaults, InsertItem, InsertParams, resolve
from riverq.job_args import RawArgs, spec_of
from riverq.maintenance.periodic_enqueuer import PeriodicEnqueuer
from riverq.maintenance.periodic_insert import InsertPath
from riverq.periodic import PeriodicJob, PeriodicJobs
from riverq.schedule import Schedule, every
from riverq.service import ServiceContext
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.query.arrange import Table

T = TypeVar("T")

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


class JumpingClock(FakeClock):
    """Its wall clock can be set, as an administrator or NTP does."""

    def __init__(self) -> None:
        super().__init__(BEGAN)
        self.jumped = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.jumped


class FailingDatabase(Database):
    """Fails as often as told: before anything is done, or after the commit, whose answer is then lost."""

    before = 0
    after = 0

    async def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        if self.before:
            self.before -= 1
            raise UnavailableError("the server is not there")
        result = await super().run(fn, *args, **kwargs)
        if self.after and fn.__name__ == "_write":
            self.after -= 1
            raise UnavailableError("the connection broke")
        return result


def prepare(item: InsertItem, now: datetime) -> InsertParams:
    """As a client without workers does it."""
    return resolve(spec_of(item.args), item.args, item.options, defaults=ClientDefaults(), now=now)


def job(kind: str, schedule: Schedule | None = None, **options: Any) -> PeriodicJob:
    """A periodic job that inserts `kind`, each second unless a schedule is given."""
    return PeriodicJob(schedule or every(SECOND), lambda: RawArgs(kind, {}), **options)


class Setup:
    """Leaders under one clock that stands still; the database's goes on."""

    def __init__(self, engines: EngineMaker, schema: str, table: Table) -> None:
        self.engines = engines
        self.schema = schema
        self.table = table
        self.clock = JumpingClock()
        self.ctx = ServiceContext(client_id="test", clock=self.clock, rng=random.Random(0))
        self.databases: list[FailingDatabase] = []
        self.enqueuers: list[PeriodicEnqueuer] = []

    def leader(
        self,
        *jobs: PeriodicJob,
        adapter: str = "psycopg_async",
        middleware: list[object] | None = None,
        may_block: bool = False,
        has_tables: bool = True,
    ) -> PeriodicEnqueuer:
        engine = self.engines(adapter)
        db = FailingDatabase(engine, load_driver(engine), schema=self.schema, owns_engine=False)
        self.databases.append(db)
        path = InsertPath(
            prepare=prepare,
            limiter=NotifyLimiter(self.clock, timedelta(milliseconds=100)),
            middleware=middleware or [],
            may_block=may_block,
        )
        registry = PeriodicJobs(jobs, clock=self.clock)
        enqueuer = PeriodicEnqueuer(self.ctx, db, registry, path, has_tables=has_tables)
        for signal in (enqueuer.planned, enqueuer.inserted, enqueuer.failed, enqueuer.tried):
            signal.watch()
        self.enqueuers.append(enqueuer)
        return enqueuer

    @property
    def db(self) -> FailingDatabase:
        """The last leader's."""
        return self.databases[-1]

    async def started(self, enqueuer: PeriodicEnqueuer) -> PeriodicEnqueuer:
        await enqueuer.start()
        await enqueuer.tried.wait()
        return enqueuer

    async def pass_time(self, enqueuer: PeriodicEnqueuer, seconds: float) -> None:
        """Let the leader fall asleep, move the clock, and wait until it has tried again and sleeps once more."""
        await self.clock.until_sleeping()
        while enqueuer.tried.waiting:
            await enqueuer.tried.wait()
        await self.clock.advance(seconds)
        await enqueuer.tried.wait()
        await self.clock.until_sleeping()

    async def blocked_by(self, pid: int) -> int:
        """Wait until a backend waits for this one, and return its pid."""
        sql = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        while not (found := self.table.sql(sql, pid)):
            await self.clock.sleep(0)
        return int(found[0]["pid"])

    def seconds(self, kind: str | None = None) -> list[float]:
        """When the jobs in the table are scheduled, in seconds after BEGAN."""
        rows = self.rows(kind)
        return sorted((row["scheduled_at"] - BEGAN) / SECOND for row in rows)

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        return self.table.sql("SELECT * FROM {job} WHERE kind = coalesce(%s, kind) ORDER BY id", kind)

    def stored(self) -> dict[str, float]:
        """The rows of durable jobs, in seconds after BEGAN."""
        rows = self.table.sql(f'SELECT id, next_run_at AS at FROM "{self.schema}".riverq_periodic_job')
        return {row["id"]: (row["at"] - BEGAN) / SECOND for row in rows}

    def store(self, job_id: str, seconds: float) -> None:
        sql = f'INSERT INTO "{self.schema}".riverq_periodic_job (id, next_run_at) VALUES (%s, %s)'
        self.table.sql(sql, job_id, BEGAN + seconds * SECOND)


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    """Somebody else's view of the rows."""
    table = Table(database_url, schema)
    yield table
    table.conn.close()


@pytest.fixture
async def setup(make_engine: EngineMaker, schema: str, table: Table) -> AsyncIterator[Setup]:
    """Leaders, stopped after the test."""
    setup = Setup(make_engine, schema, table)
    yield setup
    for enqueuer in setup.enqueuers:
        await enqueuer.stop()
    for db in setup.databases:
        await db.close()
