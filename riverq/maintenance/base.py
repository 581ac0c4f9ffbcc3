"""What every maintenance service shares: ticking, batching, the time limit, and what happens on errors.

A service writes `run_once`. An error in it is logged and waits for the next tick: the table is still there, and the
next tick does the rest. Everything a service does must be safe to run twice at once, because two clients may believe
for a moment that they lead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from riverq.database import Database
from riverq.errors import DatabaseError
from riverq.service import OperationTimeoutError, Service, ServiceContext, TestSignal, Ticker, within
from riverq.validation import duration, integer

if TYPE_CHECKING:
    from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUTS_BEFORE_REDUCTION = 3
TIMEOUT_WINDOW = timedelta(minutes=10)
PAUSE_BETWEEN_BATCHES = (0.05, 1.0)
QUERY_CANCELED = "57014"
"""The server's own word for a statement that ran into a timeout."""


@dataclass(frozen=True, kw_only=True)
class MaintenanceTiming:
    """When a service runs and how much it takes at a time; the defaults are River's.

    `stagger` spreads the first ticks of services that start together. `timeout` bounds one statement. A batch is
    `batch_size` rows until three statements in a row timed out, `reduced_batch_size` from then on.
    """

    interval: timedelta = timedelta(seconds=30)
    stagger: timedelta = timedelta(seconds=1)
    timeout: timedelta = timedelta(seconds=30)
    batch_size: int = 10_000
    reduced_batch_size: int = 1_000

    def __post_init__(self) -> None:
        duration("interval", self.interval, timedelta(milliseconds=1))
        duration("stagger", self.stagger)
        duration("timeout", self.timeout, timedelta(milliseconds=1))
        integer("batch_size", self.batch_size, 1)
        integer("reduced_batch_size", self.reduced_batch_size, 1, self.batch_size)


class BatchSize:
    """How many rows to take at a time: fewer, and for good, once the database has shown that it cannot keep up.

    Timeouts count while no success lies between them and the oldest is at most ten minutes old. It stays reduced for
    the life of the service object: a table that was too big once is too big again as soon as the full size is tried.
    """

    def __init__(self, ctx: ServiceContext, timing: MaintenanceTiming) -> None:
        self._ctx = ctx
        self._reduced_size = timing.reduced_batch_size
        self._timeouts: deque[float] = deque(maxlen=TIMEOUTS_BEFORE_REDUCTION)
        self.current = timing.batch_size

    @property
    def is_reduced(self) -> bool:
        """Whether the smaller size is in force."""
        return self.current == self._reduced_size

    def succeeded(self) -> None:
        """A statement ended in time."""
        self._timeouts.clear()

    def timed_out(self) -> None:
        """A statement did not."""
        now = self._ctx.clock.monotonic()
        self._timeouts.append(now)
        if len(self._timeouts) == TIMEOUTS_BEFORE_REDUCTION and (
            now - self._timeouts[0] <= TIMEOUT_WINDOW.total_seconds()
        ):
            self.current = self._reduced_size


class MaintenanceService(Service):
    """Runs `run_once` at once and then every interval, for as long as it is started."""

    def __init__(self, ctx: ServiceContext, db: Database, timing: MaintenanceTiming) -> None:
        super().__init__(ctx)
        self.timing = timing
        self.ticked: TestSignal[None] = TestSignal()
        self.tick_failed: TestSignal[Exception] = TestSignal()
        self.batch_size = BatchSize(ctx, timing)
        self._db = db

    async def run_once(self) -> None:
        """One tick's work."""
        raise NotImplementedError

    async def run(self) -> None:
        """Tick until cancelled."""
        async for _ in Ticker(self.ctx, self.timing.interval, stagger=self.timing.stagger):
            try:
                await self.run_once()
            except DatabaseError as error:
                self.ctx.log.warning("%s: Tick failed, waiting for the next: %s", self.name, error)
                self.tick_failed.signal(error)
            except Exception as error:
                self.ctx.log.exception("%s: Tick failed, waiting for the next", self.name)
                self.tick_failed.signal(error)
            else:
                self.ticked.signal(None)

    async def query(self, fn: Callable[Concatenate[Connection, str, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a query function in a transaction of its own, within the service's time limit.

        Raises OperationTimeoutError after it, and whatever the database says. Counts for the batch size either way.
        """
        try:
            result = await within(
                self.timing.timeout.total_seconds(), f"{self.name}'s statement", self._db.run(fn, *args, **kwargs)
            )
        except DatabaseError as error:
            if isinstance(error, OperationTimeoutError) or error.sqlstate == QUERY_CANCELED:
                self._note_timeout()
            raise
        self.batch_size.succeeded()
        return result

    async def batches(self, run_batch: Callable[[int], Awaitable[int]]) -> int:
        """Call `run_batch(limit)` until it handles fewer rows than its limit; returns how many it handled in all.

        Between full batches it pauses at random, so that a long catch-up leaves room for jobs.
        """
        total = 0
        while True:
            limit = self.batch_size.current
            handled = await run_batch(limit)
            total += handled
            if handled < limit:
                return total
            await self.pause_between_batches()

    async def pause_between_batches(self) -> None:
        """50 ms to 1 s."""
        await self.ctx.clock.sleep(self.ctx.rng.uniform(*PAUSE_BETWEEN_BATCHES))

    def _note_timeout(self) -> None:
        was_reduced = self.batch_size.is_reduced
        self.batch_size.timed_out()
        if self.batch_size.is_reduced and not was_reduced:
            self.ctx.log.warning(
                "%s: Statements keep timing out, from now on %d rows at a time", self.name, self.batch_size.current
            )
