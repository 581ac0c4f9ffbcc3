"""Proof that a client lives, as a service: the heart's thread, and the lock on the listener's connection.

The row is written before `start()` returns, so before the first claim, and the heart keeps it fresh from then on. The
lock is further evidence, for the case that counts most: a process that is gone. Its server backend ends with it, and
with the backend the lock; and a heart that cannot beat (a library that holds the interpreter for a minute) is not taken
for dead while the lock is held. It is taken once per connection of the listener, after a probe has shown that the
connection is ours, and with settings that let the server notice a cut cable:

    nothing --the connection is proven, the row is written--> keepalives, lock, `lock_taken` by the next heartbeat
    lock held --the connection is lost while we run--> the lock is gone; `lock_taken` is false by a heartbeat at once
    lock held --we stop, and the connection with us--> `lock_taken` stays: a row that is kept is judged by the lock
    lock held --the row was deleted and written again--> the old lock is let go, the new row's is taken
    lock refused (somebody holds it exclusively) --> `lock_taken` is false: judged by the heartbeats only

When the listener's connection dies exactly here: before the lock, nothing has changed; after it, the lock goes with it;
in both cases the error is the notifier's, which makes a new connection and calls again. `lock_taken` says "my lock not
being held is a sign of death", so it must not outlive the lock while we live: a process that is suspended while it has
no listener would be taken for dead after one grace. What is left is the moment from the loss to that heartbeat, some
milliseconds where the loop runs and the database answers. The heartbeats are fresh then, and nobody is dead whose
heartbeats are; only a process that is suspended in just that moment, and for longer than the grace, is misjudged.

Everything here runs in the client's event loop, which the heart tells what happened and never waits for.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from riverq.database import Database, control_engine
from riverq.driver import AnyEngine, Driver, Listener
from riverq.errors import DatabaseError, RiverqError, UnavailableError
from riverq.liveness.heart import Heart, Incarnation, LivenessTiming, Told
from riverq.query.client_registry import keepalives_text, lock_text, unlock_text
from riverq.service import Service, ServiceContext, TestSignal
from riverq.stats import LivenessStats

LISTENER_LIMIT = 10.0
"""Seconds that a statement on the listener's connection may take; none of ours waits for anything."""

NOTICE_SHARE = 5 / 6
"""Of the grace, for the server to notice that the listener's client is gone: the heartbeats go out of date later."""


