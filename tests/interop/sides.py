"""The two sides of a fleet with one face: the real River (`river`) and riverq (`riverq`), on one schema.

A scenario is written for a giver and a taker and run in both directions. Rows are `neutral` ones, compared with `==`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from tests.interop import neutral
from tests.interop.oracle import Oracle, OracleError
from tests.interop.place import Place
from tests.interop.waiting import PATIENCE, until

Row = dict[str, Any]
Rows = list[Row]
_numbers = count(1)


@dataclass(frozen=True)
class Page:
    """A page of a list. `cursor` is a text that either side reads; None behind an empty page."""

    jobs: list[Row]
    cursor: str | None

    @property
    def ids(self) -> list[int]:
        return [job["id"] for job in self.jobs]


class Side:
    """One side: `call` performs an operation of the table in README.md, the methods are that table with a better name.

    Every verb takes `tx=`, a transaction of `transaction()` of this side. Errors are OracleError; their `kind` is the
    same on both sides.
    """

    def __init__(self, name: str, place: Place, call: Callable[..., Any], process: Oracle | None = None) -> None:
        self.name = name
        self.place = place
        self.call = call
        self._process = process

    def __repr__(self) -> str:
        return f"<Side {self.name}>"

    @property
    def process(self) -> Oracle:
        """The process of a side that `process_of` made: `kill()`, `suspend()`, `resume()`, `pid`."""
        assert self._process is not None, "this side has no process of its own (make one with process_of)"
        return self._process

    # -- insert

    def insert(self, kind: str, args: Any = None, *, tx: str | None = None, **options: Any) -> int:
        """Insert one job; its id. `args` is what the job shall do: `{"outcome": "error", …}`."""
        [row] = self.insert_rows([{"kind": kind, "args": args, **options}], tx=tx)
        job_id: int = row["job"]["id"]
        return job_id

    def insert_many(self, kind: str, args: Any = None, *, number: int, tx: str | None = None, **options: Any) -> int:
        """Insert the same job so many times, fast."""
        jobs = [{"kind": kind, "args": json.dumps(args or {}), **options}] * number
        inserted: int = self.call("insert", jobs=jobs, fast=True, **_in(tx))
        return inserted

    def insert_rows(self, jobs: Sequence[Mapping[str, Any]], *, tx: str | None = None) -> Rows:
        """Insert jobs, `{"kind", "args", "queue", …}` each: `{"job": row, "unique_skipped_as_duplicate"}` each."""
        encoded = [{**job, "args": json.dumps(job.get("args") or {})} for job in jobs]
        inserted: Rows = self.call("insert", jobs=encoded, **_in(tx))
        return [{**each, "job": neutral.of_river(each["job"])} for each in inserted]

    # -- one job

    def get(self, job_id: int, *, tx: str | None = None) -> Row:
        return self._row("job_get", job_id=job_id, **_in(tx))

    def cancel(self, job_id: int, *, tx: str | None = None) -> Row:
        return self._row("job_cancel", job_id=job_id, **_in(tx))

    def retry(self, job_id: int, *, tx: str | None = None) -> Row:
        return self._row("job_retry", job_id=job_id, **_in(tx))

    def delete(self, job_id: int, *, tx: str | None = None) -> Row:
        return self._row("job_delete", job_id=job_id, **_in(tx))

    def update(self, job_id: int, *, tx: str | None = None, **given: Any) -> Row:
        """`output=`: the job's new output, any JSON."""
        return self._row("job_update", job_id=job_id, **given, **_in(tx))

    def _row(self, op: str, **params: Any) -> Row:
        return neutral.of_river(self.call(op, **params))

    # -- many jobs

    def list(self, *, tx: str | None = None, **asked: Any) -> Page:
        """`ids kinds priorities queues states tags_all tags_any metadata(text) order_by descending limit after`."""
        page = self.call("job_list", **asked, **_in(tx))
        return Page([neutral.of_river(row) for row in page["jobs"]], page["cursor"])

    def delete_many(self, *, tx: str | None = None, **asked: Any) -> Rows:
        """`ids kinds priorities queues states limit unsafe_all`; the rows that are gone."""
        return [neutral.of_river(row) for row in self.call("job_delete_many", **asked, **_in(tx))]

    # -- queues and the leader

    def pause(self, queue: str = "default", *, tx: str | None = None) -> None:
        self.call("queue_pause", queue=queue, **_in(tx))

    def resume(self, queue: str = "default", *, tx: str | None = None) -> None:
        self.call("queue_resume", queue=queue, **_in(tx))

    def queue(self, queue: str = "default", *, tx: str | None = None) -> Row:
        return neutral.queue_of_river(self.call("queue_get", queue=queue, **_in(tx)))

    def queues(self, *, limit: int = 100, tx: str | None = None) -> Rows:
        return [neutral.queue_of_river(queue) for queue in self.call("queue_list", limit=limit, **_in(tx))]

    def queue_update(self, queue: str = "default", *, tx: str | None = None, **given: Any) -> Row:
        """`metadata=`: the queue's new metadata."""
        return neutral.queue_of_river(self.call("queue_update", queue=queue, **given, **_in(tx)))

    def request_resign(self, *, tx: str | None = None) -> None:
        self.call("request_resign", **_in(tx))

    # -- transactions

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """`with side.transaction() as tx: side.insert(…, tx=tx)`: commits at the end, unless `tx.rollback()` came."""
        transaction = Transaction(self)
        try:
            yield transaction
        except BaseException:
            transaction.rollback()
            raise
        transaction.commit()

    # -- work

    def start(self, *kinds: str, **config: Any) -> Working:
        """Start a client that works these kinds; `config` as `start` in README.md."""
        name = f"client_{next(_numbers)}"
        client_id = self.call("start", client=name, kinds=list(kinds), **config)
        return Working(self, name, client_id)

    @contextmanager
    def working(self, *kinds: str, **config: Any) -> Iterator[Working]:
        """`start`, and a stop at the end that waits for the jobs; one that fails in between cancels them."""
        client = self.start(*kinds, **config)
        try:
            yield client
        except BaseException:
            if not client.is_stopped:
                client.stop(cancel=True)
            raise
        if not client.is_stopped:
            client.stop()


