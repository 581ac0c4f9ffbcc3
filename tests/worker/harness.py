"""What the worker tests share: rows looked at from outside, and a house with a completer, an executor and producers."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncConnection

from riverq import Job, Workers
from riverq.database import Database
from riverq.driver import AnyEngine, load_driver
from riverq.notifier import Notifier
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.query.notify import notify_raw
from riverq.service import ServiceContext, TestSignal, stop_all
from riverq.state import SetState, completed
from riverq.threads import DaemonThreads
from riverq.worker.completer import Completer, CompleterConfig
from riverq.worker.context import RunContext, Surroundings
from riverq.worker.executor import Executor, ExecutorConfig
from riverq.worker.outcome import Finished
from riverq.worker.producer import Producer
from riverq.worker.producer_config import ProducerConfig
from riverq.worker.settlement import Settled

Raw = Job[dict[str, Any]]
NEVER = timedelta(hours=1)
SHORT = timedelta(milliseconds=20)
ERROR = json.dumps({"at": "2026-01-01T00:00:00Z", "attempt": 1, "error": "x", "trace": ""})

INCARNATION = "00000000-0000-4000-8000-000000000001"

CLAIMED = ClaimedRow(
    id=7,
    args="{}",
    kind="echo",
    attempt=1,
    max_attempts=25,
    attempted_at_us=1_767_323_045_123_400,
    created_at_us=1_767_323_045_000_000,
    scheduled_at_us=1_767_323_045_000_000,
    priority=1,
    metadata="{}",
    tags=None,
    errors=None,
    attempted_by=None,
    unique_key=None,
    unique_states=None,
    cancel_mark=None,
)


def claimed(**changes: Any) -> ClaimedRow:
    """A claimed row that is in no database."""
    return CLAIMED._replace(**changes)


def surroundings(client_id: str = "test", schema: str = "nowhere") -> Surroundings:
    """What a run needs of a client, without the client."""
    return Surroundings(
        client_id=client_id,
        schema=schema,
        complete_in=complete_in,
        client=lambda: cast("Any", "the sync client"),
        async_client=lambda: cast("Any", "the async client"),
        log=logging.getLogger("riverq"),
    )


def complete_in(session: Any, write: Callable[[sa.Connection], bool]) -> bool | Awaitable[bool]:
    """`write` on a connection, sync or async."""
    if isinstance(session, AsyncConnection):
        return session.run_sync(write)
    return write(session)


def run_context(**changes: Any) -> RunContext:
    """A run of `claimed(**changes)`."""
    return RunContext(claimed(**changes), "default", surroundings())


class Rows:
    """The table `river_job` as another program sees it."""

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self.conn.close()

    def other(self) -> psycopg.Connection[Any]:
        """A second connection, in a transaction as soon as it executes; the caller closes it."""
        return psycopg.connect(self.url, row_factory=dict_row)

    def sql(self, text: str, **params: Any) -> list[dict[str, Any]]:
        """Run `text`, in which `JOB` and `QUEUE` stand for the tables."""
        return run_sql(self.conn, self.schema, text, **params)

    def insert(self, *, kind: str = "echo", count: int = 1, **columns: Any) -> list[int]:
        """Insert `count` jobs, due now."""
        values = {"kind": kind, "state": "available", "max_attempts": 25, "args": "{}", **columns}
        names = SQL(", ").join(map(Identifier, values))
        places = SQL(", ").join(SQL("%({})s").format(SQL(name)) for name in values)
        query = SQL("INSERT INTO {} ({}) SELECT {} FROM generate_series(1, %(count)s) RETURNING id")
        found = self.conn.execute(
            query.format(Identifier(self.schema, "river_job"), names, places), {**values, "count": count}
        )
        return [row["id"] for row in found.fetchall()]

    def get(self, job_id: int) -> dict[str, Any]:
        """One job, every column."""
        return self.sql("SELECT * FROM JOB WHERE id = %(id)s", id=job_id)[0]

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        found = self.sql("SELECT state::text, count(*) AS jobs FROM JOB GROUP BY 1")
        return {row["state"]: row["jobs"] for row in found}

    def cancel_running(self, job_id: int, mark: str = "2026-01-01T00:00:00Z") -> None:
        """Set the mark, as a client that cancels a running job does."""
        self.sql(
            "UPDATE JOB SET metadata = jsonb_set(metadata, '{cancel_attempted_at}', to_jsonb(%(mark)s::text)) "
            "WHERE id = %(id)s AND state = 'running' RETURNING id",
            id=job_id,
            mark=mark,
        )

    def steal(self, job_id: int, client_id: str = "thief") -> None:
        """The job was rescued, and another client claimed it."""
        self.sql(
            "UPDATE JOB SET attempted_at = now(), attempt = attempt + 1, "
            "attempted_by = array_append(attempted_by, %(client)s) WHERE id = %(id)s RETURNING id",
            id=job_id,
            client=client_id,
        )

    def notify(self, topic: str, payload: str) -> None:
        """What another client would send."""
        self.sql("SELECT pg_notify(%(channel)s, %(payload)s)", channel=f"{self.schema}.{topic}", payload=payload)


def run_sql(conn: psycopg.Connection[Any], schema: str, text: str, **params: Any) -> list[dict[str, Any]]:
    """Rows of a statement in which `JOB` and `QUEUE` stand for the tables."""
    job = Identifier(schema, "river_job").as_string()
    queue = Identifier(schema, "river_queue").as_string()
    found = conn.execute(text.replace("JOB", job).replace("QUEUE", queue), params or None)
    return found.fetchall() if found.description else []


async def until(condition: Callable[[], object]) -> None:
    """Give way until `condition()` holds, for at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.001)


