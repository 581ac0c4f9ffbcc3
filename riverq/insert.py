"""Writing prepared jobs on a connection, and telling the workers, bound to the commit.

Comes after `insert_opts.resolve` (pure) and whatever middleware is around it; before it nothing was written. The NOTIFY
goes out in the inserting transaction, so nobody hears of jobs that are rolled back. In a two-phase transaction Postgres
forbids NOTIFY, and none is sent: polling finds the jobs.

The limiter is River's: per client and queue at most one notification in `fetch_cooldown`. It is consumed when the
NOTIFY is issued, and given back when SQLAlchemy reports that the transaction, or any savepoint in it, was rolled back;
too often given back costs one notification, too rarely would cost another transaction's jobs a wait of one poll.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from sqlalchemy import Connection, TwoPhaseTransaction, event

from riverq.clock import Clock
from riverq.driver import Driver
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult, JobState
from riverq.notification import Topic, insert_payload
from riverq.query.job_insert import copy_streams, job_insert_many, job_insert_many_skipping
from riverq.query.notify import notify_many


class NotifyLimiter:
    """At most one notification per queue in `cooldown`; used from any thread."""

    def __init__(self, clock: Clock, cooldown: timedelta) -> None:
        self._clock = clock
        self._cooldown = cooldown.total_seconds()
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()
        self._taken: weakref.WeakKeyDictionary[Connection, set[str]] = weakref.WeakKeyDictionary()

    def take(self, queues: Iterable[str]) -> list[str]:
        """Those of `queues` that may be notified now; they count as notified from here on."""
        now = self._clock.monotonic()
        with self._lock:
            due = [name for name in sorted(set(queues)) if now - self._last.get(name, float("-inf")) > self._cooldown]
            self._last.update(dict.fromkeys(due, now))
        return due

    def release(self, queues: Iterable[str]) -> None:
        """Forget that `queues` were notified."""
        with self._lock:
            for name in queues:
                self._last.pop(name, None)

    def release_on_rollback(self, conn: Connection, queues: Sequence[str]) -> None:
        """Give `queues` back if `conn`'s present transaction, or a savepoint in it, is rolled back."""
        with self._lock:
            known = conn in self._taken
            self._taken.setdefault(conn, set()).update(queues)
        if not known:
            event.listen(conn, "commit", self._committed)
            event.listen(conn, "rollback", self._rolled_back)
            event.listen(conn, "rollback_savepoint", self._rolled_back)

    def _committed(self, conn: Connection) -> None:
        with self._lock:
            self._taken.get(conn, set()).clear()

    def _rolled_back(self, conn: Connection, *_savepoint: object) -> None:
        with self._lock:
            queues = list(self._taken.get(conn, ()))
            self._taken.get(conn, set()).clear()
        self.release(queues)


def write(conn: Connection, schema: str, params: Sequence[InsertParams], limiter: NotifyLimiter) -> list[InsertResult]:
    """Insert `params` on `conn` and notify, in its transaction. Results are in the order of `params`."""
    results = job_insert_many(conn, schema, params)
    _notify(conn, schema, params, limiter)
    return results


def write_fast(
    conn: Connection, schema: str, params: Sequence[InsertParams], limiter: NotifyLimiter, driver: Driver
) -> int:
    """Insert without reading rows back, by COPY where `driver` can; returns the number inserted.

    A batch with any unique job is written with `ON CONFLICT DO NOTHING`, because a conflict in COPY would fail the
    caller's transaction. So is one with a delay, which COPY cannot count from the database's clock, and one on a
    session of another driver.
    """
    can_copy = driver.capabilities.copy and conn.dialect.driver == driver.name
    if can_copy and all(param.unique_key is None and param.scheduled_in is None for param in params):
        count = sum(
            driver.copy_from(conn, stream.table, stream.columns, stream.rows) for stream in copy_streams(schema, params)
        )
    else:
        count = job_insert_many_skipping(conn, schema, params)
    _notify(conn, schema, params, limiter)
    return count


def notify_queues(
    conn: Connection, schema: str, queues: Iterable[str], take: Callable[[Iterable[str]], list[str]]
) -> None:
    """Tell the workers of `queues`, as far as `take` lets."""
    due = take(queues)
    if due:
        notify_many(conn, schema, Topic.INSERT, [insert_payload(name) for name in due])


def _notify(conn: Connection, schema: str, params: Sequence[InsertParams], limiter: NotifyLimiter) -> None:
    if isinstance(conn.get_transaction(), TwoPhaseTransaction):
        return
    due = limiter.take(param.queue for param in params if param.state is JobState.AVAILABLE)
    if due:
        limiter.release_on_rollback(conn, due)
        notify_many(conn, schema, Topic.INSERT, [insert_payload(name) for name in due])
