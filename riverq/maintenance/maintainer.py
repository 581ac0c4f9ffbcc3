"""Starts the leader's services when leadership is gained and stops them when it is lost.

It is given to the elector as its two callbacks. The elector cancels and awaits a `gained` that still runs before it
calls `lost`, and calls the next `gained` only after that, so the two never overlap and a late start cannot undo a newer
term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from riverq.elector import Term
from riverq.service import Backoff, Service, ServiceContext, TestSignal, start_all, stop_all

START_TRIES = 3


class Maintainer:
    """The services in the order in which they start; they stop in reverse.

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
                await start_all(self.services)
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
        """Stop everything, last started first. Harmless when nothing runs."""
        await stop_all(reversed(self.services))
        self.stopped.signal(None)
