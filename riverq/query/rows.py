"""What statements return as the classes of the library: the columns to select, and how a row becomes one.

JSON stays text until somebody looks into it. Arrays come as JSON text, which one fast parser reads, instead of in the
form that each adapter makes of them.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.job import JobRow, JobState
from riverq.query.statement import catalog, from_us, us_of
from riverq.query.tables import Tables
from riverq.queue import Queue
from riverq.unique import MASK

_STATES = {state.value: state for state in JobState}


def job_columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    """Everything of a job, for `job_row`."""
    job = t.job.c
    return [
        job.id,
        job.kind,
        as_text(job.state).label("state"),
        job.attempt,
        job.max_attempts,
        job.priority,
        job.queue,
        us_of(job.created_at).label("created_at"),
        us_of(job.scheduled_at).label("scheduled_at"),
        us_of(job.attempted_at, nullable=True).label("attempted_at"),
        us_of(job.finalized_at, nullable=True).label("finalized_at"),
        array_json(job.attempted_by).label("attempted_by"),
        array_json(job.tags).label("tags"),
        as_hex(job.unique_key).label("unique_key"),
        as_text(job.unique_states).label("unique_states"),
        as_text(job.args).label("args"),
        as_text(job.metadata).label("metadata"),
        errors_json(t).label("errors"),
    ]


def job_row(row: Any) -> JobRow:
    """A row of `job_columns`."""
    return JobRow(
        id=row.id,
        kind=row.kind,
        state=_STATES[row.state],
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        priority=row.priority,
        queue=row.queue,
        created_at=from_us(row.created_at),
        scheduled_at=from_us(row.scheduled_at),
        attempted_at=None if row.attempted_at is None else from_us(row.attempted_at),
        finalized_at=None if row.finalized_at is None else from_us(row.finalized_at),
        attempted_by=texts(row.attempted_by),
        tags=texts(row.tags),
        unique_key=None if row.unique_key is None else bytes.fromhex(row.unique_key),
        unique_states=mask_states(row.unique_states),
        encoded_args=row.args,
        encoded_metadata=row.metadata,
        encoded_errors=texts(row.errors),
    )


def queue_columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    """Everything of a queue, for `queue_row`."""
    queue = t.queue.c
    return [
        queue.name,
        us_of(queue.created_at).label("created_at"),
        us_of(queue.updated_at).label("updated_at"),
        us_of(queue.paused_at, nullable=True).label("paused_at"),
        as_text(queue.metadata).label("metadata"),
    ]


def queue_row(row: Any) -> Queue:
    """A row of `queue_columns`. Metadata that is not an object reads as empty."""
    metadata = json.loads(row.metadata)
    return Queue(
        name=row.name,
        created_at=from_us(row.created_at),
        updated_at=from_us(row.updated_at),
        paused_at=None if row.paused_at is None else from_us(row.paused_at),
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def as_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """The text form of an enum, a bit string or jsonb: no adapter reads these alike."""
    return sa.cast(column, sa.Text())


def as_hex(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """The bytes of a bytea in hexadecimal: pg8000 breaks its connection over a session's `bytea_output = 'escape'`."""
    return catalog.encode(column, sa.literal_column("'hex'"), type_=sa.Text())


def array_json(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A text array as JSON text, NULL where the column is, for `texts`."""
    return as_text(catalog.array_to_json(column))


def errors_json(t: Tables) -> sa.ColumnElement[str]:
    """The errors as a JSON array of their stored texts, for `texts`."""
    return array_json(sa.cast(t.job.c.errors, pg.ARRAY(sa.Text())))


def texts(encoded: str | None) -> tuple[str, ...]:
    """The elements of `array_json`; NULL elements read as the JSON text `null`."""
    if encoded is None or encoded == "[]":
        return ()
    return tuple("null" if element is None else element for element in json.loads(encoded))


def mask_states(mask: str | None) -> frozenset[JobState] | None:
    """The states of a `unique_states` text such as `11110101`."""
    if mask is None:
        return None
    bits = int(mask, 2)
    return frozenset(state for state, bit in MASK.items() if bits & bit)