class Liveness(Service):
    """Shows that this client lives while it runs. Start it before whatever claims; stop it after whatever runs.

    Without riverq's own tables (`enabled=False`) everything here does nothing. `engine` says how to connect; the heart
    opens one connection of its own. Set `keep_row` before `stop()` where jobs are left running: the row then stays, so
    that they are found when it is out of date. `is_listening` (settable) says whether the connection that was proven
    last is still there; it only matters to the figures. `timing` may be replaced before `start()`.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        engine: AnyEngine,
        driver: Driver,
        *,
        schema: str,
        grace: timedelta,
        enabled: bool,
    ) -> None:
        super().__init__(ctx)
        self.enabled = enabled
        self.keep_row = False
        self.timing = LivenessTiming.of(grace)
        self.is_listening: Callable[[], bool] = lambda: True
        self.registered: TestSignal[int] = TestSignal()
        self.beaten: TestSignal[datetime] = TestSignal()
        self.failed: TestSignal[str] = TestSignal()
        self.locked: TestSignal[bool] = TestSignal()
        self._engine = engine
        self._driver = driver
        self._schema = schema
        self._grace = grace
        self._incarnation: str | None = None
        self._heart: Heart | None = None
        self._stop_asked = asyncio.Event()
        self._taking = asyncio.Lock()
        self._listener: Listener | None = None
        self._held_row: int | None = None
        self._retaking: set[asyncio.Task[None]] = set()

    # -- for the client

    @property
    def incarnation(self) -> str | None:
        """The UUID of the present run, or of the last; None before the first and where the feature is off."""
        return self._incarnation

    @property
    def row_id(self) -> int | None:
        """The id of this incarnation's row as it is now."""
        heart = self._living_heart()
        return None if heart is None else heart.row_id

    def sure_for(self) -> timedelta:
        """For how long our own heartbeats have succeeded without a gap. Any thread may ask.

        Zero where the last one is more than two intervals ago, in a forked process, and where the feature is off.
        """
        heart = self._living_heart()
        return timedelta(0) if heart is None else heart.sure_for()

    def stats(self) -> LivenessStats:
        """As of now; `last_seen` is the database's time. Any thread may ask."""
        heart = self._living_heart()
        last = None if heart is None else heart.pulse.last
        return LivenessStats(
            enabled=self.enabled,
            last_seen=None if last is None else last.seen_at,
            failures_in_a_row=0 if heart is None else heart.pulse.failures_in_a_row,
            holds_lock=heart is not None and self._held_row is not None and self.is_listening(),
        )

    async def on_proven(self, listener: Listener) -> None:
        """Take the lock on a connection that has been shown to be ours. Raises UnavailableError where it broke."""
        if not self.enabled:
            return
        self._listener, self._held_row = listener, None
        await self._take_lock(listener)

    def on_gone(self, listener: Listener) -> None:
        """The connection broke, and its lock is gone; say so with the next heartbeat, which comes at once."""
        if listener is not self._listener:
            return
        self._listener, self._held_row = None, None
        heart = self._living_heart()
        if heart is not None and heart.row_id is not None:
            heart.record_lock(heart.row_id, taken=False)

    # -- the life of the service

    async def prepare(self) -> None:
        """Write the row. Raises DatabaseError or SchemaError: a client that cannot register must not claim.

        Its id may be known from an earlier run, and then runs that no living incarnation can have are given to others.
        """
        self._stop_asked.clear()
        self.keep_row = False
        self._incarnation = None
        if not self.enabled:
            return
        self._incarnation = str(uuid.uuid4())
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._heart = self._make_heart(entered)
        self._heart.start()
        try:
            await self._wait_until_entered(entered)
        except BaseException:
            entered.cancel()
            self._heart.stop(keep_row=False)
            self._heart = None
            raise

    async def run(self) -> None:
        """Until asked to stop; then let the heart end, within bounds."""
        await self._stop_asked.wait()
        heart = self._living_heart()
        if heart is None:
            return
        for task in self._retaking:
            task.cancel()
        heart.stop(keep_row=self.keep_row)
        ending = asyncio.create_task(self._ended.wait())
        done, _ = await asyncio.wait({ending}, timeout=self.timing.stop_limit.total_seconds())
        ending.cancel()
        if not done:
            self.ctx.log.warning("%s: Leaving the heart to end by itself, the database does not answer", self.name)
        self._heart = None

    def request_stop(self, task: asyncio.Task[None]) -> None:
        """Ends after unregistering, in bounded time."""
        self._stop_asked.set()

    def _make_heart(self, entered: asyncio.Future[None]) -> Heart:
        loop = asyncio.get_running_loop()
        assert self._incarnation is not None
        incarnation = Incarnation(self.ctx.client_id, self._incarnation, self._grace)

        def post(fn: Callable[..., object], *args: object) -> None:
            try:
                loop.call_soon_threadsafe(fn, *args)
            except RuntimeError:
                self.ctx.log.debug("%s: The client's event loop has been closed", self.name)

        told = Told(
            registered=partial(post, self._on_registered, entered),
            refused=partial(post, _refuse, entered),
            beaten=partial(post, self.beaten.signal),
            failed=partial(post, self.failed.signal),
            ended=partial(post, self._ended.set),
        )
        return Heart(self.ctx, self._open_database, incarnation, self.timing, told)

    def _open_database(self) -> Database:
        """A database of the heart's own, with one connection, bound to the heart's event loop."""
        return Database(control_engine(self._engine, size=1), self._driver, schema=self._schema, slots=1)

    async def _wait_until_entered(self, entered: asyncio.Future[None]) -> None:
        limit = (self.timing.limit + self.timing.stop_limit).total_seconds()
        await asyncio.wait({entered}, timeout=limit)
        if not entered.done():
            raise UnavailableError(f"this client could not be registered within {limit:g} s (the database is away?)")
        entered.result()

    def _living_heart(self) -> Heart | None:
        heart = self._heart
        return heart if heart is not None and heart.is_here else None

    # -- the lock

    def _on_registered(self, entered: asyncio.Future[None], row_id: int) -> None:
        if not entered.done():
            entered.set_result(None)
        self.registered.signal(row_id)
        if self._listener is not None:  # proven before the row was written, or the row is a new one
            task = asyncio.create_task(self._retake_lock(self._listener), name="riverq.Liveness.lock")
            self._retaking.add(task)
            task.add_done_callback(self._retaking.discard)

    async def _retake_lock(self, listener: Listener) -> None:
        try:
            await self._take_lock(listener)
        except RiverqError as error:
            # The connection broke, which the notifier finds out for itself.
            self.ctx.log.debug("%s: Could not take the lock of the new row: %s", self.name, error)

    async def _take_lock(self, listener: Listener) -> None:
        async with self._taking:
            heart = self._living_heart()
            row_id = None if heart is None else heart.row_id
            if heart is None or row_id is None or listener is not self._listener or row_id == self._held_row:
                return
            try:
                if self._held_row is not None:
                    self._held_row = None
                    await listener.query(unlock_text(), LISTENER_LIMIT)
                await listener.query(keepalives_text(self._grace * NOTICE_SHARE), LISTENER_LIMIT)
                held = await listener.query(lock_text(self._schema, row_id), LISTENER_LIMIT) == "true"
            except UnavailableError:
                raise
            except DatabaseError as error:
                self.ctx.log.warning("%s: Could not take the lock, only heartbeats count: %s", self.name, error)
                held = False
            if listener is not self._listener:
                return
            self._held_row = row_id if held else None
            heart.record_lock(row_id, taken=held)
            self.locked.signal(held)


def _refuse(entered: asyncio.Future[None], error: Exception) -> None:
    if not entered.done():
        entered.set_exception(error)
