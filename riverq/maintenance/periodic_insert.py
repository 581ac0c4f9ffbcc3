"""Inserting the runs of periodic jobs: the client's own insert path around one transaction, and how that can end.

The middleware is the client's, around the whole batch and outside the transaction, as around any other insert. That of
a sync client may block, so it runs in a thread, and its `call_next` comes back to the loop to write.

In the transaction the rows of durable jobs are moved on first. One that another leader has moved already fails the
whole transaction (`taken`): its run is inserted, or about to be, by somebody else.

When the connection dies here: before COMMIT nothing was written, and the same runs are inserted again. While COMMIT is
under way nobody can tell (`is_doubtful`). The server itself ends a transaction that takes longer than `SERVER_LIMIT` or
whose client falls silent, well before `LIMIT` passes, so that a later look shows what has become of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from riverq.database import Database
from riverq.errors import UsageError
from riverq.hook import chain_insert_async, chain_insert_sync
from riverq.insert import NotifyLimiter, write
from riverq.insert_opts import InsertItem, InsertParams
from riverq.job import InsertResult
from riverq.query.periodic_job import Advance, limit_transaction, periodic_job_advance
from riverq.service import OperationTimeoutError, within
from riverq.threads import DaemonThreads

if TYPE_CHECKING:
    from sqlalchemy import Connection

LIMIT = timedelta(seconds=30)
"""How long a batch may take, middleware included."""
SERVER_LIMIT, LOCK_LIMIT = timedelta(seconds=20), timedelta(seconds=2)

WriteParams = Callable[[Sequence[InsertParams]], Coroutine[Any, Any, list[InsertResult]]]


@dataclass(frozen=True, kw_only=True)
class InsertPath:
    """How the client inserts: `prepare(item, now)` checks and resolves an `InsertItem`, in any thread.

    `middleware` may block where `may_block`: that of a sync client.
    """

    prepare: Callable[[InsertItem, datetime], InsertParams]
    limiter: NotifyLimiter
    middleware: Sequence[object] = ()
    may_block: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a periodic job. `params`: None to insert nothing. `step`: what becomes of a durable job's row."""

    params: InsertParams | None
    step: Advance | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a batch ended. Without `taken` (ids of durable jobs) it is inserted, or was not because of `error`.

    `is_inserted` with an `error`: the middleware failed after the commit. `is_doubtful`: it may be inserted all the
    same.
    """

    is_inserted: bool = False
    taken: frozenset[str] = frozenset()
    error: Exception | None = None
    is_doubtful: bool = False


class RunsTakenError(Exception):
    """Other leaders have moved these durable jobs on. Passes through the application's middleware."""

    def __init__(self, ids: frozenset[str]) -> None:
        super().__init__(f"another leader inserts these runs: {', '.join(sorted(ids))}")


@dataclass
class _Attempt:
    """How far a batch has come."""

    steps: list[Advance] = field(default_factory=list)
    taken: frozenset[str] = frozenset()
    is_written: bool = False
    is_committing: bool = False
    is_given_up: bool = False

    def outcome(self, error: Exception | None = None) -> Outcome:
        """What an error means that came out of the middleware, which may have made another of it."""
        if error is None or self.is_written:
            return Outcome(is_inserted=True, error=error)
        if self.taken:
            return Outcome(taken=self.taken)
        return Outcome(error=error, is_doubtful=self.is_committing or isinstance(error, OperationTimeoutError))


class PeriodicInserter:
    """Inserts batches of runs, one at a time."""

    def __init__(self, db: Database, path: InsertPath, *, limit: timedelta = LIMIT) -> None:
        self._db = db
        self._path = path
        self._limit = limit.total_seconds()

    async def insert(self, runs: Sequence[Run], threads: DaemonThreads) -> Outcome:
        """All of `runs` in one transaction, or none. Middleware that blocks runs in `threads`."""
        attempt = _Attempt([run.step for run in runs if run.step is not None])
        params = [run.params for run in runs if run.params is not None]
        try:
            await within(self._limit, "inserting periodic jobs", self._insert(params, attempt, threads))
        except Exception as error:  # noqa: BLE001  # the application's middleware may raise anything
            return attempt.outcome(error)
        finally:
            attempt.is_given_up = True
        return attempt.outcome()

    async def _insert(self, params: list[InsertParams], attempt: _Attempt, threads: DaemonThreads) -> None:
        async def write_params(todo: Sequence[InsertParams]) -> list[InsertResult]:
            if attempt.is_given_up:
                raise UsageError("the insert was given up: it took too long, or this client no longer leads")
            results = await self._db.run(self._write, todo, attempt)
            attempt.is_written = True
            return results

        if params:
            await self._around(params, write_params, threads)
        if attempt.steps and not attempt.is_written:  # nothing to insert, or the middleware chose not to
            await write_params([])

    def _write(
        self, conn: Connection, schema: str, params: Sequence[InsertParams], attempt: _Attempt
    ) -> list[InsertResult]:
        attempt.is_committing, attempt.taken = False, frozenset()
        limit_transaction(conn, schema, limit=SERVER_LIMIT, lock_limit=LOCK_LIMIT)
        steps = [] if attempt.is_written else attempt.steps  # middleware may write its batch in parts
        attempt.taken = frozenset(periodic_job_advance(conn, schema, steps)) if steps else frozenset()
        if attempt.taken:
            raise RunsTakenError(attempt.taken)
        results = write(conn, schema, params, self._path.limiter) if params else []
        attempt.is_committing = True
        return results

    async def _around(
        self, params: list[InsertParams], write_params: WriteParams, threads: DaemonThreads
    ) -> list[InsertResult]:
        if not self._path.middleware:
            return await write_params(params)
        if not self._path.may_block:
            return await chain_insert_async(self._path.middleware, write_params)(params)
        return await self._in_thread(params, write_params, threads)

    async def _in_thread(
        self, params: list[InsertParams], write_params: WriteParams, threads: DaemonThreads
    ) -> list[InsertResult]:
        loop = asyncio.get_running_loop()
        writing: list[Future[list[InsertResult]]] = []

        def write_from_thread(todo: Sequence[InsertParams]) -> list[InsertResult]:
            coroutine = write_params(todo)
            try:
                writing.append(asyncio.run_coroutine_threadsafe(coroutine, loop))
            except RuntimeError:  # the loop is closed: the client was stopped while the middleware was at work
                coroutine.close()
                raise
            return writing[-1].result()

        chain = chain_insert_sync(self._path.middleware, write_from_thread)
        try:
            return await asyncio.wrap_future(threads.submit(chain, params))
        finally:
            for future in writing:
                future.cancel()