class Transaction(str):
    """An open transaction, and its name: give it as `tx=`."""

    __slots__ = ("_is_open", "_side")

    def __new__(cls, side: Side) -> Self:
        return super().__new__(cls, f"tx_{next(_numbers)}")

    def __init__(self, side: Side) -> None:
        self._side = side
        self._is_open = True
        side.call("tx_begin", tx=str(self))

    def commit(self) -> None:
        self._end(commit=True)

    def rollback(self) -> None:
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        if self._is_open:
            self._is_open = False
            self._side.call("tx_end", tx=str(self), commit=commit)


@dataclass
class Working:
    """A client that works, on either side. `id` is its client id, as in `attempted_by` and `river_leader`."""

    side: Side
    name: str
    id: str
    is_stopped: bool = field(default=False, init=False)

    def events(self, count: int = 0, *, seconds: float = PATIENCE, **which: Any) -> Rows:
        """Wait for so many events since its start, and give all so far. `kinds=[…]`, `job_id=` count only those.

        Each has `kind`, and `job` (a neutral row) or `queue`.
        """
        return _events(self._call("events", count=count, seconds=seconds, **which))

    def marks(self, count: int = 0, *, seconds: float = PATIENCE, **which: Any) -> Rows:
        """Wait for so many marks that its jobs left, and give all so far. `mark=`, `job_id=` count only those.

        Each has `job_id`, `kind`, `attempt`, `mark` and `detail`.
        """
        marks: Rows = self._call("marks", count=count, seconds=seconds, **which)
        return marks

    def until_begun(self, *job_ids: int) -> None:
        """Wait until these jobs run here."""
        for job_id in job_ids:
            self.marks(1, mark="began", job_id=job_id)

    def until_woken_by(self, giver: Side, kind: str, **options: Any) -> None:
        """Let `giver` insert a job that completes, until this client was woken by one; it polls once an hour, say.

        Go's client begins to fetch before it listens, so its first events do not say that it would hear of an insert.
        """

        def woken() -> bool:
            job_id = giver.insert(kind, **options)
            try:
                self.events(1, job_id=job_id, seconds=1)
            except OracleError:
                return False
            return True

        until(woken, "an insert to wake the client")

    def release(self) -> None:
        """Let its jobs that `hold`, `wait` or `finish` end, those too that begin later."""
        self._call("release")

    def queue_add(self, queue: str, max_workers: int = 10) -> None:
        self._call("queue_add", queue=queue, max_workers=max_workers)

    def queue_remove(self, queue: str) -> None:
        self._call("queue_remove", queue=queue)

    def periodic_add(self, periodic: Mapping[str, Any]) -> None:
        self._call("periodic_add", periodic=periodic)

    def periodic_remove(self, periodic_id: str) -> bool:
        removed: bool = self._call("periodic_remove", periodic_id=periodic_id)
        return removed

    def stop(self, *, cancel: bool = False, seconds: float = PATIENCE) -> Rows:
        """Stop it, cancelling its jobs where asked for; all its events."""
        self.is_stopped = True
        return _events(self._call("stop", cancel=cancel, seconds=seconds))

    def _call(self, op: str, **params: Any) -> Any:
        return self.side.call(op, client=self.name, **params)


def _in(tx: str | None) -> dict[str, str]:
    return {} if tx is None else {"tx": str(tx)}


def _events(told: Rows) -> Rows:
    return [{**event, "job": neutral.of_river(event["job"])} if "job" in event else event for event in told]
