"""Claims whose answer never came: their rows run under our name, and nobody works them.

Before: `worker.producer`, whose claim failed or took too long. It may have been committed all the same: the server was
through, and the connection died under the answer. No heartbeat tells of such rows, since their client lives, and the
horizon for stuck jobs is an hour. So the producer claims them again.

**Which rows they are.** A producer makes one claim after the other, and `attempted_at` is the database's time. So a
lost claim's rows are newer than every row that was returned before it, and older than every row that is returned after
it; nothing that ever arrived here lies in that gap. Where nothing had been returned yet, the queue's row was touched at
the start, by the same clock. Runs of an earlier producer or process under the same name are older than the gap. It is
narrowed to the time from sending the claim to giving it up, `MARGIN` more on either side: where nothing is claimed for
hours, the gap would be hours, and who knows who else has this one's id by mistake.

**Claimed again**, in two steps. They are read, and then claimed by what was read, each under the fence of its lost run:
a statement of which the answer never came may reach the database minutes later, when newer rows lie where it looked,
and must not take those. They get a new `attempted_at`, and keep their attempt: the horizon and every other age counts
from when they begin. The second claim may be lost like the first; it is then a lost claim itself.

**When.** Soon after the failure, and again and again for `WATCH`, ever less often: a server may be away for a while, or
slow to commit what nobody waits for any more.

**What is left to the rescuer.** Rows with a cancel mark, since nobody knows the mark that the claim saw. Everything,
where another living client of riverq's has this one's id, and where the client is not registered, so that none could be
seen. A claim that reached the database only after the next one, or `MARGIN` after it was given up: it lay in a buffer
meanwhile. What a database claims whose clock was set back, and what was claimed while this machine was suspended. All
but the `MOST_GAPS` newest gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from riverq.database import Database
from riverq.errors import SchemaError
from riverq.query.job_fetch import Claimant, ClaimedRow, ClaimGap, job_claim_again, job_lost
from riverq.query.statement import to_us
from riverq.service.context import ServiceContext
from riverq.service.timeout import within
from riverq.state import Run

FIRST_WAIT = 0.25
LONGEST_WAIT = 5.0
"""Seconds from a failed claim, or a look, to the next look; doubled from the first to the longest."""

WATCH = 60.0
"""Seconds after a failed claim in which it may still be committed."""

LOOK_LIMIT = 10.0
"""Seconds that one look may take."""

MARGIN = 5.0
"""Seconds by which a claim may have been made before it was sent or after it was given up, by another clock."""

MOST_GAPS = 10
"""Each costs a statement now and then. Only a connection that fails at every other claim brings so many."""


@dataclass(slots=True)
class _Gap:
    """Between the newest row that was returned before a lost claim, and the first one after it.

    And from `sent_at` to `failed_at`, by the context's clock. It is looked into at `due`, then again after `wait`.
    """

    after_us: int
    sent_at: float
    failed_at: float
    due: float
    wait: float = FIRST_WAIT
    before_us: int | None = None


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

    def begin(self, now: datetime | None) -> None:
        """The producer starts at `now`, by the database; None where that is not known."""
        self._newest_us, self._gaps = None if now is None else to_us(now), []

    @property
    def may_be(self) -> bool:
        """Whether rows may be running that nobody here knows of."""
        return bool(self._gaps)

    @property
    def next_look(self) -> timedelta | None:
        """In how long it will be; None where there is nothing to look for."""
        if not self._gaps:
            return None
        due = min(gap.due for gap in self._gaps)
        return timedelta(seconds=max(0.0, due - self._ctx.clock.monotonic()))

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self.next_look == timedelta(0)

    def sent(self) -> None:
        """A claim is about to be sent."""
        self._sent_at = self._ctx.clock.monotonic()

    def answered(self, rows: Sequence[ClaimedRow]) -> None:
        """It returned these."""
        if rows:
            claimed_us = rows[0].attempted_at_us
            for gap in self._gaps:
                gap.before_us = claimed_us if gap.before_us is None else min(gap.before_us, claimed_us)
            self._newest_us = claimed_us if self._newest_us is None else max(self._newest_us, claimed_us)

    def unanswered(self) -> None:
        """It failed. It may have been committed, now or a little later."""
        if self._newest_us is None or self.incarnation() is None:
            return
        now = self._ctx.clock.monotonic()
        if self._gaps and self._gaps[-1].before_us is None:
            self._gaps[-1].failed_at = now
            return
        if len(self._gaps) == MOST_GAPS:
            self._ctx.log.warning(
                "Producer: Many claims were not answered; jobs of the oldest may stay running until rescued (queue=%s)",
                self._queue,
            )
            del self._gaps[0]
        self._gaps.append(_Gap(self._newest_us, sent_at=self._sent_at, failed_at=now, due=now + FIRST_WAIT))

    async def claim_again(self, limit: int) -> list[ClaimedRow]:
        """Claim at most `limit` rows of the lost claim that is due. Raises what the database raises."""
        gap = min(self._gaps, key=lambda gap: gap.due)
        gap.due = self._ctx.clock.monotonic() + gap.wait
        gap.wait = min(2 * gap.wait, LONGEST_WAIT)
        try:
            runs = await self._look_into(gap, limit)
        except SchemaError:
            self._gaps.clear()  # riverq's own tables are gone, and with them all that is known of other clients
            raise
        if self._ctx.clock.monotonic() >= gap.failed_at + WATCH and len(runs) < limit:
            self._gaps.remove(gap)
        return await self._claim(runs) if runs else []

    async def _look_into(self, gap: _Gap, limit: int) -> list[Run]:
        incarnation = self.incarnation()
        if incarnation is None:
            return []
        now = self._ctx.clock.monotonic()
        from_ago = timedelta(seconds=now - gap.sent_at + MARGIN)
        to_ago = timedelta(seconds=now - gap.failed_at - MARGIN)
        looking = self._db.run_single(
            job_lost,
            Claimant(self._ctx.client_id, incarnation, self.grace),
            ClaimGap(gap.after_us, gap.before_us, from_ago, to_ago),
            queue=self._queue,
            limit=limit,
        )
        return await within(LOOK_LIMIT, "looking for lost claims", looking)

    async def _claim(self, runs: list[Run]) -> list[ClaimedRow]:
        self.sent()
        claiming = self._db.run_single(job_claim_again, client_id=self._ctx.client_id, runs=runs)
        try:
            rows = await within(LOOK_LIMIT, "claiming lost jobs again", claiming)
        except BaseException:
            self.unanswered()
            raise
        if rows:
            self._ctx.log.warning(
                "Producer: Claimed jobs again of a claim whose answer was lost (queue=%s, num_jobs=%d)",
                self._queue,
                len(rows),
            )
        self.answered(rows)
        return rows