class House:
    """A client's worker side on one engine, put together by hand."""

    def __init__(self, engine: AnyEngine, rows: Rows, *, client_id: str = "c1") -> None:
        self.engine = engine
        self.rows = rows
        self.ctx = ServiceContext(client_id=client_id, rng=random.Random(0))
        self.driver = load_driver(engine)
        self.db = Database(engine, self.driver, schema=rows.schema, slots=3, owns_engine=False)
        self.workers = Workers()
        self.threads = DaemonThreads(20, name="riverq_job")
        self.completer_config = CompleterConfig()
        self.executor_config = ExecutorConfig()
        self.services: list[Any] = []
        self.settled: TestSignal[Settled] = TestSignal[Settled]().watch()
        self.gates: list[asyncio.Event] = []
        """What jobs still wait for; opened at the end, so that a test that fails does not wait for them for ever."""
        self._completer: Completer | None = None

    @property
    def completer(self) -> Completer:
        if self._completer is None:
            self._completer = Completer(self.ctx, self.db, self.db.limited(1), self.completer_config)
            self._completer.subscribe(self.settled.signal)
            self._completer.slow_tried.watch()
        return self._completer

    def executor(self) -> Executor:
        around = surroundings(self.ctx.client_id, self.rows.schema)
        return Executor(self.ctx, self.workers, self.completer, self.threads, around, self.executor_config)

    def producer(self, notifier: Notifier | None = None, **config: Any) -> Producer:
        settings = {"queue": "default", "max_workers": 10, **config}
        producer = Producer(self.ctx, self.db, notifier, self.executor(), ProducerConfig(**settings))
        producer.lost_claims.incarnation = lambda: INCARNATION
        producer.claimed.watch()
        producer.control.read.watch()
        producer.control.checked.watch()
        producer.waiting_for_jobs.watch()
        return producer

    def notifier(self) -> Notifier:
        async def notify(channel: str, payload: str) -> None:
            await self.db.run_single(notify_raw, channel, payload)

        return Notifier(
            self.ctx,
            make_listener=lambda: self.driver.listener(self.engine),
            schema=self.rows.schema,
            notify=notify,
        )

    async def start(self, *services: Any) -> None:
        """Start in order; stopped in reverse at the end."""
        for service in services:
            await service.start()
            self.services.append(service)

    async def claim(self, limit: int = 100, queue: str = "default") -> list[RunContext]:
        """Claim by hand."""
        rows = await self.db.run_single(job_get_available, client_id=self.ctx.client_id, queue=queue, limit=limit)
        around = surroundings(self.ctx.client_id, self.rows.schema)
        return [RunContext(row, queue, around) for row in rows]

    async def run_all(self, contexts: list[RunContext] | None = None) -> list[Settled]:
        """Claim everything (or take what was claimed), run it, and wait until it is settled."""
        contexts = await self.claim() if contexts is None else contexts
        executor = self.executor()
        await asyncio.gather(*(executor.run(context) for context in contexts))
        return [await self.settled.wait() for _ in contexts]

    async def close(self) -> None:
        for gate in self.gates:
            gate.set()
        await stop_all(reversed(self.services))
        self.threads.shutdown(wait=False)
        await self.db.close()


# -- workers of the kind `echo`


def register(house: House, style: str, body: Callable[[Raw], None], **options: Any) -> None:
    """`body` as the worker of `echo`, in either style."""
    if style == "def":
        house.workers.work(kind="echo", **options)(_def(body))
    else:
        house.workers.work(kind="echo", **options)(_async_def(body))


def _def(body: Callable[[Raw], None]) -> Callable[[Raw], None]:
    def worker(job: Raw) -> None:
        body(job)

    return worker


def _async_def(body: Callable[[Raw], None]) -> Callable[[Raw], Awaitable[None]]:
    async def worker(job: Raw) -> None:
        body(job)

    return worker


async def one(house: House, **columns: Any) -> dict[str, Any]:
    """Insert a job, run it, and return its row afterwards."""
    [job_id] = house.rows.insert(**columns)
    if not house.completer.is_running:
        await house.start(house.completer)
    await house.run_all()
    return house.rows.get(job_id)


def errors(row: dict[str, Any]) -> list[str]:
    return [entry["error"] for entry in row["errors"] or []]


class Blocking:
    """An `async def` worker that waits until it may go on."""

    def __init__(self, house: House) -> None:
        self.began: asyncio.Queue[int] = asyncio.Queue()
        self.go_on = asyncio.Event()
        house.gates.append(self.go_on)
        self.reasons: list[str | None] = []

        @house.workers.work(kind="echo", timeout=NEVER)
        async def work(job: Raw) -> None:
            self.began.put_nowait(job.id)
            try:
                await self.go_on.wait()
            finally:
                self.reasons.append(job.cancelled.reason)

    async def wait(self, count: int = 1) -> list[int]:
        return [await asyncio.wait_for(self.began.get(), 10) for _ in range(count)]


# -- reporting by hand


def finished(context: RunContext, state: SetState | None = None) -> Finished:
    return Finished(context, state or completed(context.run), 0.0, 1.0)


async def report(house: House, *all_finished: Finished) -> list[Settled]:
    for each in all_finished:
        house.completer.report(each)
    return [await house.settled.wait() for _ in all_finished]


def locked(rows: Rows, *job_ids: int) -> Any:
    """A transaction of somebody else that holds these rows."""
    other = rows.other()
    run_sql(other, rows.schema, "SELECT id FROM JOB WHERE id = ANY (%(ids)s) FOR UPDATE", ids=list(job_ids))
    return other
