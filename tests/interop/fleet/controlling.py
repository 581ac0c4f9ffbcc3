"""What the scenarios of control share: a job in every state, what a verb changed on a row, what was notified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from tests.interop.place import Place
from tests.interop.sides import Row, Side, Working
from tests.interop.waiting import until

KIND = "oracle_outcome"
HOUR = 3600
MARK = "cancel_attempted_at"
_numbers = count(1)
NOW = "now"
"""Stands for a time of just now, whose microseconds nobody can foretell."""


@contextmanager
def jobs_in_every_state(
    fleet: Place, worker: Side, copies: int = 1, queue: str = "default"
) -> Iterator[dict[str, list[int]]]:
    """So many jobs in each state, by the state's name; `not due` is available, but only in an hour.

    The worker brought them there, and its client is left without a free slot: nobody works what becomes available.
    """
    jobs: dict[str, list[int]] = {}

    def insert(state: str, outcome: str = "complete", **options: Any) -> None:
        jobs[state] = [worker.insert(KIND, {"outcome": outcome}, queue=queue, **options) for _ in range(copies)]

    with worker.working(KIND, queue=queue, max_workers=copies, retry_seconds=HOUR) as client:
        insert("completed", max_attempts=1)
        insert("discarded", "error", max_attempts=1)
        insert("retryable", "error")
        client.events(3 * copies)
        insert("running", "hold")
        client.until_begun(*jobs["running"])
        for state in ("available", "not due", "cancelled"):
            insert(state)
        insert("scheduled", scheduled_at="2100-01-01T00:00:00Z")
        insert("pending", pending=True)
        for job_id in jobs["cancelled"]:
            worker.cancel(job_id)
        execute(
            fleet,
            "UPDATE {schema}.river_job SET scheduled_at = now() + interval '1 hour' WHERE id = ANY(:ids)",
            ids=jobs["not due"],
        )
        try:
            yield jobs
        finally:
            client.release()


def execute(place: Place, sql: str, **params: Any) -> None:
    """A statement of the test's own, committed."""
    with place.engine.begin() as connection:
        connection.execute(sa.text(sql.format(schema=f'"{place.schema}"')), params)


def changes(before: Row, after: Row) -> dict[str, Any]:
    """The columns that differ, with their new values. A time, or a mark, of just now is `NOW`."""
    told = {name: value for name, value in after.items() if value != before[name]}
    for name in ("created_at", "finalized_at", "scheduled_at", "attempted_at", "paused_at", "updated_at"):
        if told.get(name) is not None:
            told[name] = just_now(told[name])
    if MARK in told.get("metadata", {}) and told["metadata"][MARK] != before["metadata"].get(MARK):
        told["metadata"] = told["metadata"] | {MARK: just_now(datetime.fromisoformat(told["metadata"][MARK]))}
    return told


def just_now(at: datetime) -> Any:
    """`NOW` for a time of the last minute, else the time itself."""
    return NOW if timedelta(0) <= datetime.now(at.tzinfo) - at < timedelta(minutes=1) else at


class Ear:
    """Listens to the schema's topics from now on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._given = 0
        place.go("listen", name="ear")

    def until_now(self) -> list[tuple[str, str]]:
        """Topic and payload of what was committed since the last call, as received and in its order.

        Notifications come in the order of their commits: what came before one that is sent now is all that there was.
        """
        last = f'{{"action":"none","number":{next(_numbers)}}}'
        execute(
            self._place, "SELECT pg_notify(:channel, :last)", channel=f"{self._place.schema}.river_control", last=last
        )

        def heard() -> list[tuple[str, str]]:
            entries = self._place.go("heard", name="ear", count=self._given + 1)
            return [(each["topic"], each["payload"]) for each in entries]

        until(lambda: heard()[-1] == ("river_control", last), "the last notification to be heard")
        told = heard()
        new, self._given = told[self._given : -1], len(told)
        return new


def cancel_payload(job_id: int, queue: str = "default") -> tuple[str, str]:
    """What River sends where a job is cancelled."""
    return ("river_control", f'{{"action" : "cancel", "job_id" : {job_id}, "queue" : "{queue}"}}')


def insert_payload(queue: str = "default") -> tuple[str, str]:
    """What River sends where a job is inserted, and riverq where one is retried, too."""
    return ("river_insert", f'{{"queue": "{queue}"}}')


def until_it_hears(client: Working, giver: Side, queue: str = "default") -> None:
    """Pause and resume its queue until the client heard of both.

    Go's client says that it has started before it listens: what is sent at once would be lost.
    """
    for verb, event in ((giver.pause, "queue_paused"), (giver.resume, "queue_resumed")):
        until(_repeated(verb, client, event, queue), f"the client to hear of {event}")


def _repeated(verb: Callable[[str], None], client: Working, event: str, queue: str) -> Callable[[], bool]:
    def heard() -> bool:
        verb(queue)
        try:
            until(lambda: queue in [each["queue"] for each in client.events(kinds=[event])], "", seconds=1)
        except pytest.fail.Exception:
            return False
        return True

    return heard


def blocked(place: Place) -> int:
    """How many backends that work in this schema wait for a lock that another holds."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND cardinality(pg_blocking_pids(pid)) > 0 AND query LIKE :schema"
    )
    [count] = place.scalars(waiting, schema=f"%{place.schema}%")
    return int(count)
