"""Deleting jobs: one by its id, or those that match a filter. Never one that is running.

Whose statement comes first decides: a delete waits for a claim of the same row and then finds it running; a claim
passes over a row that is being deleted. Many are deleted without waiting for anybody: a row that somebody has locked
(a claim, a completion, a duplicate insert) is left for the next call, and so two calls at once delete each row once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import sqlalchemy as sa

from riverq.errors import JobRunningError
from riverq.job import JobRow, JobState
from riverq.query.array import integer_array, text_array
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import Statement, array_param, integer_param
from riverq.query.tables import Tables, statement

_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFilter:
    """Which jobs: those that match every part that is given. None gives none, an empty collection matches nothing."""

    ids: Collection[int] | None = None
    kinds: Collection[str] | None = None
    priorities: Collection[int] | None = None
    queues: Collection[str] | None = None
    states: Collection[JobState] | None = None

    def given(self) -> tuple[str, ...]:
        """The names of the parts that are given."""
        return tuple(part.name for part in fields(self) if getattr(self, part.name) is not None)


def job_delete(conn: sa.Connection, schema: str, job_id: int) -> JobRow | None:
    """Delete a job and return the row that it had; None where there is no such job.

    Raises JobRunningError for a running one.
    """
    for _ in range(_TRIES):
        row = _delete.execute(conn, schema, id=job_id).one_or_none()
        if row is not None:
            return job_row(row)
        found = _look.execute(conn, schema, id=job_id).one_or_none()
        if found is None:
            return None
        if found.is_running:
            raise JobRunningError(job_id)
    raise AssertionError(f"job {job_id} changed its state {_TRIES} times while it was to be deleted")


def job_delete_many(conn: sa.Connection, schema: str, which: DeleteFilter, *, limit: int) -> list[JobRow]:
    """Delete up to `limit` jobs, those with the lowest ids first, and return their rows by id. Waits for nobody.

    A filter without any part matches every job that is not running.
    """
    given = which.given()
    params = {name: _PARTS[name].literal(getattr(which, name)) for name in given}
    rows = _delete_many(given).rows(conn, schema, limit=limit, **params)
    return sorted((job_row(row) for row in rows), key=lambda row: row.id)


# -- the statements


@statement
def _delete(t: Tables) -> sa.Executable:
    job = t.job.c
    alone = sa.delete(t.job).where(job.id == integer_param("id"), job.state != t.state(JobState.RUNNING))
    return alone.returning(*job_columns(t))


@statement
def _look(t: Tables) -> sa.Executable:
    job = t.job.c
    return sa.select((job.state == t.state(JobState.RUNNING)).label("is_running")).where(job.id == integer_param("id"))


@dataclass(frozen=True)
class _Part:
    """One part of a filter: its column, the type of its elements, and how they become an array's literal."""

    column: str
    of: Callable[[Tables], Any]
    literal: Callable[[Collection[Any]], str]


_PARTS = {
    "ids": _Part("id", lambda _: sa.BigInteger(), integer_array),
    "kinds": _Part("kind", lambda _: sa.Text(), text_array),
    "priorities": _Part("priority", lambda _: sa.SmallInteger(), integer_array),
    "queues": _Part("queue", lambda _: sa.Text(), text_array),
    "states": _Part("state", lambda t: t.state_type, text_array),
}


@cache
def _delete_many(given: tuple[str, ...]) -> Statement:
    """A statement for these parts: with all in one, the parts not given would hide the indexes from the planner."""

    @statement
    def delete_many(t: Tables) -> sa.Executable:
        job = t.job.c
        matching = [job[part.column] == sa.any_(array_param(name, part.of(t))) for name, part in _parts(given)]
        locked = (
            sa.select(job.id)
            .where(job.state != t.state(JobState.RUNNING), *matching)
            .order_by(job.id)
            .limit(integer_param("limit"))
            .with_for_update(skip_locked=True)
            .cte("locked")
        )
        return sa.delete(t.job).where(job.id == locked.c.id).returning(*job_columns(t))

    return delete_many


def _parts(given: tuple[str, ...]) -> list[tuple[str, _Part]]:
    return [(name, _PARTS[name]) for name in given]
