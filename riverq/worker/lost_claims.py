"""Claims whose answer never came: their rows run under our name, and nobody works them.

Before: `worker.producer`, whose claim failed or took too long. It may have been committed all the same: the server was
through, and the connection died under the answer. No heartbeat tells of such rows, since their client lives, and the
horizon for stuck jobs is an hour. So the producer looks for them, and works what it finds as if the claim had returned
it.

**Which rows they are.** A producer claims one claim after the other, and a claim's `attempted_at` is the database's
time. So a lost claim's rows are newer than every row that was returned before it, and older than every row that is
returned after it; nothing that ever arrived here lies in that gap. Where nothing had been returned yet, the queue's row
was touched at the start, by the same clock. Runs of an earlier producer or process under the same name are older than
the gap. It is narrowed to the time from sending the claim to giving it up, `MARGIN` more on either side: where nothing
is claimed for hours, the gap would be hours, and who knows who else (Go River's client, by mistake) has this one's id.

**When.** Soon after the failure, and again and again for `WATCH`, ever less often: a server may be away for a while, or
slow to commit what nobody waits for any more.

**What is left to the rescuer.** Rows with a cancel mark, since nobody knows the mark that the claim saw. Everything,
where another living client has this one's id, and where the client is not registered, so that none could be seen. What
a database claims whose clock was set meanwhile. All of that is missed, and nothing is worked twice.

**The look is lost too.** It changes nothing; the next one finds the same rows. A row is looked up, then it is
registered: in between only a rescue of a job without a living client can take it, and this client lives; the fence
holds regardless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from riverq.database import Database
from riverq.query.job_fetch import Claimant, ClaimedRow, ClaimGap, job_get_lost
from riverq.query.statement import us_from
from riverq.service.context import ServiceContext
from riverq.service.timeout import within

FIRST_WAIT = 0.25
LONGEST_WAIT = 5.0
"""Seconds from a failed claim, or a look, to the next look; doubled from the first to the longest."""

WATCH = 60.0
"""Seconds after a failed claim in which it may still be committed."""

LOOK_LIMIT = 10.0
"""Seconds that one look may take."""


MARGIN = 5.0
"""Seconds by which a claim may have been made before it was sent or after it was given up, by another clock."""


@dataclass(slots=True)
class _Gap:
    """Between the newest row that was returned before a lost claim, and the first one after it.

    And from `sent_at` to `failed_at`, by the context's clock.
    """

    after_us: int
    sent_at: float
    failed_at: float
    before_us: int | None = None
    found: set[int] = field(default_factory=set)


class LostClaims:
    """Those of one queue. The producer says how each claim ended, in the order of the claims.

    `incarnation()` (settable) is what this client is registered as, None where it is not; others with this client's id
    are thought to live for `grace` (settable) after they were last seen.
    """

    def __init__(self, ctx: ServiceContext, db: Database, queue: str) -> None:
        self._ctx = ctx
        self._db = db
        self._queue = queue
        self.incarnation: Callable[[], str | None] = lambda: None
        self.grace = timedelta(seconds=30)
        self._newest_us: int | None = None
        self._gaps: list[_Gap] = []
        self._sent_at = 0.0
        self._due = 0.0
        self._wait = FIRST_WAIT

    def begin(self, now: datetime | None) -> None:
        """The producer starts at `now`, by the database; None where that is not known."""
        self._newest_us, self._gaps = None if now is None else us_from(now), []

    @property
    def may_be(self) -> bool:
        """Whether rows may be running that nobody here knows of."""
        return bool(self._gaps)

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return bool(self._gaps) and self._ctx.clock.monotonic() >= self._due

    @property
    def next_look(self) -> timedelta | None:
        """In how long it will be; None where there is nothing to look for."""
        return timedelta(seconds=max(0.0, self._due - self._ctx.clock.monotonic())) if self._gaps else None

    def sent(self) -> None:
        """A claim is about to be sent."""
        self._sent_at = self._ctx.clock.monotonic()

    def answered(self, rows: Sequence[ClaimedRow]) -> None:
        """It returned these."""
        if rows:
            claimed_us = rows[0].attempted_at_us
            if self._gaps and self._gaps[-1].before_us is None:
                self._gaps[-1].before_us = claimed_us
            self._newest_us = claimed_us if self._newest_us is None else max(self._newest_us, claimed_us)

    def unanswered(self) -> None:
        """It failed. It may have been committed, now or a little later."""
        if self._newest_us is None or self.incarnation() is None:
            return
        now = self._ctx.clock.monotonic()
        if self._gaps and self._gaps[-1].before_us is None:
            self._gaps[-1].failed_at = now
        else:
            self._gaps.append(_Gap(self._newest_us, sent_at=self._sent_at, failed_at=now))
            self._wait = FIRST_WAIT
        self._look_later()

    async def look(self, limit: int) -> list[ClaimedRow]:
        """At most `limit` rows of lost claims, each of them once. Raises what the database raises."""
        found: list[ClaimedRow] = []
        self._look_later()
        for gap in list(self._gaps):
            rows = await self._look_into(gap, limit)
            fresh = [row for row in rows if row.id not in gap.found][: limit - len(found)]
            gap.found.update(row.id for row in fresh)
            found += fresh
            if self._ctx.clock.monotonic() >= gap.failed_at + WATCH and len(found) < limit:
                self._gaps.remove(gap)
        return found

    def _look_later(self) -> None:
        self._due = self._ctx.clock.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    async def _look_into(self, gap: _Gap, limit: int) -> list[ClaimedRow]:
        incarnation = self.incarnation()
        if incarnation is None:
            return []
        now = self._ctx.clock.monotonic()
        from_ago = timedelta(seconds=now - gap.sent_at + MARGIN)
        to_ago = timedelta(seconds=now - gap.failed_at - MARGIN)
        looking = self._db.run_single(
            job_get_lost,
            Claimant(self._ctx.client_id, incarnation, self.grace),
            ClaimGap(gap.after_us, gap.before_us, from_ago, to_ago),
            queue=self._queue,
            limit=limit + len(gap.found),
        )
        return await within(LOOK_LIMIT, "looking for lost claims", looking)
