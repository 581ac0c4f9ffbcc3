"""The thread that shows that a client lives: registers its incarnation, then touches the row again and again.

A thread, an event loop and a connection of its own, so that neither a blocked event loop, nor a drained pool, nor busy
job threads look like death. It reads nothing of the client's loop and waits for nothing there.

    not registered --the row is written--> beating --stop--> unregistered, or the row is left to be judged
    beating --the row is gone--> beating, with a new row that has the `started_at` of the first
    beating --a heartbeat failed--> beating, on a new connection, after a back-off

Every failure ends the connection: after an error nobody knows what state it is in, and one whose packets vanish never
says. Each attempt, connecting included, has a limit after which it is abandoned; a little earlier the server itself
ends the statement, so that a row or a table that somebody has locked does not collect waiting backends. Where nothing
answers at all, the attempts come slower and slower: some adapters cannot be interrupted while they connect.

When things end exactly here:
  * registering: `refused` is called and nothing runs; if only the answer was lost, a row stays behind that nobody
    touches and no run belongs to, and dies of old age;
  * a heartbeat whose answer was lost was made all the same; the next one says the same again;
  * unregistering: the row stays, is judged dead in time, and has no runs;
  * the process is suspended: heartbeats go on afterwards. If that took longer than the grace, its runs may belong to
    others by then, which the fence of every later write finds out;
  * the process forks: threads do not come along, so the child has no heart, and `Heart.is_here` is false there.

One statement at a time, one writer of `row_id`, `started_at` and `pulse`, any reader.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from riverq.database import Database
from riverq.errors import RiverqError, UnavailableError
from riverq.liveness.pulse import Beat, Pulse
from riverq.query.client_registry import (
    Registered,
    Twin,
    client_heartbeat,
    client_living_twins,
    client_register,
    client_unregister,
)
from riverq.query.limits import statement_timeout_set
from riverq.service import Backoff, OperationTimeoutError, ServiceContext, within

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

THREAD_NAME = "riverq_liveness"
HEARTBEATS_PER_GRACE = 6
SERVERS_SHARE = 0.8
LONGEST_WAIT = 60.0


@dataclass(frozen=True, kw_only=True)
class LivenessTiming:
    """When the heart does what. `of(grace)` gives the ones to use; tests shorten them.

    `limit` is for one attempt, connecting included, `stop_limit` for the end of it all.
    """

    interval: timedelta
    limit: timedelta
    stop_limit: timedelta = timedelta(seconds=5)
    first_backoff: timedelta = timedelta(milliseconds=100)

    @classmethod
    def of(cls, grace: timedelta) -> LivenessTiming:
        """A sixth of the grace from one heartbeat to the next: several may fail before the grace is over."""
        interval = grace / HEARTBEATS_PER_GRACE
        return cls(interval=interval, limit=max(2 * interval, timedelta(seconds=2)))


@dataclass(frozen=True)
class Incarnation:
    """One run of one client: its id in `attempted_by`, a UUID of this run, and the grace it is judged by."""

    client_id: str
    uuid: str
    grace: timedelta


@dataclass(frozen=True)
class Told:
    """What a heart reports, from its own thread."""

    registered: Callable[[int], None]
    refused: Callable[[Exception], None]
    beaten: Callable[[datetime], None]
    failed: Callable[[str], None]
    ended: Callable[[], None]


class Heart:
    """Started once, stopped once. `open_database` is called in the heart's own loop, for each new connection."""

    def __init__(
        self,
        ctx: ServiceContext,
        open_database: Callable[[], Database],
        incarnation: Incarnation,
        timing: LivenessTiming,
        told: Told,
    ) -> None:
        self.name = "Liveness"
        self.row_id: int | None = None
        self.pulse = Pulse(timing.interval)
        self._ctx = ctx
        self._open_database = open_database
        self._incarnation = incarnation
        self._timing = timing
        self._told = told
        self._started_at: datetime | None = None
        self._lock: tuple[int, bool] | None = None
        self._keep_row = False
        self._stopping = False
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._asked_to_stop = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._backoff = Backoff(ctx, first=timing.first_backoff.total_seconds(), cap=timing.interval.total_seconds())
        self._unanswered = 0
        self._said_overdue = False

    # -- for any thread

    @property
    def is_here(self) -> bool:
        """False in a process that was forked from the one whose heart this is."""
        return self._pid == os.getpid()

    def start(self) -> None:
        """Begin; `registered` or `refused` is called soon."""
        threading.Thread(target=self._main, name=THREAD_NAME, daemon=True).start()

    def record_lock(self, row_id: int, *, taken: bool) -> None:
        """Write soon, and again with every heartbeat, whether the lock of this row was taken."""
        self._lock = (row_id, taken)
        self._call(self._woken.set)

    def stop(self, *, keep_row: bool) -> None:
        """Stop beating, and delete the row unless it is to be judged; `ended` is called in any case."""
        self._keep_row, self._stopping = keep_row, True
        self._call(self._asked_to_stop.set)

    def sure_for(self) -> timedelta:
        """For how long heartbeats have succeeded without a gap; zero where they do not now."""
        return self.pulse.sure_for(self._ctx.clock.monotonic(), self._ctx.clock.now())

    def _call(self, fn: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None and self.is_here:
            try:
                loop.call_soon_threadsafe(fn)
            except RuntimeError:
                self._ctx.log.debug("%s: The heart has stopped already", self.name)

    # -- the heart's own thread

    def _main(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._live())
        except Exception as error:
            self._ctx.log.exception("%s: The heart stopped in a way nobody foresaw", self.name)
            self._told.refused(error)
        finally:
            self._told.ended()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._tell_abandoned)
        if self._stopping:  # asked before there was a loop to be told in
            self._asked_to_stop.set()
        self._db = self._open_database()
        try:
            try:
                await self._register_first()
            except RiverqError as error:
                self._told.refused(error)
                return
            if await self._beat_until_asked() and not self._keep_row:
                await self._unregister()
        finally:
            self._close_later(self._db)
            await asyncio.wait(self._closing)

    async def _beat_until_asked(self) -> bool:
        """Whether the connection is of use afterwards: a heartbeat under way is given a moment to end."""
        beating = asyncio.create_task(self._beat_for_ever(), name="riverq.Liveness.beats")
        asked = asyncio.create_task(self._asked_to_stop.wait())
        await asyncio.wait({beating, asked}, return_when=asyncio.FIRST_COMPLETED)
        self._woken.set()
        done, _ = await asyncio.wait({beating}, timeout=self._timing.stop_limit.total_seconds() / 4)
        if not done:
            beating.cancel()
            await asyncio.wait({beating}, timeout=self._timing.stop_limit.total_seconds() / 4)
        asked.cancel()
        if done and not self._stopping:
            beating.result()  # says why it ended
        return bool(done)

    async def _beat_for_ever(self) -> None:
        began = self._monotonic()
        wait = self._timing.interval.total_seconds()
        while True:
            await self._sleep(began + wait - self._monotonic())
            if self._asked_to_stop.is_set():
                return
            began = self._monotonic()
            try:
                seen_at = await self._beat()
            except RiverqError as error:
                wait = self._failed(error)
            except Exception as error:
                # A heart that ends is a client that others take for dead while it works.
                self._ctx.log.exception("%s: A heartbeat failed in a way nobody foresaw", self.name)
                wait = self._failed(error)
            else:
                wait = self._timing.interval.total_seconds()
                self._succeeded(seen_at)

    async def _sleep(self, seconds: float) -> None:
        """Until woken, at most `seconds`. Not by the context's clock: real time is what the others see."""
        waiting = asyncio.create_task(self._woken.wait())
        await asyncio.wait({waiting}, timeout=max(0.0, seconds))
        waiting.cancel()
        self._woken.clear()

    # -- the statements

    async def _register_first(self) -> None:
        who = {"client_id": self._incarnation.client_id, "incarnation": self._incarnation.uuid}
        entered = await self._run("registering the client", client_register, None, **who)
        self._started_at = entered.started_at
        self._pulse(entered.started_at)
        for twin in await self._twins(who):
            self._ctx.log.warning(
                "%s: Another client with this id was seen %s ago; if it is not an earlier run of this one that just "
                "ended badly, give each its own id, or one that dies is not noticed (client_id=%s)",
                self.name,
                twin.seen_ago,
                self._incarnation.client_id,
            )
        self._entered(entered)

    async def _twins(self, who: dict[str, str]) -> list[Twin]:
        """Looked for when our own row is committed: of two that start at once, one at least sees the other."""
        try:
            limit = self._timing.stop_limit / 2
            return await self._run(
                "the look for twins", client_living_twins, limit, grace=self._incarnation.grace, **who
            )
        except RiverqError as error:
            self._ctx.log.debug("%s: Could not look for clients with the same id: %s", self.name, error)
            self._close_later(self._db)
            self._db = self._open_database()
            return []

    async def _beat(self) -> datetime:
        assert self.row_id is not None
        lock = self._lock
        taken = lock[1] if lock is not None and lock[0] == self.row_id else None
        seen_at = await self._run("the heartbeat", client_heartbeat, row_id=self.row_id, lock_taken=taken)
        if seen_at is not None:
            return seen_at
        self._ctx.log.warning("%s: Registering again, somebody deleted the row of this client", self.name)
        again = await self._run(
            "registering the client again",
            client_register,
            client_id=self._incarnation.client_id,
            incarnation=self._incarnation.uuid,
            started_at=self._started_at,
        )
        self._entered(again)
        seen_at = await self._run("the heartbeat", client_heartbeat, row_id=again.id)
        if seen_at is None:
            raise UnavailableError("the row of this client was deleted as soon as it was written")
        return seen_at

    async def _unregister(self) -> None:
        limit = min(self._timing.limit, self._timing.stop_limit / 2)
        who = {"client_id": self._incarnation.client_id, "incarnation": self._incarnation.uuid}
        try:
            await self._run("unregistering", client_unregister, limit, **who)
        except RiverqError as error:
            self._ctx.log.warning("%s: Could not unregister, the row is left to be judged: %s", self.name, error)

    async def _run(self, what: str, fn: Callable[..., T], limit: timedelta | None = None, **options: Any) -> T:
        limit = limit or self._timing.limit
        operation = self._db.run(_limited, fn, limit * SERVERS_SHARE, options)
        return await within(limit.total_seconds(), what, operation)

    # -- what became of them

    def _entered(self, entered: Registered) -> None:
        self.row_id = entered.id
        self._told.registered(entered.id)

    def _pulse(self, seen_at: datetime) -> timedelta:
        return self.pulse.succeeded(Beat(self._monotonic(), self._ctx.clock.now(), seen_at))

    def _succeeded(self, seen_at: datetime) -> None:
        failures = self.pulse.failures_in_a_row
        gap = self._pulse(seen_at)
        if failures:
            self._ctx.log.info("%s: Heartbeats succeed again", self.name)
        elif gap:
            self._ctx.log.warning("%s: Was not seen for %s (the process or its machine was suspended?)", self.name, gap)
        self._backoff.reset()
        self._unanswered = 0
        self._said_overdue = False
        self._told.beaten(seen_at)

    def _failed(self, error: Exception) -> float:
        """Say so, take a new connection, and return how long to wait."""
        self.pulse.failed()
        tell = self._ctx.log.debug if self.pulse.failures_in_a_row > 1 else self._ctx.log.warning
        tell("%s: Could not show that this client lives, trying again: %s", self.name, error)
        self._tell_overdue()
        self._close_later(self._db)
        self._db = self._open_database()
        wait = self._backoff.next()
        if isinstance(error, OperationTimeoutError):
            self._unanswered += 1
            wait = max(wait, min(LONGEST_WAIT, (self._unanswered - 1) * self._timing.interval.total_seconds()))
        self._told.failed(str(error))
        return wait

    def _tell_overdue(self) -> None:
        last = self.pulse.last
        silent = timedelta(0) if last is None else timedelta(seconds=self._monotonic() - last.monotonic)
        if silent > self._incarnation.grace and not self._said_overdue:
            self._said_overdue = True
            self._ctx.log.warning(
                "%s: Has not been seen for %s; whoever reaches the database may take this client for dead and give its "
                "jobs to others",
                self.name,
                silent,
            )

    def _tell_abandoned(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What was given up may end with an error, long after anybody waited for it."""
        told = context.get("exception") or context["message"]
        self._ctx.log.debug("%s: Something that was abandoned has ended: %s", self.name, told)

    def _close_later(self, database: Database) -> None:
        task = asyncio.create_task(database.close(), name="riverq.Liveness.close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _monotonic(self) -> float:
        return self._ctx.clock.monotonic()


def _limited(conn: Connection, schema: str, fn: Callable[..., T], limit: timedelta, options: dict[str, Any]) -> T:
    """Call `fn` in a transaction whose statements the server itself ends after `limit`."""
    statement_timeout_set(conn, schema, limit)
    return fn(conn, schema, **options)
