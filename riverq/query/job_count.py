"""How many jobs there are: by state, by queue, by kind. What is returned was so at one moment, and locks nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.array import text_array
from riverq.query.rows import as_text
from riverq.query.statement import array_param, catalog, input_rows
from riverq.query.tables import Tables, statement


class JobCounts(NamedTuple):
    """The jobs of one queue that are available, and those that run."""

    available: int = 0
    running: int = 0


def job_count_by_state(conn: sa.Connection, schema: str) -> dict[JobState, int]:
    """How many jobs are in each state; every state is there.

    Reads every job, through the index that claims use.
    """
    found: dict[str, int] = {row.state: row.number for row in _count_by_state.rows(conn, schema)}
    return _of_every_state(found)


def job_count_by_queue(conn: sa.Connection, schema: str, names: Iterable[str] | None = None) -> dict[str, JobCounts]:
    """How many jobs of each queue are available and how many run, by name, in the order of the bytes.

    Of the queues named, whether or not there are such; without names, of every queue that has a row or such a job.
    Reads these jobs only, through the index that claims use; the others, finished or still to come, are not looked at.
    """
    if names is None:
        rows = _count_by_queue.rows(conn, schema)
    else:
        rows = _count_of_queues.rows(conn, schema, queue=text_array(set(names)))
    found = {row.name: JobCounts(row.available, row.running) for row in rows}
    return {name: found[name] for name in sorted(found)}


def job_count_by_kind(
    conn: sa.Connection, schema: str, kinds: Iterable[str] | None = None
) -> dict[str, dict[JobState, int]]:
    """How many jobs of each kind are in each state, by kind, in the order of the bytes; every state is there.

    Of the kinds named, whether or not there are such; without names, of every kind that has a job. Reads every job of
    these kinds.
    """
    chosen = None if kinds is None else set(kinds)
    found: dict[str, dict[str, int]] = {}
    given = None if chosen is None else text_array(chosen)
    rows = _count_by_kind.rows(conn, schema) if given is None else _count_of_kinds.rows(conn, schema, kind=given)
    for row in rows:
        found.setdefault(row.kind, {})[row.state] = row.number
    return {kind: _of_every_state(found.get(kind, {})) for kind in sorted(found if chosen is None else chosen)}


def _of_every_state(found: dict[str, int]) -> dict[JobState, int]:
    return {state: found.get(state.value, 0) for state in JobState}


# -- the statements


@statement
def _count_by_state(t: Tables) -> sa.Executable:
    state = t.job.c.state
    return sa.select(as_text(state).label("state"), _number().label("number")).group_by(state)


@statement
def _count_by_queue(t: Tables) -> sa.Executable:
    counted, row = _counted(t).subquery("counted"), t.queue.c
    name = sa.func.coalesce(counted.c.queue, row.name, type_=sa.Text()).label("name")
    joined = t.queue.join(counted, counted.c.queue == row.name, full=True)
    return sa.select(name, *_or_zero(counted)).select_from(joined)


@statement
def _count_of_queues(t: Tables) -> sa.Executable:
    given = input_rows("given", queue=sa.Text())
    counted = _counted(t).where(t.job.c.queue == sa.any_(array_param("queue", sa.Text()))).subquery("counted")
    joined = given.outerjoin(counted, counted.c.queue == given.c.queue)
    return sa.select(given.c.queue.label("name"), *_or_zero(counted)).select_from(joined)


_COUNTED = {"available": JobState.AVAILABLE, "running": JobState.RUNNING}


def _counted(t: Tables) -> sa.Select[Any]:
    job = t.job.c
    states = {name: t.state(state) for name, state in _COUNTED.items()}
    numbers = [_number().filter(job.state == state).label(name) for name, state in states.items()]
    return sa.select(job.queue, *numbers).where(job.state.in_(states.values())).group_by(job.queue)


def _or_zero(counted: sa.Subquery) -> list[sa.ColumnElement[int]]:
    return [
        sa.func.coalesce(counted.c[name], sa.literal_column("0"), type_=sa.BigInteger()).label(name)
        for name in _COUNTED
    ]


@statement
def _count_by_kind(t: Tables) -> sa.Executable:
    return _by_kind(t)


@statement
def _count_of_kinds(t: Tables) -> sa.Executable:
    return _by_kind(t).where(t.job.c.kind == sa.any_(array_param("kind", sa.Text())))


def _by_kind(t: Tables) -> sa.Select[Any]:
    job = t.job.c
    return sa.select(job.kind, as_text(job.state).label("state"), _number().label("number")).group_by(
        job.kind, job.state
    )


def _number() -> sa.FunctionElement[int]:
    return catalog.count(sa.literal_column("*"), type_=sa.BigInteger())
