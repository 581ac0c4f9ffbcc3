"""Starts the leader's services when leadership is gained and stops them when it is lost.

It is given to the elector as its two callbacks. The elector cancels and awaits a `gained` that still runs before it
calls `lost`, and calls the next `gained` only after that, so the two never overlap and a late start cannot undo a newer
term.

Start, one after the other, what is waited for first:
  1. the scheduler: jobs that fell due while nobody led are late already;
  2. the periodic enqueuer: so are runs, but its jobs need nothing of the scheduler when they are due now;
  3. the rescuer of dead clients' jobs, which holds off by itself until its own heartbeats have proved themselves;
  4. the rescuer by the horizon, which nobody waits for by the minute;
  5. the cleaners of jobs and of queues, whose work grows no worse for waiting, and
  6. the reindexer last: a REINDEX under way must not delay anything above.

Stop, all at once, asked in reverse order. The services do not need each other, and when trust has run out every one of
them must be told before any writes again: one that hangs in a dead connection (2 s at most) must not leave the others
at work for so long. For the same reason a start that fails or is cancelled stops what it started all at once.

A start is tried three times, 1 and 2 s apart. If it still fails the leader resigns, and sits out so that others bid
first: a leader without services is worse than none, since it keeps everybody else from running them. What the services
do is safe to run twice at once; stopping quickly is a courtesy to the next leader, never what correctness rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from riverq.elector import Term
from riverq.service import Backoff, Service, ServiceContext, TestSignal, start_all, stop_together

START_TRIES = 3


class Maintainer:
    """The services in the order in which they start; they are asked to stop in reverse.

    `request_resign(reason)` is called when they cannot be started: another client may be luckier, and a leader without
    services would keep it from trying.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        services: Sequence[Service],
        *,
        request_resign: Callable[[str], None],
        first_backoff: timedelta = timedelta(seconds=1),
    ) -> None:
        self.services = tuple(services)
        self.started: TestSignal[None] = TestSignal()
        self.stopped: TestSignal[None] = TestSignal()
        self.gave_up: TestSignal[None] = TestSignal()
        self._ctx = ctx
        self._request_resign = request_resign
        self._first_backoff = first_backoff.total_seconds()

    async def gained(self, term: Term) -> None:
        """Start everything, three times if need be. A start that fails or is cancelled leaves nothing running."""
        backoff = Backoff(self._ctx, first=self._first_backoff, cap=4 * self._first_backoff)
        for attempt in range(1, START_TRIES + 1):
            try:
                await start_all(self.services, undo=stop_together)
            except Exception:
                self._ctx.log.exception(
                    "Maintainer: Could not start the leader's services (try %d of %d)", attempt, START_TRIES
                )
            else:
                self._ctx.log.debug("Maintainer: Started for the term of %s", term.elected_at)
                self.started.signal(None)
                return
            if attempt < START_TRIES:
                await backoff.sleep()
        self.gave_up.signal(None)
        self._request_resign("the leader's services could not be started")

    async def lost(self) -> None:
        """Stop everything, all at once. Harmless when nothing runs."""
        await stop_together(reversed(self.services))
        self.stopped.signal(None)
