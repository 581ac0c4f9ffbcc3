"""Owns the client's one LISTEN connection and fans out what it hears.

Two questions are kept apart. Is there a connection? And does it *deliver*? Behind PgBouncer in transaction mode LISTEN
succeeds, `pg_listening_channels()` shows it, and nothing ever arrives. So delivery is probed: the notifier listens on a
channel of its own and asks a second connection to NOTIFY there.

    disconnected --connect, LISTEN all, tell every subscriber of the gap--> connected, not known to deliver
    connected --the probe came back--> delivering
    connected --two in a row did not--> poll-only (said once; probing goes on; recovery is said once)
    delivering --two probes in a row did not--> disconnected (a fresh connection may cure it; its first probes decide)
    any --the connection broke, or a ping stayed unanswered--> disconnected, and back after 0.1 s, 0.2 s, 0.4 s ...

A probe that could not be *sent* (the second connection could not be had) proves nothing and counts as nothing. Behind a
pooler every statement links the connection to a server for a moment, and a notification that gets through just then
would prove too much. So no ping is sent while a probe is out, and where a subscription that came or went made a LISTEN
or UNLISTEN necessary meanwhile, the answer proves nothing and another probe is sent at once.

Notifications are hints. Whatever the connection dies of, the answer is the same: make a new one, LISTEN, and only then
call every `on_gap`, so that a subscriber who reads the tables in answer to it has missed nothing: what came before the
LISTEN is in the tables, what comes after it is heard. It dies
  * while waiting: `Listener.wait` raises, or the next ping does; what was sent meanwhile is covered by `on_gap`;
  * between the LISTENs of two topics: the topic already told about is told again after the reconnect;
  * while UNLISTENing: the topic counts as not listened from before the statement, so nothing is left to undo;
  * with a probe out: the probe is forgotten with its connection; a proof belongs to one connection only;
  * while connecting: the half-made connection is closed, the back-off goes on. It starts again at 0.1 s only after a
    connection that delivered or lasted, so that a server that accepts and then closes is not hammered.

See docs/internals/notifications.md.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from riverq.driver import Listener, Notification
from riverq.errors import RiverqError, UnavailableError
from riverq.notification import Topic, channel
from riverq.notifier.fan_out import FanOut, OnGap, OnPayload
from riverq.service import Backoff, Service, ServiceContext, TestSignal, within
from riverq.validation import duration

MISSES_BEFORE_POLL_ONLY = 2
WAIT_SLACK = 0.05
CLOSE_LIMIT = 2.0


@dataclass(frozen=True, kw_only=True)
class NotifierTiming:
    """When the notifier does what. The defaults are the ones to use; tests shorten them.

    `answer_timeout` is how long a sent probe may stay unheard; `busy_cap` and `idle_cap` bound the back-off while jobs
    run and while none do.
    """

    operation_timeout: timedelta = timedelta(seconds=10)
    ping_interval: timedelta = timedelta(seconds=5)
    probe_interval: timedelta = timedelta(seconds=30)
    answer_timeout: timedelta = timedelta(seconds=2)
    first_backoff: timedelta = timedelta(milliseconds=100)
    busy_cap: timedelta = timedelta(seconds=5)
    idle_cap: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            duration(name, getattr(self, name), timedelta(milliseconds=1))


@dataclass(eq=False)
class _Session:
    """One connection's life: what it listens to, what is due when (monotonic seconds), and how the probe stands.

    `number` is that of the last probe, `disturbed` that of the last one during which another statement was sent.
    """

    listener: Listener
    connected_at: float
    ping_due: float
    probe_due: float
    listened: set[Topic] = field(default_factory=set)
    connecting: asyncio.Task[None] | None = None
    waiting: asyncio.Task[list[Notification]] | None = None
    sending: asyncio.Task[bool] | None = None
    answer_due: float | None = None
    answered: bool = False
    number: int = 0
    disturbed: int = 0
    misses: int = 0
    proven: bool = False

    @property
    def probe_is_out(self) -> bool:
        """Whether an answer may come at any moment."""
        return self.sending is not None or self.answer_due is not None

    def next_due(self) -> float:
        """When something must be done if nothing is heard. A probe being sent wakes the notifier by itself."""
        return min(self.ping_due, self.probe_due) if self.answer_due is None else self.answer_due


class Notifier(Service):
    """One LISTEN connection for all topics that have subscribers, for as long as the client runs.

    `make_listener` makes a connection not yet opened. `notify(channel, payload)` sends a NOTIFY from a *second*
    connection. With `poll_only` nothing is opened and `is_delivering` stays False.

    `is_busy` (settable) says whether jobs run; it decides how far the back-off may grow. `on_proven` (settable) is
    awaited with the listener, once per connection, when the connection has been shown to be ours: the place for state
    that must live on it. `on_gone` (settable) is called with the same listener if that connection breaks, and not when
    the notifier is stopped.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        *,
        make_listener: Callable[[], Listener],
        schema: str,
        notify: Callable[[str, str], Awaitable[None]],
        poll_only: bool = False,
        timing: NotifierTiming | None = None,
    ) -> None:
        super().__init__(ctx)
        self.poll_only = poll_only
        self.is_connected = False
        self.is_delivering = False
        self.connections_made = 0
        self.is_busy: Callable[[], bool] = lambda: False
        self.on_proven: Callable[[Listener], Awaitable[None]] | None = None
        self.on_gone: Callable[[Listener], None] | None = None
        self.connected: TestSignal[None] = TestSignal()
        self.disconnected: TestSignal[None] = TestSignal()
        self.delivering_changed: TestSignal[bool] = TestSignal()
        self.probe_missed: TestSignal[int] = TestSignal()
        self.probe_unsent: TestSignal[None] = TestSignal()
        self._make_listener = make_listener
        self._topics = {channel(schema, topic): topic for topic in Topic}
        self._notify = notify
        self._timing = timing or NotifierTiming()
        # Drawn from the system, not from `ctx.rng`: two clients with one seed must not hear each other's probes.
        self._probe_channel = f"riverq_probe_{secrets.token_hex(8)}"
        self._probe_numbers = itertools.count(1)
        self._fan_out = FanOut(ctx, self.name)
        self._poll_only_declared = False
        self._failures_told = 0

    def subscribe(self, topic: Topic, on_payload: OnPayload, *, on_gap: OnGap | None = None) -> Callable[[], None]:
        """Have `on_payload` called with every payload of `topic`, in the event loop; it must not block.

        `on_gap` is called when the topic begins to be listened to, and again whenever notifications may have been
        missed: re-read what you would have been told. A topic that others listen to already is heard from now on, so
        read once after subscribing. Returns the function that ends the subscription; calling it twice does nothing.
        """
        return self._fan_out.subscribe(topic, on_payload, on_gap)

    async def run(self) -> None:
        """Connect, serve, and come back after each failure, until cancelled."""
        if self.poll_only:
            await asyncio.get_running_loop().create_future()
        backoff = Backoff(self.ctx, first=self._timing.first_backoff.total_seconds(), cap=0)
        while True:
            lasted = await self._one_connection()
            if lasted:
                backoff.reset()
            await self._pause(backoff)

    # -- one connection, from opening to its end

    async def _one_connection(self) -> bool:
        """Returns after the connection broke: whether it had delivered or lasted."""
        now = self._monotonic()
        session = _Session(self._make_listener(), now, now + self._timing.ping_interval.total_seconds(), now)
        try:
            await self._connect(session)
            await self._limited("LISTEN", session.listener.listen(self._probe_channel))
            await self._listen_as_subscribed(session)
            self._tell_connected()
            while True:
                await self._serve_once(session)
        except RiverqError as error:
            self._tell_broken(error)
            self._tell_gone(session)
        except Exception:
            self.ctx.log.exception("%s: Listening failed in a way nobody foresaw", self.name)
            self._tell_gone(session)
        finally:
            was_connected, self.is_connected = self.is_connected, False
            self._set_delivering(False)
            await self._end(session)
            if was_connected:
                self.disconnected.signal(None)
        return session.proven or self._monotonic() - session.connected_at >= self._timing.probe_interval.total_seconds()

    async def _connect(self, session: _Session) -> None:
        """Not through `within`: a connect is never cancelled, it is closed, which frees whatever it got so far."""
        session.connecting = asyncio.create_task(session.listener.connect(), name="riverq.Notifier.connect")
        limit = self._timing.operation_timeout.total_seconds()
        if not (await asyncio.wait({session.connecting}, timeout=limit))[0]:
            raise UnavailableError(f"no connection to listen on within {limit:g} s")
        session.connecting.result()

    async def _serve_once(self, session: _Session) -> None:
        await self._listen_as_subscribed(session)
        if not session.probe_is_out and self._monotonic() >= session.ping_due:
            await session.listener.ping(self._timing.operation_timeout.total_seconds())
            session.ping_due = self._monotonic() + self._timing.ping_interval.total_seconds()
        await self._hear(session)
        self._probe(session)  # after hearing: an answer that waited out a stall of the loop is no miss

    async def _listen_as_subscribed(self, session: _Session) -> None:
        """Make LISTEN agree with the subscriptions, which may change while we do."""
        while True:
            self._fan_out.changed.clear()
            wanted = self._fan_out.wanted()
            if wanted == session.listened:
                return
            if session.probe_is_out:
                session.disturbed = session.number
            for name, topic in self._topics.items():
                if topic in session.listened - wanted:
                    session.listened.discard(topic)
                    await self._limited("UNLISTEN", session.listener.unlisten(name))
                elif topic in wanted - session.listened:
                    await self._limited("LISTEN", session.listener.listen(name))
                    session.listened.add(topic)
                    self._fan_out.tell_gap(topic)

    async def _hear(self, session: _Session) -> None:
        """Wait for a notification, a changed subscription, a probe that was sent, or the next thing due."""
        left = max(0.0, session.next_due() - self._monotonic())
        if session.sending is not None:
            left = self._timing.operation_timeout.total_seconds()
        if session.waiting is None:
            session.waiting = asyncio.create_task(session.listener.wait(left), name="riverq.Notifier.wait")
        changed = asyncio.create_task(self._fan_out.changed.wait())
        wakers: set[asyncio.Task[list[Notification]] | asyncio.Task[bool]] = {session.waiting, changed}
        if session.sending is not None:
            wakers.add(session.sending)
        try:
            # The listener's own wait ends first where it can, so that a ping seldom meets a wait that is under way.
            await asyncio.wait(wakers, timeout=left + WAIT_SLACK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if session.waiting.done():
            heard, session.waiting = session.waiting.result(), None
            await self._dispatch(session, heard)

    async def _dispatch(self, session: _Session, heard: Sequence[Notification]) -> None:
        if not heard:
            return
        session.ping_due = self._monotonic() + self._timing.ping_interval.total_seconds()
        await self._fan_out.deliver(
            (self._topics[one.channel], one.payload) for one in heard if one.channel in self._topics
        )
        answers = {int(one.payload) for one in heard if one.channel == self._probe_channel and one.payload.isdigit()}
        if any(answer > session.disturbed for answer in answers):
            await self._proven(session)  # last, since it may wait for the connection
        elif session.number in answers:
            session.answered, session.answer_due = True, None
            session.probe_due = self._monotonic()

    async def _end(self, session: _Session) -> None:
        for hanging in (session.waiting, session.sending):
            if hanging is not None:
                hanging.cancel()
        await session.listener.close()  # ends a connect that is under way
        tasks = [task for task in (session.connecting, session.waiting, session.sending) if task is not None]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=CLOSE_LIMIT)
            for task in left:
                task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # read, else the loop complains; the connection is gone anyway

    # -- the probe

    def _probe(self, session: _Session) -> None:
        """Take the probe one step further, without waiting for anything."""
        now = self._monotonic()
        if session.sending is not None:
            if session.sending.done():
                self._sent(session, was_sent=session.sending.result())
        elif session.answer_due is not None:
            if now >= session.answer_due:
                self._missed(session)
        elif now >= session.probe_due:
            session.answered, session.number = False, next(self._probe_numbers)
            session.sending = asyncio.create_task(self._send_probe(session.number), name="riverq.Notifier.probe")

    async def _send_probe(self, number: int) -> bool:
        try:
            await self._limited("the NOTIFY of the probe", self._notify(self._probe_channel, str(number)))
        except RiverqError as error:
            self.ctx.log.debug("%s: Could not send the probe: %s", self.name, error)
            return False
        return True

    def _sent(self, session: _Session, *, was_sent: bool) -> None:
        session.sending = None
        if session.answered:
            return
        if was_sent:
            session.answer_due = self._monotonic() + self._timing.answer_timeout.total_seconds()
        else:
            session.probe_due = self._monotonic() + self._timing.ping_interval.total_seconds()
            self.probe_unsent.signal(None)

    async def _proven(self, session: _Session) -> None:
        session.answered, session.answer_due, session.misses = True, None, 0
        session.probe_due = self._monotonic() + self._timing.probe_interval.total_seconds()
        first, session.proven = not session.proven, True
        if first and self.on_proven is not None:
            await self.on_proven(session.listener)
        self._failures_told = 0
        if self._poll_only_declared:
            self._poll_only_declared = False
            self.ctx.log.info("%s: Notifications are delivered again; polling is only the fallback now", self.name)
            for topic in session.listened:
                self._fan_out.tell_gap(topic)
        self._set_delivering(True)

    def _missed(self, session: _Session) -> None:
        session.misses += 1
        session.answer_due = None
        self.probe_missed.signal(session.misses)
        if session.misses < MISSES_BEFORE_POLL_ONLY:
            session.probe_due = self._monotonic()
            return
        session.probe_due = self._monotonic() + self._timing.probe_interval.total_seconds()
        if session.proven:
            raise UnavailableError("notifications stopped arriving on a connection that had delivered them")
        self._set_delivering(False)
        if not self._poll_only_declared:
            self._poll_only_declared = True
            self.ctx.log.warning(
                "%s: LISTEN succeeded but notifications do not arrive (PgBouncer in transaction mode?); jobs, "
                "cancellations and pauses are found by polling until they do. For low latency point listener_engine= "
                "at Postgres itself or at a pool in session mode, or set poll_only=True to stop asking",
                self.name,
            )

    # -- telling

    def _tell_connected(self) -> None:
        self.connections_made += 1
        self.is_connected = True
        if self._failures_told:
            self.ctx.log.info("%s: Listening again", self.name)
            self._failures_told = 0
        self.connected.signal(None)

    def _tell_broken(self, error: RiverqError) -> None:
        """Once per outage at warning level; the attempts that follow are for whoever debugs."""
        tell = self.ctx.log.debug if self._failures_told else self.ctx.log.warning
        self._failures_told += 1
        tell("%s: Not listening, polling until reconnected: %s", self.name, error)

    def _tell_gone(self, session: _Session) -> None:
        if session.proven and self.on_gone is not None:
            try:
                self.on_gone(session.listener)
            except Exception:
                self.ctx.log.exception("%s: Could not tell that the connection is gone", self.name)

    def _set_delivering(self, delivering: bool) -> None:  # noqa: FBT001  # private, one obvious argument
        if delivering != self.is_delivering:
            self.is_delivering = delivering
            self.delivering_changed.signal(delivering)

    # -- waiting

    async def _pause(self, backoff: Backoff) -> None:
        """The back-off, in slices: jobs that begin meanwhile bring the shorter cap into force."""
        busy_cap = self._timing.busy_cap.total_seconds()
        backoff.cap = busy_cap if self.is_busy() else self._timing.idle_cap.total_seconds()
        left = backoff.next()
        while left > 0:
            step = min(left, busy_cap)
            await self.ctx.clock.sleep(step)
            left = 0.0 if self.is_busy() else left - step

    async def _limited(self, what: str, operation: Awaitable[None]) -> None:
        async def call() -> None:
            await operation

        await within(self._timing.operation_timeout.total_seconds(), what, call())

    def _monotonic(self) -> float:
        return self.ctx.clock.monotonic()
