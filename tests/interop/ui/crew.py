"""riverq's side: a client at work, and one job of every fate, each reached as an application would reach it.

Nothing but riverq writes here: the tables are those of `riverq.migrate`, the rows those of `riverq.Client`. What a page
must show word for word (markup, quotes, scripts from elsewhere) stands in the constants, for tests to look for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import sqlalchemy as sa

import riverq
from tests.interop.waiting import until

HOUR = timedelta(hours=1)

SCRIPT = "<script>alert('from the args')</script>"
IMAGE = '<img src=x onerror="alert(1)">'
CUSTOMER = 'Zoë "the Quote" O\'Hara <b>& Sons</b> 日本 🦀'
LARGE = 2**63 - 1
FEED_ERROR = f"feed 'größte' is broken: {IMAGE} & more"
CARD_ERROR = "card declined:\n  </pre></code><h1>injected</h1>\n  second 'line'"
CLOSED = 'account <closed> by "Zoë"'
OUTPUT = {"sent_to": "zoë@example.com", "pages": 3, "html": "<u>kept</u>", "parts": [1.5, None, True]}


@riverq.job_args("send_invoice")
@dataclass
class SendInvoice:
    customer: str
    amount: int
    note: str = SCRIPT
    lines: list[dict[str, Any]] = field(default_factory=lambda: [{"sku": "a&b", "count": 2}])


@riverq.job_args("import_feed")
@dataclass
class ImportFeed:
    url: str


@riverq.job_args("poll_partner")
@dataclass
class PollPartner:
    partner: str


@riverq.job_args("close_account")
@dataclass
class CloseAccount:
    account: int


@riverq.job_args("charge_card")
@dataclass
class ChargeCard:
    card: str


@riverq.job_args("encode_video")
@dataclass
class EncodeVideo:
    """Runs until it is cancelled; a fragile one fails when it is then tried again."""

    title: str
    fragile: bool = False


@riverq.job_args("build_report")
@dataclass
class BuildReport:
    month: str


def workers() -> riverq.Workers:
    """What works them."""
    bundle = riverq.Workers()

    @bundle.work
    def send_invoice(job: riverq.Job[SendInvoice]) -> None:
        job.set_metadata("sent_by", "post <office>")
        job.record_output(OUTPUT)

    @bundle.work
    def import_feed(job: riverq.Job[ImportFeed]) -> None:
        read_feed(job.args.url)

    @bundle.work
    async def poll_partner(job: riverq.Job[PollPartner]) -> None:
        raise riverq.JobSnooze(HOUR)

    @bundle.work
    async def close_account(job: riverq.Job[CloseAccount]) -> None:
        raise riverq.JobCancel(CLOSED)

    @bundle.work
    async def charge_card(job: riverq.Job[ChargeCard]) -> None:
        raise RuntimeError(CARD_ERROR)

    @bundle.work
    async def encode_video(job: riverq.Job[EncodeVideo]) -> None:
        if job.args.fragile and job.row.attempt > 1:
            raise ValueError("no such codec")
        await asyncio.Event().wait()

    @bundle.work
    def build_report(job: riverq.Job[BuildReport]) -> None:
        job.record_output(f"report of {job.args.month}")

    return bundle


def read_feed(url: str) -> None:
    """Fails with a cause, as real code does."""
    try:
        {"<known>": url}["<unknown>"]
    except KeyError as error:
        raise ValueError(FEED_ERROR) from error


@dataclass(frozen=True)
class AtOnceThenAnHour:
    """A retry policy: the second attempt comes at once, the third in an hour."""

    def next_retry(self, job: riverq.JobRow, *, rng: Random) -> timedelta:
        return timedelta(0) if job.attempt == 1 else HOUR


class Crew:
    """One riverq client and its schema: the whole crew that works there."""

    def __init__(self, engine: sa.Engine, schema: str) -> None:
        self.engine = engine
        self.schema = schema
        self.client = riverq.Client(
            engine,
            riverq.Config(
                client_id="zoë's <worker>",
                schema=schema,
                workers=workers(),
                queues={
                    "default": riverq.QueueConfig(max_workers=4),
                    "mail": riverq.QueueConfig(max_workers=2),
                    "reports": riverq.QueueConfig(max_workers=1),
                },
                retry_policy=AtOnceThenAnHour(),
                soft_stop_timeout=timedelta(0),
            ),
        )

    def insert(self, args: object, **options: Any) -> int:
        """Insert one job; its id."""
        return self.client.insert(args, **options).job.id

    def row(self, job_id: int) -> dict[str, Any] | None:
        """A row as the database has it; None where there is none."""
        found = self.select("SELECT to_jsonb(j) FROM {schema}.river_job j WHERE id = :id", id=job_id)
        return found[0] if found else None

    def select(self, sql: str, **params: Any) -> list[Any]:
        """The first column of a query of the test's own; `{schema}` in it is replaced."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(sql.format(schema=self.schema)), params).scalars())

    def until(self, job_id: int, state: str, attempt: int | None = None) -> dict[str, Any]:
        """Wait until a job is in a state, as it may be by riverq's doing or River UI's; its row."""

        def row_if_so() -> dict[str, Any] | None:
            row = self.row(job_id)
            is_so = row is not None and row["state"] == state and attempt in (None, row["attempt"])
            return row if is_so else None

        row: dict[str, Any] = until(row_if_so, f"job {job_id} {state}, attempt {attempt or 'any'}")
        return row

    def until_queue(self, name: str, *, paused: bool) -> None:
        """Wait until this running client has taken in that a queue is paused, or goes on."""

        def is_so() -> bool:
            return (name, paused) in {(each.name, each.paused) for each in self.client.stats().queues}

        until(is_so, f"{name} {'paused' if paused else 'resumed'} in the client")


