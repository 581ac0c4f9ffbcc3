"""What every maintenance service shares: ticking, batching, the time limit, and what happens on errors.

A service writes `run_once`. An error in it is logged and waits for the next tick: the table is still there, and the
next tick does the rest. Everything a service does must be safe to run twice at once, because two clients may believe
for a moment that they lead.

The time limit is the server's: `query` sets `statement_timeout` for its transaction, so that a statement really ends,
on every adapter, with its locks and its connection given back. It also ends a transaction whose client falls silent
between two statements (stopped, or behind a cut cable): its rows would stay locked, and be passed over by the next
leader, for as long as TCP takes to notice. The client stops waiting a little later, which only matters where the server
does not answer at all. What a statement had deleted or moved by then is rolled back, or, if the answer to COMMIT was
lost, is done and not found again by the next tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from riverq.database import Database
from riverq.errors import DatabaseError, PoolExhaustedError
from riverq.query.limits import transaction_limit_set
from riverq.service import OperationTimeoutError, Service, ServiceContext, TestSignal, Ticker, within
from riverq.validation import duration, integer

if TYPE_CHECKING:
    from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUTS_BEFORE_REDUCTION = 3
TIMEOUT_WINDOW = timedelta(minutes=10)
FULL_BATCHES_BEFORE_GROWTH = 10
"""Ten full batches in a row at one size before a larger one is tried: a minute's work, and a tenth of it at risk."""
MOST_FULL_BATCHES = 640
"""Where the doubling of that number ends, for a table on which larger batches fail again and again."""
ANSWER_LIMIT = 2.0
"""Seconds for which the client waits on when the server should have ended the statement."""
PAUSE_BETWEEN_BATCHES = (0.05, 1.0)
QUERY_CANCELED = "57014"
"""The server's own word for a statement that ran into a timeout."""


@dataclass(frozen=True, kw_only=True)
class MaintenanceTiming:
    """When a service runs and how much it takes at a time; the defaults are River's.

    `stagger` spreads the first ticks of services that start together. `timeout` bounds one statement. A batch has
    `batch_size` rows; after three timeouts in a row it has `reduced_batch_size`, and grows back from there.
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
    """How many rows to take at a time: fewer when the database cannot keep up, and more again when it can.

    Timeouts count while no success lies between them and the oldest is at most ten minutes old; the third reduces the
    size. Staying there for ever would make one bad hour (a backup, an index being built) slow every later catch-up, so
    after ten full batches in a row the size is doubled. Only full batches count: one that found less says nothing
    about a larger one. A new size is on trial until a full batch has succeeded at it. One timeout on trial takes it
    back at once, three would cost minutes of the database's time, and doubles the number of full batches before the
    next trial, so that a table that really is too large for it is seldom asked.

        full --three timeouts--> reduced --10 full batches--> twice as much, on trial --a full batch--> … --> full
        on trial --one timeout--> the size before, with twice the patience
    """

    def __init__(self, ctx: ServiceContext, timing: MaintenanceTiming) -> None:
        self._ctx = ctx
        self._full_size = timing.batch_size
        self._reduced_size = timing.reduced_batch_size
        self._timeouts: deque[float] = deque(maxlen=TIMEOUTS_BEFORE_REDUCTION)
        self._patience = FULL_BATCHES_BEFORE_GROWTH
        self._in_a_row = 0
        self._before_trial: int | None = None
        self.current = timing.batch_size

    @property
    def is_reduced(self) -> bool:
        """Whether a smaller size than the full one is in force."""
        return self.current < self._full_size

    def succeeded(self) -> None:
        """A batch ended in time."""
        self._timeouts.clear()

    def filled(self) -> bool:
        """A batch of the present size was full, and in time. Returns whether the next ones are larger."""
        self._before_trial = None
        self._in_a_row += 1
        if self._in_a_row < self._patience:
            return False
        self._in_a_row = 0
        if not self.is_reduced:
            self._patience = FULL_BATCHES_BEFORE_GROWTH
            return False
        self._before_trial = self.current
        self.current = min(2 * self.current, self._full_size)
        return True

    def timed_out(self) -> bool:
        """A batch did not end in time. Returns whether the next batches are smaller."""
        self._in_a_row = 0
        before = self.current
        if self._before_trial is not None:
            self.current, self._before_trial = self._before_trial, None
            self._patience = min(2 * self._patience, MOST_FULL_BATCHES)
            self._timeouts.clear()
            return True
        now = self._ctx.clock.monotonic()
        self._timeouts.append(now)
        if len(self._timeouts) == TIMEOUTS_BEFORE_REDUCTION and (
            now - self._timeouts[0] <= TIMEOUT_WINDOW.total_seconds()
        ):
            self.current = min(self.current, self._reduced_size)
        return self.current < before


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
        """Run a query function in a transaction of its own, each of its statements within the service's time limit.

        Raises DatabaseError with 57014 after it, OperationTimeoutError where not even that comes back,
        PoolExhaustedError where it never got a connection, and whatever else the database says.
        """
        began = False

        def limited(conn: Connection, schema: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal began
            began = True
            transaction_limit_set(conn, schema, self.timing.timeout)
            return fn(conn, schema, *args, **kwargs)

        patience = self.timing.timeout.total_seconds() + ANSWER_LIMIT
        try:
            return await within(patience, f"{self.name}'s statement", self._db.run(limited, *args, **kwargs))
        except OperationTimeoutError as error:
            if began:
                raise
            raise PoolExhaustedError(f"no connection became free for {self.name} in {patience:.3g} s") from error

    async def batches(self, run_batch: Callable[[int], Awaitable[int]], size: BatchSize | None = None) -> int:
        """Call `run_batch(limit)` until it handles fewer rows than its limit; returns how many it handled in all.

        `size`, the service's own unless given, learns from these batches alone: another statement that succeeds in
        between says nothing about them. Between full batches it pauses at random, so that a long catch-up leaves room
        for jobs.
        """
        size, total = size or self.batch_size, 0
        while True:
            limit = size.current
            try:
                handled = await run_batch(limit)
            except DatabaseError as error:
                if error.sqlstate == QUERY_CANCELED or isinstance(error, OperationTimeoutError):
                    self._note_timeout(size)
                raise
            size.succeeded()
            total += handled
            if handled < limit:
                return total
            if size.filled():
                self.ctx.log.info("%s: Takes larger batches again, %d rows at a time", self.name, size.current)
            await self.pause_between_batches()

    async def pause_between_batches(self) -> None:
        """50 ms to 1 s."""
        await self.ctx.clock.sleep(self.ctx.rng.uniform(*PAUSE_BETWEEN_BATCHES))

    def _note_timeout(self, size: BatchSize) -> None:
        if size.timed_out():
            self.ctx.log.warning(
                "%s: Statements keep timing out, from now on %d rows at a time", self.name, size.current
            )
