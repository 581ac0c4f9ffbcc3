"""Where the completer puts the few rows that would hold up all others, and writes them one at a time.

Two kinds come here. Rows that are ours and running but locked: a duplicate unique insert in any open transaction of an
application locks the row of the job it duplicates, for as long as that transaction lasts. And outcomes that the
database refuses for what they hold; those are replaced, in turn, by the alternatives of `outcome.unstorable`.

The lane has a database view of one connection of its own, so neither the batches nor the control plane wait for it. A
row is waited for with `lock_timeout`, then again after the first back-off, doubling up to thirty times that. What is
left at the end of the completer's grace stays `running` and is found by the rescuer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from riverq.database import Database
from riverq.errors import DatabaseError, UnavailableError
from riverq.query.job_set_state import job_set_state_if_running
from riverq.service.context import ServiceContext
from riverq.service.testsignal import TestSignal
from riverq.state import SetState
from riverq.worker.outcome import Finished, unstorable
from riverq.worker.settlement import Settlement, is_refusal
from riverq.worker.waiting import wait_first


@dataclass(slots=True)
class _Entry:
    finished: Finished
    due: float
    tries: int = 0
    uncertain: bool = False
    alternatives: list[SetState] | None = field(default=None)


class SlowLane:
    """`run()` is a task of the completer. `add` and `refuse` are called in the loop."""

    def __init__(
        self,
        ctx: ServiceContext,
        db: Database,
        settlement: Settlement,
        *,
        lock_timeout: timedelta,
        first_backoff: timedelta,
    ) -> None:
        self._ctx = ctx
        self._db = db
        self._settlement = settlement
        self._lock_timeout = lock_timeout
        self._first_backoff = first_backoff.total_seconds()
        self._entries: list[_Entry] = []
        self._wake = asyncio.Event()
        self._finishing = False
        self.tried: TestSignal[int] = TestSignal()

    @property
    def job_ids(self) -> list[int]:
        """The jobs whose outcome waits here."""
        return [entry.finished.context.claimed.id for entry in self._entries]

    def add(self, finished: Finished, *, uncertain: bool = False) -> None:
        """Take a run whose row is locked."""
        self._take(_Entry(finished, due=self._ctx.clock.monotonic(), uncertain=uncertain))

    def refuse(self, finished: Finished, error: Exception) -> None:
        """Take a run whose outcome the database refused with `error`."""
        # What failed outside the database may have failed after the statement was done.
        uncertain = not isinstance(error, DatabaseError)
        entry = _Entry(finished, due=self._ctx.clock.monotonic(), uncertain=uncertain)
        if self._next_alternative(entry, error):
            self._take(entry)

    def finish(self) -> None:
        """End `run()` as soon as nothing is left; until then try more often."""
        self._finishing = True
        for entry in self._entries:
            entry.due = self._ctx.clock.monotonic()
        self._wake.set()

    async def run(self) -> None:
        """Write one row after the other, whichever is due first."""
        self._finishing = False
        while self._entries or not self._finishing:
            if not self._entries:
                self._wake.clear()
                await self._wake.wait()
                continue
            entry = min(self._entries, key=lambda each: each.due)
            wait = entry.due - self._ctx.clock.monotonic()
            if wait > 0:
                self._wake.clear()
                await wait_first(self._ctx, self._wake, wait)
                continue
            if await self._try(entry):
                self._entries.remove(entry)
            self._count()
            self.tried.signal(entry.finished.context.claimed.id)

    def _take(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._count()
        self._wake.set()

    def _count(self) -> None:
        self._settlement.stats.slow = len(self._entries)

    async def _try(self, entry: _Entry) -> bool:
        """One try; whether the entry is done with."""
        try:
            return await self._write(entry)
        except UnavailableError as error:
            entry.uncertain = True
            self._put_off(entry, error)
        except Exception as error:  # noqa: BLE001  # sorted into what to repeat and what to replace
            if is_refusal(error):
                return not self._next_alternative(entry, error)
            self._put_off(entry, error)
        return False

    async def _write(self, entry: _Entry) -> bool:
        finished = entry.finished
        row = await self._db.run(
            job_set_state_if_running,
            client_id=self._ctx.client_id,
            state=finished.state,
            lock_timeout=self._lock_timeout,
        )
        if row is not None:
            self._settlement.written(finished, row)
            return True
        ours = await self._settlement.judge(self._db, [finished], uncertain=entry.uncertain)
        return not ours

    def _put_off(self, entry: _Entry, error: Exception) -> None:
        wait = self._first_backoff * (1 if self._finishing else min(30, 2**entry.tries))
        entry.tries = min(entry.tries + 1, 5)
        entry.due = self._ctx.clock.monotonic() + wait * self._ctx.rng.uniform(0.9, 1.1)
        self._ctx.log.debug(
            "job %s: Put off writing its outcome for %.3g s (error=%s)", entry.finished.context.claimed.id, wait, error
        )

    def _next_alternative(self, entry: _Entry, error: Exception) -> bool:
        """Replace the outcome by the next alternative; False where there is none left and the row is given up."""
        job_id = entry.finished.context.claimed.id
        if entry.alternatives is None:
            self._ctx.log.error("job %s: Could not store its outcome, storing that instead (error=%s)", job_id, error)
            entry.alternatives = unstorable(entry.finished.context, error, self._ctx.rng)
        if not entry.alternatives:
            self._settlement.stats.abandoned += 1
            self._ctx.log.error("job %s: Left running, nothing can be stored for it (error=%s)", job_id, error)
            return False
        entry.finished = entry.finished._replace(state=entry.alternatives.pop(0))
        return True
