"""Listing jobs: one statement per shape of a list, so that the planner sees only the conditions that were asked for.

A statement with a place for every filter (`:ids IS NULL OR id = ANY(:ids)`) would be planned once for all lists, and
would read the whole table for each. The shapes that an application uses are few; the 256 last used are kept.

A filter with one value is an equality and not `= ANY`: only then is the order of `(state, finalized_at)`, and that of
`(state, queue, priority, scheduled_at, id)`, the order of what an index returns.

A page begins after a place, which is compared as a row, `(time, id) > (…)`: exact, since times cross as text with their
microseconds, and a condition for the index. Jobs without the time come last, and first in descending order, as
Postgres sorts NULL. Waits for nobody's lock, and reads each page as of its statement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa

from riverq.job_list import Cursor, JobListParams, JobPage, TimeColumn
from riverq.query.array import integer_array, text_array
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import (
    TIMESTAMP,
    Statement,
    array_param,
    integer_param,
    jsonb_param,
    stamp,
    text_param,
    time_param,
)
from riverq.query.tables import Tables, statement

Place = Literal["id", "null", "time", "edge"]
"""How the place to begin after is known: by id alone, by id among the jobs without the time, by both; or by both where
the time is one that `us_of` has cut."""

_SCALARS = ("ids", "kinds", "priorities", "queues", "states")
_OTHERS = ("tags_all", "tags_any", "metadata")
_FIRST_DAY = datetime(1, 1, 2, tzinfo=UTC)
_LAST_DAY = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Shape:
    single: tuple[str, ...]
    many: tuple[str, ...]
    column: TimeColumn | None
    nullable: bool
    descending: bool
    after: Place | None


def job_list(conn: sa.Connection, schema: str, params: JobListParams) -> JobPage:
    """One page of jobs."""
    rows = _list(_shape(params)).rows(conn, schema, **_values(params))
    return params.page([job_row(row) for row in rows])


def _shape(params: JobListParams) -> _Shape:
    given = [name for name in (*_SCALARS, *_OTHERS) if getattr(params, name) is not None]
    single = tuple(name for name in given if name in _SCALARS and len(getattr(params, name)) == 1)
    return _Shape(
        single=single,
        many=tuple(name for name in given if name not in single),
        column=params.column,
        nullable=params.nullable,
        descending=params.descending,
        after=None if params.after is None else _place(params.after, params),
    )


def _place(after: Cursor, params: JobListParams) -> Place:
    if params.column is None:
        return "id"
    if after.time is None:
        return "null"
    return "time" if _FIRST_DAY < after.time < _LAST_DAY else "edge"


def _values(params: JobListParams) -> dict[str, Any]:
    values: dict[str, Any] = {"limit": params.limit + 1}
    for name in (*_SCALARS, *_OTHERS):
        given = getattr(params, name)
        if given is None or isinstance(given, str):
            values[name] = given
        elif name in _SCALARS and len(given) == 1:
            values[name] = given[0]
        else:
            values[name] = integer_array(given) if name in ("ids", "priorities") else text_array(given)
    after = params.after
    if after is not None:
        values["after_id"] = after.id
        values["after_time"] = None if params.column is None else stamp(after.time)
    return {name: value for name, value in values.items() if value is not None}


# -- the statements


@lru_cache(maxsize=256)
def _list(shape: _Shape) -> Statement:
    @statement
    def page(t: Tables) -> sa.Executable:
        order = [t.job.c.id] if shape.column is None else [t.job.c[shape.column], t.job.c.id]
        chosen = sa.select(*job_columns(t)).where(*_filters(t, shape))
        if shape.column == "finalized_at" and not shape.nullable:
            chosen = chosen.where(t.job.c.finalized_at.is_not(None))  # the condition of the index that has the order
        if shape.after is not None:
            chosen = chosen.where(_follows(t, shape))
        ordered = chosen.order_by(*(column.desc() if shape.descending else column.asc() for column in order))
        return ordered.limit(integer_param("limit"))

    return page


def _filters(t: Tables, shape: _Shape) -> list[sa.ColumnElement[bool]]:
    job = t.job.c
    columns: dict[str, tuple[Any, Any, Callable[[str], Any]]] = {
        "ids": (job.id, sa.BigInteger(), integer_param),
        "kinds": (job.kind, sa.Text(), text_param),
        "priorities": (job.priority, sa.SmallInteger(), integer_param),
        "queues": (job.queue, sa.Text(), text_param),
        "states": (job.state, t.state_type, lambda name: sa.cast(text_param(name), t.state_type)),
    }
    # An unbounded varchar: a cast to varchar(255) would cut a longer text, which then equals another tag.
    others: dict[str, Callable[[], sa.ColumnElement[bool]]] = {
        "tags_all": lambda: job.tags.op("@>")(array_param("tags_all", sa.String())),
        "tags_any": lambda: job.tags.op("&&")(array_param("tags_any", sa.String())),
        "metadata": lambda: job.metadata.op("@>")(jsonb_param("metadata")),
    }
    conditions = []
    for name in shape.single:
        column, _, param = columns[name]
        conditions.append(column == param(name))
    for name in shape.many:
        if name in others:
            conditions.append(others[name]())
        else:
            column, of, _ = columns[name]
            conditions.append(column == sa.any_(array_param(name, of)))
    return conditions


def _follows(t: Tables, shape: _Shape) -> sa.ColumnElement[bool]:
    job_id, after_id = t.job.c.id, integer_param("after_id")
    by_id = job_id < after_id if shape.descending else job_id > after_id
    if shape.column is None:
        return by_id
    time = t.job.c[shape.column]
    if shape.after == "null":
        return sa.or_(time.is_not(None), by_id) if shape.descending else sa.and_(time.is_(None), by_id)
    here = sa.tuple_(time, job_id)
    place = sa.tuple_(_uncut(t, shape.column) if shape.after == "edge" else time_param("after_time"), after_id)
    if shape.descending:
        return here < place
    return sa.or_(here > place, time.is_(None)) if shape.nullable else here > place


def _uncut(t: Tables, column: TimeColumn) -> sa.ColumnElement[datetime]:
    """The time of a job in a year that Python cannot hold, or at infinity, which a cursor has as the nearest day.

    Asked of the job itself; as the cursor has it where the job is gone, so that some may be listed twice, but none left
    out and no place met again and again.
    """
    job = t.job.alias("place")
    time = job.c[column]
    is_cut = sa.or_(time <= _day(_FIRST_DAY), time >= _day(_LAST_DAY))
    found = sa.select(time).where(job.c.id == integer_param("after_id"), is_cut).scalar_subquery()
    return sa.func.coalesce(found, time_param("after_time"))


def _day(moment: datetime) -> sa.ColumnElement[datetime]:
    return sa.cast(sa.literal_column(f"'{moment.date().isoformat()} 00:00:00+00'"), TIMESTAMP)
