"""Rebuilds indexes by a schedule, without keeping anybody from working jobs.

For each index in turn, on a connection of its own that exists only meanwhile:

    missing --> warned about, next
    somebody builds, rebuilds or vacuums on its table --> left for the next run
    leftovers of an attempt that was cut short --> dropped; if that fails, left for the next run
    rebuild --in time--> done
    rebuild --timeout, an error, `stop()`--> ended on the server, what it left is dropped (15 s at most)

No index is ever given up: what could not be dropped now is dropped by the next run, on whatever client, and the rebuild
is tried again. An index that is too large for the timeout is warned about at each run, with the way out.

The rebuild cannot run in a transaction, so it cannot have a `statement_timeout` of its own that a pooler would not hand
on to others. The reindexer therefore counts the time and asks the server to cancel the statement, which it finds by a
mark of 128 random bits; on one more connection of its own, so that no upkeep under way delays it. If the server does
not even answer, it stops waiting; the statement then ends as the server sees fit, and its locks keep the next run away
until it has.

Two leaders for a moment are harmless: the second sees the first one's locks and leaves the table alone. If both look
in the same instant, the server lets one wait for the other, or ends one with a deadlock error, and that counts as a
failed attempt. The process may be killed at any point: the server carries on with the rebuild alone, or stops with a
leftover.

Runs follow from the schedule, each from the time of the run before, by this machine's clock in UTC. One that falls due
while the machine sleeps comes when it wakes, and only once, however many were missed; one that falls due during another
is left out. Who becomes the leader begins with the next run after that.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Concatenate

from riverq.database import Database
from riverq.errors import DatabaseError, RiverqError
from riverq.maintenance.base import QUERY_CANCELED
from riverq.query.index import IndexLook, index_drop, index_look, index_rebuild
from riverq.query.limits import statement_cancel
from riverq.schedule import Schedule
from riverq.service import OperationTimeoutError, Service, ServiceContext, TestSignal, within

if TYPE_CHECKING:
    from sqlalchemy import Connection

LONGEST_SLEEP = 60.0
"""Seconds after which the wall clock is looked at again: it may have been set, or the machine may have slept."""

DROP_LIMIT = timedelta(seconds=15)
"""How long dropping what an attempt left may take, when stopping too."""

CANCEL_PAUSE = 0.2
CANCEL_LIMIT = 10.0
"""Seconds between two requests to the server to end a statement, and after which it is left to itself."""

LOOK_LIMIT = 5.0
"""Seconds that a look at the catalog, or one such request, may take."""


@dataclass(frozen=True, kw_only=True)
class ReindexerConfig:
    """Which indexes, when, and how long each may take (None: as long as it needs)."""

    index_names: Sequence[str]
    schedule: Schedule
    timeout: timedelta | None = timedelta(minutes=1)


class Reindexer(Service):
    """Rebuilds the indexes of `config` when its schedule says so.

    `open_database` makes a database of one connection; each is closed after its index, or its cancellation.
    """

    def __init__(self, ctx: ServiceContext, open_database: Callable[[], Database], config: ReindexerConfig) -> None:
        super().__init__(ctx)
        self.ticked: TestSignal[None] = TestSignal()
        self.tick_failed: TestSignal[Exception] = TestSignal()
        self.rebuilt: TestSignal[str] = TestSignal()
        self.passed_over: TestSignal[str] = TestSignal()
        self.failed: TestSignal[str] = TestSignal()
        self.dropped: TestSignal[str] = TestSignal()
        self.began: TestSignal[str] = TestSignal()
        self._open_database = open_database
        self._config = config

    async def run(self) -> None:
        """One run after the other, until cancelled or the schedule ends."""
        due = self._config.schedule.next(self.ctx.clock.now()) if self._config.index_names else None
        while due is not None:
            await self._sleep_until(due)
            try:
                await self.run_once()
            except Exception as error:
                self.ctx.log.exception("%s: Run failed, waiting for the next", self.name)
                self.tick_failed.signal(error)
            else:
                self.ticked.signal(None)
            due = next_run(self._config.schedule, due, self.ctx.clock.now())
        await asyncio.get_running_loop().create_future()  # nothing to do, but started until stopped

    async def run_once(self) -> None:
        """Every index, one after the other. What ails one does not keep the others from their turn."""
        for index in self._config.index_names:
            db = self._open_database()
            try:
                await self._treat(db, index)
            except RiverqError as error:
                self.ctx.log.warning("%s: Could not rebuild index %s: %s", self.name, index, error)
                self.failed.signal(index)
            finally:
                await _close(db)

    async def _sleep_until(self, due: datetime) -> None:
        while (left := (due - self.ctx.clock.now()).total_seconds()) > 0:
            await self.ctx.clock.sleep(min(left, LONGEST_SLEEP))

    async def _treat(self, db: Database, index: str) -> None:
        look = await self._look(db, index)
        if not look.is_there:
            self.ctx.log.warning("%s: Found no index %s in schema %s", self.name, index, db.schema)
            self.passed_over.signal(index)
        elif look.is_busy:
            self._pass_over(index)
        elif await self._drop_leftovers(db, index, look, self._config.timeout):
            await self._rebuild(db, index)

    async def _look(self, db: Database, index: str) -> IndexLook:
        return await within(LOOK_LIMIT, f"{self.name}'s look at index {index}", db.run(index_look, index))

    def _pass_over(self, index: str) -> None:
        self.ctx.log.info(
            "%s: Left index %s for the next run, somebody builds, rebuilds or vacuums there", self.name, index
        )
        self.passed_over.signal(index)

    async def _rebuild(self, db: Database, index: str) -> None:
        started = self.ctx.clock.monotonic()
        self.began.signal(index)
        try:
            await self._run_limited(db, self._config.timeout, index_rebuild, index)
        except OperationTimeoutError:
            self.ctx.log.warning(
                "%s: Gave up rebuilding index %s for now, it took longer than %s "
                "(end transactions that stay open for long, or raise reindexer_timeout)",
                self.name,
                index,
                self._config.timeout,
            )
            self.failed.signal(index)
            await self._clean_up(db, index)
        except (asyncio.CancelledError, RiverqError):
            await self._clean_up(db, index)
            raise
        else:
            took = timedelta(seconds=self.ctx.clock.monotonic() - started)
            self.ctx.log.info("%s: Rebuilt index %s (duration=%s)", self.name, index, took)
            self.rebuilt.signal(index)

    async def _clean_up(self, db: Database, index: str) -> None:
        """Drop what the attempt left, if that can be done soon; the next run tries again."""
        try:
            look = await self._look(db, index)
            if not look.is_busy:
                await self._drop_leftovers(db, index, look, DROP_LIMIT)
        except RiverqError as error:
            self.ctx.log.warning("%s: Left what remains of index %s for the next run: %s", self.name, index, error)

    async def _drop_leftovers(self, db: Database, index: str, look: IndexLook, timeout: timedelta | None) -> bool:
        """Drop them; False, and a warning, where one stays."""
        for leftover in look.leftovers:
            try:
                await self._run_limited(db, timeout, index_drop, leftover)
            except DatabaseError as error:
                self.ctx.log.warning(
                    "%s: Could not drop %s, left of an attempt at index %s; the next run tries again: %s",
                    self.name,
                    leftover,
                    index,
                    error,
                )
                self.failed.signal(index)
                return False
            self.ctx.log.info("%s: Dropped %s, left of an attempt at index %s", self.name, leftover, index)
            self.dropped.signal(leftover)
        return True

    # -- a statement that the server ends in time, outside a transaction

    async def _run_limited(
        self,
        db: Database,
        timeout: timedelta | None,
        statement: Callable[Concatenate[Connection, str, str, ...], None],
        index: str,
    ) -> None:
        """Run `statement` on `index`. After `timeout` or on cancellation it is ended on the server.

        Raises OperationTimeoutError, CancelledError, or what the database says.
        """
        mark = f"riverq {secrets.token_hex(16)}"
        task = asyncio.create_task(
            db.run_outside(statement, index, mark=mark), name=f"riverq.{self.name}.{statement.__name__}"
        )
        try:
            await asyncio.wait({task}, timeout=None if timeout is None else timeout.total_seconds())
        except asyncio.CancelledError:
            await self._end(task, mark)
            raise
        if not task.done():
            await self._end(task, mark)
            if not task.done() or task.cancelled() or _was_cancelled(task.exception()):
                raise OperationTimeoutError(f"{statement.__name__} took longer than {timeout}")
        task.result()  # it may have ended by itself in the last moment

    async def _end(self, task: asyncio.Task[None], mark: str) -> None:
        """Have the server end the statement that `task` waits for. If it does not, stop waiting."""
        db = self._open_database()
        try:
            with suppress(OperationTimeoutError):
                await within(CANCEL_LIMIT, f"{self.name}'s cancellation", self._ask_until_done(db, task, mark))
        finally:
            await _close(db)
        if not task.done():
            self.ctx.log.warning("%s: Stopped waiting for a statement that the server does not end", self.name)
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_PAUSE)
        if task.done() and not task.cancelled():
            task.exception()  # read, so that the loop does not complain

    async def _ask_until_done(self, db: Database, task: asyncio.Task[None], mark: str) -> None:
        """Ask again and again: the statement may only just be on its way to the server."""
        while not task.done():
            try:
                await within(LOOK_LIMIT, f"{self.name}'s request", db.run(statement_cancel, mark))
            except RiverqError as error:
                self.ctx.log.debug("%s: Could not ask the server to cancel: %s", self.name, error)
            await asyncio.wait({task}, timeout=CANCEL_PAUSE)


async def _close(db: Database) -> None:
    """Close it to the end, even if `stop()` comes just now: half closed, its thread would stay."""
    closing = asyncio.create_task(db.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait({closing})
        raise


def next_run(schedule: Schedule, last: datetime, now: datetime) -> datetime | None:
    """The run after `last`; the first one after `now` where that one is past already."""
    following = schedule.next(last.astimezone(UTC))
    return schedule.next(now) if following is not None and following <= now else following


def _was_cancelled(error: BaseException | None) -> bool:
    return isinstance(error, DatabaseError) and error.sqlstate == QUERY_CANCELED
