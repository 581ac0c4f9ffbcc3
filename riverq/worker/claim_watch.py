"""Claims only the kinds that have a worker here, and notices when that is slow.

Before: `worker.producer`, with `fetch_only_known_kinds`. A filtered claim reads past every due job of another kind that
stands in front of the first it may take: no index of River's is by queue, order and kind. That is nothing for a few and
a tenth of a second for half a million, in every claim of every client, so somebody should know.

Slow is a claim that took longer than `SLOW`, by the monotonic clock, from sending the statement to its answer; waiting
for a connection is not counted. `IN_A_ROW` of them are needed, as one may be slow for reasons of its own (a checkpoint,
an event loop that was blocked). It is then said once per `SILENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from riverq.query.job_fetch import ClaimedRow
from riverq.service.context import ServiceContext

if TYPE_CHECKING:
    from sqlalchemy import Connection

SLOW = 0.05
SILENCE = 600.0
"""Seconds."""
IN_A_ROW = 3


class ClaimWatch:
    """The filtered claims of one queue. `kinds()` gives the kinds that have a worker now."""

    def __init__(self, ctx: ServiceContext, queue: str, kinds: Callable[[], Sequence[str]]) -> None:
        self._ctx = ctx
        self._queue = queue
        self._kinds = kinds
        self._slow = 0
        self._said_at: float | None = None

    def around(self, claim: Callable[..., list[ClaimedRow]]) -> Callable[..., list[ClaimedRow]]:
        """`claim` for the known kinds only, and timed. Made anew for each claim, and called in any thread."""
        return partial(self._claim, claim)

    def _claim(
        self, claim: Callable[..., list[ClaimedRow]], conn: Connection, schema: str, **given: Any
    ) -> list[ClaimedRow]:
        began = self._ctx.clock.monotonic()
        rows = claim(conn, schema, kinds=self._kinds(), **given)
        self._took(self._ctx.clock.monotonic() - began)
        return rows

    def _took(self, seconds: float) -> None:
        self._slow = self._slow + 1 if seconds > SLOW else 0
        now = self._ctx.clock.monotonic()
        if self._slow < IN_A_ROW or (self._said_at is not None and now - self._said_at < SILENCE):
            return
        self._said_at = now
        self._ctx.log.warning(
            "Producer: Claimed slowly, reading past jobs of kinds that have no worker here; give such kinds a queue of "
            "their own, or see that their jobs are worked (queue=%s, duration=%s)",
            self._queue,
            timedelta(seconds=seconds),
        )
