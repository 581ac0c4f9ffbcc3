"""Holds and renews the leader's lease, and says `gained` and `lost` in order.

One row of `river_leader` says who leads until when; the database's clock decides. A term is (leader_id, elected_at) as
the database returned it. Renewing and resigning name the whole term, so an elector that slept through its successor's
election can neither prolong nor end it, even where two clients share an id.

    follower --the row was free or expired--> leader
    leader --every 5 s: expires_at moved--> leader
    leader --the renewal matched no row--> follower                (lost: it is somebody else's, or nobody's, now)
    leader --renewals failed until the trust window closed--> follower, after trying to resign
    leader --asked to resign, or its services would not start--> follower, after resigning; sits out one interval
    elected so late that nothing is left to trust --> follower, after resigning, without ever having led
    any --stop()--> stopped, after resigning

The one formula: a term is trusted for TTL - margin, on the monotonic clock, from the moment the successful attempt
*began*. The database counted the TTL from a later moment, so trust ends before the row expires, whatever the network
and both wall clocks do. `is_leader` looks at the clock too: a process that was stalled or suspended (SIGSTOP; the
monotonic clock runs on) does not lie afterwards. Its services may wake before the elector does, so each of their
statements asks `check_leading` first, at the last moment, when the connection is in hand.

`on_gained(term)` runs beside the renewals, since starting services may take longer than a lease. When the term ends it
is cancelled if it still runs, and awaited; then `on_lost()` is awaited; only then is the row given back and the next
bid made. So a late start cannot undo a newer term, and a term is over here before it can begin elsewhere. That last
part is a courtesy and no guarantee: a process that was suspended finds out late. Two leaders for a moment are harmless
because everything that leaders do is safe to run twice.

Followers bid every 5 to 6 s, and within 50 ms of hearing that somebody resigned. The payload names the resigner's id
only, and two clients may share an id, so a client hears every resignation that is not of its own term: there is one
echo of that at most, and it matters only while the client sits out, for then it would end the sitting out. The first
resignation under its own id in that time is taken for the echo, anything after it is a twin's. If the echo was lost,
a twin's is taken for it, which costs what the sitting out has left, one interval at most; if it comes late, one bid is
made in vain. Nothing is remembered beyond the sitting out. Without a notifier, or with one that does not deliver, the
rest works by polling.

When things fail exactly here:
  * while bidding: the row may be ours without our knowing its term. Nobody leads until it expires; we bid on.
  * between the answer to a bid and its arrival: a request to resign that comes then finds no leader; ask again.
  * while renewing: 1, 2, 4 s of back-off as long as trust lasts, then as above.
  * while resigning: three tries, then the row is left to expire.
  * `stop()` during a statement waits for it (5 s at most), else an election won at that moment would go unresigned.

See docs/internals/leadership.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from riverq.database import Database
from riverq.errors import PoolExhaustedError, RiverqError, UnavailableError
from riverq.notification import Leadership, Topic, parse_leadership
from riverq.notifier import Notifier
from riverq.query.leader import Leader, leader_attempt_elect, leader_attempt_reelect, leader_resign
from riverq.service import Backoff, Service, ServiceContext, TestSignal, Wakeup, within
from riverq.stats import LeaderStats
from riverq.validation import duration, fail


class NotLeadingError(UnavailableError):
    """Something that only a leader does was begun by a client whose trust in its term had run out."""


class Term(NamedTuple):
    """What was won: the client's id and the database's time of the election."""

    leader_id: str
    elected_at: datetime


@dataclass(frozen=True, kw_only=True)
class ElectorTiming:
    """River's constants; tests shorten them. `ttl` must outlast an interval, a slow statement and the margin."""

    interval: timedelta = timedelta(seconds=5)
    follower_jitter: timedelta = timedelta(seconds=1)
    ttl: timedelta = timedelta(seconds=15)
    trust_margin: timedelta = timedelta(seconds=1)
    operation_timeout: timedelta = timedelta(seconds=5)
    wake_jitter: timedelta = timedelta(milliseconds=50)
    first_backoff: timedelta = timedelta(seconds=1)
    backoff_cap: timedelta = timedelta(seconds=4)
    resign_timeouts: tuple[timedelta, ...] = (timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=3))

    def __post_init__(self) -> None:
        for name in ("interval", "operation_timeout", "first_backoff", "backoff_cap"):
            duration(name, getattr(self, name), timedelta(milliseconds=1))
        for name in ("follower_jitter", "trust_margin", "wake_jitter"):
            duration(name, getattr(self, name))
        if self.ttl <= self.interval + self.trust_margin:
            raise fail(
                "ttl", f"to be longer than interval + trust_margin = {self.interval + self.trust_margin}", self.ttl
            )


async def _nothing_gained(term: Term) -> None:
    pass


async def _nothing_lost() -> None:
    pass


