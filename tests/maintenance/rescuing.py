"""What the tests of both rescuers share: workers, runs, a registry of clients, and a clock that stands still."""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from riverq.database import Database
from riverq.driver import load_driver
from riverq.job import Job, JobRow
from riverq.job_args import job_args
from riverq.maintenance.job_rescuer import StuckJobRules
from riverq.maintenance.orphan_rescuer import OrphanRescuer, OrphanTiming
from riverq.registry import NO_TIMEOUT, Worker, Workers
from riverq.retry_policy import RetryPolicy
from riverq.service import ServiceContext, TestSignal
from riverq.testing.fake_clock import FakeClock
from tests.fix_database import EngineMaker
from tests.query.arrange import Table

GRACE = timedelta(seconds=30)
HOUR = timedelta(hours=1)
LEADER = str(uuid.UUID(int=1))


@job_args("mail")
@dataclass
class Mail:
    to: str = "somebody"


@job_args("patient")
@dataclass
class Patient:
    hours: int


@job_args("endless")
@dataclass
class Endless:
    pass


class Fixed:
    """A retry policy that remembers whom it was asked about."""

    def __init__(self, answer: Any = timedelta(minutes=7)) -> None:
        self.answer = answer
        self.asked: list[JobRow] = []

    def next_retry(self, row: JobRow, *, rng: random.Random) -> Any:
        self.asked.append(row)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class PatientWorker(Worker[Patient]):
    """Says per job how long it may take, and when it is tried again."""

    def __init__(self) -> None:
        self.retry: Any = timedelta(minutes=3)
        self.errors: list[BaseException] = []

    def work(self, job: Job[Patient]) -> None:
        pass

    def timeout(self, job: Job[Patient]) -> timedelta:
        return timedelta(hours=job.args.hours)

    def next_retry(self, job: Job[Patient], error: BaseException) -> Any:
        self.errors.append(error)
        return self.retry


def workers(patient: PatientWorker | None = None) -> Workers:
    """Workers for `mail` (the client's timeout), `patient` (its own) and `endless` (none)."""
    found = Workers()

    @found.work
    def mail(job: Job[Mail]) -> None:
        pass

    @found.work(timeout=NO_TIMEOUT)
    def endless(job: Job[Endless]) -> None:
        pass

    found.add(patient or PatientWorker())
    return found


def make_rules(
    ctx: ServiceContext,
    known: Workers | None = None,
    *,
    unknown: Literal["leave", "retry", "discard"] = "leave",
    policy: RetryPolicy | None = None,
    job_timeout: timedelta | None = timedelta(minutes=1),
) -> StuckJobRules:
    return StuckJobRules(
        ctx,
        workers() if known is None else known,
        job_timeout=job_timeout,
        retry_policy=policy or Fixed(),
        on_unknown_kind=unknown,
    )


class Setup:
    """A database with runs and clients, seen by services whose clock only the test moves."""

    def __init__(self, engines: EngineMaker, schema: str, table: Table) -> None:
        self.engines = engines
        self.schema = schema
        self.table = table
        self.clock = FakeClock(datetime.now(UTC))
        self.ctx = ServiceContext(client_id="leader", clock=self.clock, rng=random.Random(0))
        self.notified: TestSignal[list[str]] = TestSignal[list[str]]().watch()
        self.notify_error: Exception | None = None
        self.databases: list[Database] = []

    def database(self, adapter: str = "psycopg_async", **options: Any) -> Database:
        engine = self.engines(adapter, **options)
        self.databases.append(Database(engine, load_driver(engine), schema=self.schema, owns_engine=False))
        return self.databases[-1]

    async def notify(self, queues: Collection[str]) -> None:
        self.notified.signal(list(queues))
        if self.notify_error is not None:
            raise self.notify_error

    def ago(self, span: timedelta) -> datetime:
        """That long ago, by the database's clock."""
        return self.table.now() - span

    def run(self, kind: str = "mail", client_id: str = "dead", span: timedelta = 2 * HOUR, **columns: Any) -> int:
        """A job that has been running for `span` in that client."""
        given = {"attempt": 1, "attempted_at": self.ago(span), "attempted_by": [client_id], **columns}
        return self.table.add(state="running", kind=kind, **given)

    def client(
        self,
        client_id: str,
        silent: timedelta = timedelta(0),
        *,
        started: timedelta = timedelta(days=1),
        incarnation: str | None = None,
        lock_taken: bool = False,
    ) -> int:
        """An incarnation that started and was last seen so long ago."""
        values = (client_id, incarnation or str(uuid.uuid4()), self.ago(started), self.ago(silent), lock_taken)
        return int(
            self.table.sql(
                "INSERT INTO {schema}.riverq_client (client_id, incarnation, started_at, seen_at, lock_taken) "
                "VALUES (%s, %s, %s, %s, %s) RETURNING id",
                *values,
            )[0]["id"]
        )

    def is_back(self, client: int) -> None:
        """The client's heart beats again."""
        self.table.sql("UPDATE {schema}.riverq_client SET seen_at = now() WHERE id = %s", client)

    def states(self) -> dict[int, str]:
        return {row["id"]: row["state"] for row in self.table.sql("SELECT id, state::text FROM {job}")}

    async def close(self) -> None:
        for db in self.databases:
            await db.close()


AT_ONCE = OrphanTiming(grace=GRACE, stagger=timedelta(0))


class Life:
    """This client's own proof of life, as a test wants it: its answers in turn, the last one for ever."""

    def __init__(self, *answers: timedelta) -> None:
        self.incarnation: str | None = LEADER
        self.answers = list(answers or [2 * GRACE])

    def sure_for(self) -> timedelta:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def orphan_rescuer(
    setup: Setup,
    adapter: str = "psycopg_async",
    *,
    life: Life | None = None,
    unknown: Literal["leave", "retry", "discard"] = "leave",
    policy: RetryPolicy | None = None,
    timing: OrphanTiming = AT_ONCE,
) -> OrphanRescuer:
    rules = make_rules(setup.ctx, unknown=unknown, policy=policy or Fixed(timedelta(minutes=7)))
    found = OrphanRescuer(setup.ctx, setup.database(adapter), rules, setup.notify, life or Life(), timing)
    for signal in (found.held_off, found.rescued, found.judged, found.ticked, found.tick_failed):
        signal.watch()
    return found