@dataclass(frozen=True)
class Jobs:
    """The ids of one job of every fate, and of two that wait in the paused queue."""

    completed: int
    retryable: int
    snoozed: int
    cancelled: int
    discarded: int
    running: int
    scheduled: int
    pending: int
    waiting: tuple[int, int]

    def by_state(self) -> dict[str, list[int]]:
        """The ids in each state, in the order of River UI's sidebar."""
        return {
            "pending": [self.pending],
            "scheduled": [self.snoozed, self.scheduled],
            "available": list(self.waiting),
            "running": [self.running],
            "retryable": [self.retryable],
            "cancelled": [self.cancelled],
            "discarded": [self.discarded],
            "completed": [self.completed],
        }


@contextmanager
def at_work(engine: sa.Engine, schema: str) -> Iterator[Crew]:
    """A running client, stopped at the end; what still runs then is given back."""
    crew = Crew(engine, schema)
    with crew.client.running():
        yield crew


def fill(crew: Crew) -> Jobs:
    """Work one job to every fate; returns when each has come to its own."""
    crew.client.queue_update("mail", metadata={"owner": "<em>post</em> office", "limits": {"per_hour": 10}})
    crew.client.queue_pause("reports")
    crew.until_queue("reports", paused=True)
    jobs = Jobs(
        completed=crew.insert(
            SendInvoice(CUSTOMER, LARGE),
            queue="mail",
            priority=2,
            tags=["invoice", "eu-west"],
            metadata={"tenant": "<i>acme</i>", "order": LARGE},
        ),
        retryable=crew.insert(ImportFeed(f"https://example.com/?a=1&b={SCRIPT}"), tags=["feed"]),
        snoozed=crew.insert(PollPartner("acme"), priority=4),
        cancelled=crew.insert(CloseAccount(7)),
        discarded=crew.insert(ChargeCard("4000"), max_attempts=1),
        running=crew.insert(EncodeVideo("cats"), priority=3),
        scheduled=crew.insert(SendInvoice("later", 1), delay=timedelta(days=1)),
        pending=crew.insert(SendInvoice("parked", 2), pending=True),
        waiting=(
            crew.insert(BuildReport("2026-06"), queue="reports"),
            crew.insert(BuildReport("2026-07"), queue="reports"),
        ),
    )
    for state in ("completed", "cancelled", "discarded", "running"):
        crew.until(getattr(jobs, state), state)
    crew.until(jobs.retryable, "retryable", attempt=2)
    crew.until(jobs.snoozed, "scheduled", attempt=0)
    return jobs