class Elector(Service):
    """Competes for leadership while it runs.

    Set `on_gained` and `on_lost` before `start()`. An `on_gained` that raises makes the elector resign: a leader whose
    services do not run is worse than none.
    """

    def __init__(
        self, ctx: ServiceContext, db: Database, notifier: Notifier | None, *, timing: ElectorTiming | None = None
    ) -> None:
        super().__init__(ctx)
        self.on_gained: Callable[[Term], Awaitable[None]] = _nothing_gained
        self.on_lost: Callable[[], Awaitable[None]] = _nothing_lost
        self.term: Term | None = None
        self.last_renewal: datetime | None = None
        self.failures_in_a_row = 0
        self.gained: TestSignal[Term] = TestSignal()
        self.lost: TestSignal[Term] = TestSignal()
        self.resigned: TestSignal[Term] = TestSignal()
        self.renewed: TestSignal[Term] = TestSignal()
        self.not_elected: TestSignal[None] = TestSignal()
        self.failed: TestSignal[str] = TestSignal()
        self._db = db
        self._notifier = notifier
        self._timing = timing or ElectorTiming()
        self._wakeup = Wakeup(ctx)
        self._trusted_until = 0.0
        self._resign_reason: str | None = None
        self._echo_due = False
        self._stopping = False

    @property
    def is_leader(self) -> bool:
        """Whether this client leads and may still trust that it does."""
        return self.term is not None and self.trust_left() > timedelta(0)

    def trust_left(self) -> timedelta:
        """How long the present term may be trusted without another renewal; zero for a follower."""
        if self.term is None:
            return timedelta(0)
        return max(timedelta(0), timedelta(seconds=self._trusted_until - self.ctx.clock.monotonic()))

    def check_leading(self) -> None:
        """Raises NotLeadingError unless `is_leader`. Cheap, and for any thread: for right before a leader's statement.

        It narrows the time in which two leaders write and cannot close it: a process may be suspended between this
        and the statement.
        """
        if not self.is_leader:
            raise NotLeadingError("this client leads no longer (its term was lost, or no renewal succeeded in time)")

    def stats(self) -> LeaderStats:
        """How it fares now."""
        term, left = self.term, self.trust_left()
        leads = term is not None and left > timedelta(0)
        return LeaderStats(
            takes_part=True,
            is_leader=leads,
            elected_at=term.elected_at if term is not None and leads else None,
            last_renewal=self.last_renewal,
            failures_in_a_row=self.failures_in_a_row,
            trust_left=left,
        )

    def resign_soon(self, reason: str) -> None:
        """Give the present term back and let others bid. Does nothing when not leading."""
        if self.term is not None:
            self._resign_reason = reason
            self._wakeup.set()

    def request_stop(self, task: asyncio.Task[None]) -> None:
        """Ends after the statement under way, and after resigning."""
        self._stopping = True
        self._wakeup.set()

    async def prepare(self) -> None:
        """Forgets what an earlier run left behind."""
        self._stopping = False
        self._resign_reason = None
        self._echo_due = False
        self.failures_in_a_row = 0
        self._wakeup.clear()

    async def run(self) -> None:
        """Follow, lead, follow … until stopped."""
        unsubscribe = self._listen()
        try:
            while not self._stopping:
                try:
                    term = await self._follow()
                    if term is not None:
                        await self._lead(term)
                except Exception:
                    # A client whose elector has died looks healthy and leaves the fleet one leader short.
                    self.ctx.log.exception("%s: Failed in a way nobody foresaw", self.name)
                    await self._wakeup.sleep(self._timing.interval.total_seconds())
        finally:
            unsubscribe()

    # -- what is heard

    def _listen(self) -> Callable[[], None]:
        if self._notifier is None:
            return lambda: None
        return self._notifier.subscribe(Topic.LEADERSHIP, self._heard, on_gap=self._heard_gap)

    def _heard(self, payload: str) -> None:
        heard = parse_leadership(payload)
        if heard is None:
            return
        if heard.action == "request_resign":
            self.resign_soon("resignation requested")
        elif heard.action == "resigned" and self.term is None and not self._is_echo(heard):
            self._wakeup.set()

    def _is_echo(self, heard: Leadership) -> bool:
        is_echo = self._echo_due and heard.leader_id == self.ctx.client_id
        if is_echo:
            self._echo_due = False
        return is_echo

    def _heard_gap(self) -> None:
        if self.term is None:
            self._wakeup.set()  # a resignation may have been missed

    # -- following

    async def _follow(self) -> Term | None:
        """Bid until elected; None when asked to stop."""
        backoff = self._backoff()
        while not self._stopping:
            began = self.ctx.clock.monotonic()
            try:
                leader = await self._elect()
            except RiverqError as error:
                wait = backoff.next()
                self._tell_failed("bid for leadership", error)
            else:
                backoff.reset()
                self.failures_in_a_row = 0
                if leader is not None:
                    self._trust(began)
                    return Term(leader.leader_id, leader.elected_at)
                self.not_elected.signal(None)
                wait = self._between_bids()
            if await self._wakeup.sleep(wait) and not self._stopping:
                await self.ctx.clock.sleep(self.ctx.rng.uniform(0, self._timing.wake_jitter.total_seconds()))
        return None

    def _between_bids(self) -> float:
        jitter = self.ctx.rng.uniform(0, self._timing.follower_jitter.total_seconds())
        return self._timing.interval.total_seconds() + jitter

    async def _elect(self) -> Leader | None:
        bid = self._db.run(leader_attempt_elect, leader_id=self.ctx.client_id, ttl=self._timing.ttl)
        return await within(self._timing.operation_timeout.total_seconds(), "the bid for leadership", bid)

    # -- leading

    async def _lead(self, term: Term) -> None:
        self.term = term
        self._resign_reason = None
        if not self.is_leader:
            self.ctx.log.warning("%s: Resigning at once, the answer to the bid came too late to be trusted", self.name)
            self.term = None
            await self._give_back(term)
            return
        self.ctx.log.info("%s: Gained leadership (term %s)", self.name, term.elected_at.isoformat())
        starting = asyncio.create_task(self._call_gained(term), name="riverq.Elector.on_gained")
        self.gained.signal(term)
        still_ours = False
        try:
            still_ours = await self._renew_until_over(term)
        finally:
            await self._call_lost(term, starting)
        if still_ours:
            await self._give_back(term)

    async def _renew_until_over(self, term: Term) -> bool:
        """Renew until the term ends here: True if the row may still be ours and should be given back."""
        backoff = self._backoff()
        wait = self._timing.interval.total_seconds()
        while True:
            await self._wakeup.sleep(min(wait, self.trust_left().total_seconds()))
            if self._stopping or self._resign_reason is not None:
                self.ctx.log.info("%s: Resigning (%s)", self.name, self._resign_reason or "stopping")
                return True
            began, left = self.ctx.clock.monotonic(), self.trust_left()
            if left <= timedelta(0):
                self.ctx.log.warning("%s: Stepping down, no renewal succeeded in time", self.name)
                return True
            try:
                renewed = await self._reelect(term, left)
            except RiverqError as error:
                wait = backoff.next()
                self._tell_failed("renew leadership", error)
                continue
            if renewed is None:
                self.ctx.log.warning("%s: Leadership is lost, the term is no longer in the table", self.name)
                return False
            backoff.reset()
            wait = self._timing.interval.total_seconds()
            self._trust(began)
            self.renewed.signal(term)

    async def _reelect(self, term: Term, left: timedelta) -> Leader | None:
        limit = min(self._timing.operation_timeout, left).total_seconds()
        renewal = self._db.run(
            leader_attempt_reelect, leader_id=term.leader_id, elected_at=term.elected_at, ttl=self._timing.ttl
        )
        return await within(limit, "the renewal of leadership", renewal)

    def _trust(self, began: float) -> None:
        self._trusted_until = began + (self._timing.ttl - self._timing.trust_margin).total_seconds()
        self.last_renewal = self.ctx.clock.now()
        self.failures_in_a_row = 0

    async def _call_gained(self, term: Term) -> None:
        try:
            await self.on_gained(term)
        except Exception:
            self.ctx.log.exception("%s: The leader's services could not be started", self.name)
            self.resign_soon("the leader's services could not be started")

    async def _call_lost(self, term: Term, starting: asyncio.Task[None]) -> None:
        self.term = None
        self._resign_reason = None
        starting.cancel()
        await asyncio.wait([starting])
        try:
            await self.on_lost()
        except Exception:
            self.ctx.log.exception("%s: The leader's services could not be stopped", self.name)
        self.lost.signal(term)

    # -- giving the row back

    async def _give_back(self, term: Term) -> None:
        """Who gives up lets the others bid first; with nobody else about, it leads again after an interval."""
        self._wakeup.clear()  # what was set before was for the leader; what is heard from here on counts
        if await self._resign(term):
            self.resigned.signal(term)
        if not self._stopping:
            await self._wakeup.sleep(self._between_bids())
        self._echo_due = False

    async def _resign(self, term: Term) -> bool:
        backoff = self._backoff()
        may_have_resigned = False
        for number, limit in enumerate(self._timing.resign_timeouts):
            if number:
                await self.ctx.clock.sleep(backoff.next())
            self._echo_due = True  # before the statement: the echo may overtake its answer
            resigning = self._db.run(leader_resign, leader_id=term.leader_id, elected_at=term.elected_at)
            try:
                resigned = await within(limit.total_seconds(), "resigning", resigning)
            except RiverqError as error:
                self._tell_failed("resign", error)
                may_have_resigned = True
                continue
            self._echo_due = resigned or may_have_resigned
            return resigned
        self.ctx.log.warning("%s: Could not resign, the lease is left to expire", self.name)
        return False

    # -- shared

    def _backoff(self) -> Backoff:
        timing = self._timing
        return Backoff(self.ctx, first=timing.first_backoff.total_seconds(), cap=timing.backoff_cap.total_seconds())

    def _tell_failed(self, what: str, error: RiverqError) -> None:
        self.failures_in_a_row += 1
        hint = ""
        if isinstance(error, PoolExhaustedError):
            hint = " (the control pool is drained: give it more connections, or do not share the application's pool)"
        self.ctx.log.warning("%s: Could not %s: %s%s", self.name, what, error, hint)
        self.failed.signal(what)
