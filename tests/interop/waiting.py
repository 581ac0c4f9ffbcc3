"""Waiting for what another process does: it gives no sign that a test could wait for, so these ask, up to a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.interop.oracle import OracleError
from tests.interop.place import Place

PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing is expected to take anywhere near as long."""
PAUSE = 0.02


class Tape:
    """What was told so far, in order, for whoever waits for it: the twin of go/tape.go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()

    def wait_for(
        self, count: int, seconds: float, what: str, fits: Callable[[dict[str, Any]], bool]
    ) -> list[dict[str, Any]]:
        """All entries that fit, once they are `count`. Raises OracleError where they do not come."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self._entries if fits(entry)]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, seconds):
                raise OracleError(f"waited {seconds:g} s for {count} {what}, only came: {found()}")
            return found()


def until(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {seconds:g} s: {what}; the last answer: {answer!r}")
        pause.wait(PAUSE)
    return answer


def until_none(place: Place, condition: str, *, seconds: float = PATIENCE) -> None:
    """Ask until no job is so."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while place.scalars(f"SELECT id FROM {{schema}}.river_job WHERE {condition} LIMIT 1"):
        if time.monotonic() > deadline:
            rows = place.scalars(f"SELECT to_jsonb(j) FROM {{schema}}.river_job j WHERE {condition} LIMIT 20")
            pytest.fail(f"still so after {seconds:g} s: {condition}: {rows}")
        pause.wait(PAUSE)


def until_state(place: Place, job_id: int, *states: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """Ask until the job is in one of these states; its row, as the database has it."""
    names = ", ".join(f"'{state}'" for state in states)
    until_none(place, f"id = {job_id} AND state NOT IN ({names})", seconds=seconds)
    return place.column_values(job_id)


def until_settled(place: Place, *job_ids: int, seconds: float = PATIENCE) -> None:
    """Ask until these jobs, or all, neither run nor wait to be run at once."""
    which = f"id IN ({', '.join(map(str, job_ids))}) AND " if job_ids else ""
    until_none(place, which + "state IN ('available', 'running')", seconds=seconds)


def leader_of(place: Place) -> str | None:
    """The id of the client that leads, by the table and the database's clock; None while nobody does."""
    found = place.scalars("SELECT leader_id FROM {schema}.river_leader WHERE expires_at > clock_timestamp()")
    return str(found[0]) if found else None


def until_leader(place: Place, *client_ids: str, seconds: float = PATIENCE) -> str:
    """Ask until one of these clients leads, or any at all; its id."""

    def leads() -> str | None:
        leader = leader_of(place)
        return leader if leader is not None and (not client_ids or leader in client_ids) else None

    return str(until(leads, f"{client_ids or 'somebody'} to lead", seconds=seconds))
