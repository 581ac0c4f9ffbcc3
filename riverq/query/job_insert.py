"""Inserting jobs, one or thousands, in one statement of one text; and the streams for COPY.

Before: `riverq.insert` resolves and validates options, so that nothing here fails that could have been known. After:
`query.notify` in the same transaction.

A job whose unique key is taken is not inserted: the row that has the key is returned instead, marked as a duplicate.
To be returned it must be written; the write sets `kind` to what it was, which changes nothing. A server tells which of
the two a returned row is, new or there before, by what it was before the statement (`RETURNING old`, from Postgres 18
on), else by `xmax`. Where it has neither, rows with a unique key are inserted with a nonce in their metadata
(`river:unique_nonce`, as River's ports for such databases do), which a row that was there before does not have.

`created_at` and `scheduled_at` are the statement's time, not the transaction's: a job of a ten-minute transaction is
not ten minutes old.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq.insert_opts import InsertParams
from riverq.job import InsertResult
from riverq.query.array import bytea_array, integer_array, text_array
from riverq.query.rows import job_columns, job_row
from riverq.query.statement import TIMESTAMP, array_param, catalog, later, microseconds, stamp, text_param, time_param
from riverq.query.tables import Tables, statement
from riverq.unique import MASK


class CopyStream(NamedTuple):
    """What `Driver.copy_from` takes: a quoted table, columns, and rows of texts."""

    table: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | None, ...]]


def job_insert_many(
    conn: sa.Connection, schema: str, params: Sequence[InsertParams], *, now: datetime | None = None
) -> list[InsertResult]:
    """Insert jobs and return what came of each, in the order given.

    Of equal unique keys in the batch the first is inserted; the others get its row, marked as duplicates. Waits for a
    transaction that has inserted the same key and not yet ended. Raises what the server says (23514, 22P05, …).
    """
    distinct = _distinct(params)
    rows = _insert_returning.rows(conn, schema, nonce=token_hex(16), **_insert_params(distinct.params, now))
    written = [InsertResult(job_row(row), row.skipped) for row in rows]
    return [
        written[index] if first else InsertResult(written[index].job, unique_skipped_as_duplicate=True)
        for index, first in distinct.places
    ]


def job_insert_many_skipping(
    conn: sa.Connection, schema: str, params: Sequence[InsertParams], *, now: datetime | None = None
) -> int:
    """Insert jobs, leave out those whose unique key is taken, and return the number inserted."""
    count: int = _insert_skipping.execute(conn, schema, **_insert_params(params, now)).scalar_one()
    return count


def can_copy(params: Sequence[InsertParams]) -> bool:
    """Whether `copy_streams` can carry all of them: COPY would poison the transaction at a taken unique key, and has no
    way to say "in ten minutes" by the database's clock."""
    return all(each.unique_key is None and each.scheduled_in is None for each in params)


def copy_streams(schema: str, params: Sequence[InsertParams]) -> list[CopyStream]:
    """The jobs as rows for COPY, in one stream or two: rows without a time of their own leave it to the database.

    Raises ValueError where `can_copy` says no.
    """
    if not can_copy(params):
        raise ValueError("jobs with a unique key or a delay cannot be copied (use job_insert_many_skipping)")
    quoted = schema.replace('"', '""')
    streams = []
    for columns, chosen in (
        (_COPIED, [each for each in params if each.scheduled_at is None]),
        ((*_COPIED, "scheduled_at"), [each for each in params if each.scheduled_at is not None]),
    ):
        if chosen:
            rows = [_copied(each) for each in chosen]
            streams.append(CopyStream(f'"{quoted}"."river_job"', columns, rows))
    return streams


_COPIED = ("args", "kind", "max_attempts", "metadata", "priority", "queue", "state", "tags")


def _copied(each: InsertParams) -> tuple[str | None, ...]:
    values = (
        each.encoded_args,
        each.kind,
        str(each.max_attempts),
        each.metadata,
        str(each.priority),
        each.queue,
        each.state.value,
        text_array(each.tags),
    )
    return values if each.scheduled_at is None else (*values, stamp(each.scheduled_at))


@dataclass(frozen=True, slots=True)
class _Distinct:
    """The batch without repeated keys; `places` has, for each input, its index there and whether it is the first."""

    params: list[InsertParams]
    places: list[tuple[int, bool]]


def _distinct(params: Sequence[InsertParams]) -> _Distinct:
    """One statement cannot touch a row twice. A key whose mask lacks the row's own state conflicts with nothing."""
    kept: list[InsertParams] = []
    places: list[tuple[int, bool]] = []
    by_key: dict[bytes, int] = {}
    for each in params:
        key = each.unique_key if each.unique_states & MASK[each.state] else None
        if key is not None and key in by_key:
            places.append((by_key[key], False))
            continue
        if key is not None:
            by_key[key] = len(kept)
        places.append((len(kept), True))
        kept.append(each)
    return _Distinct(kept, places)


def _insert_params(params: Sequence[InsertParams], now: datetime | None) -> dict[str, Any]:
    return {
        "now": stamp(now),
        "args": text_array([each.encoded_args for each in params]),
        "kind": text_array([each.kind for each in params]),
        "max_attempts": integer_array([each.max_attempts for each in params]),
        "metadata": text_array([each.metadata for each in params]),
        "priority": integer_array([each.priority for each in params]),
        "queue": text_array([each.queue for each in params]),
        "scheduled_at": text_array([stamp(each.scheduled_at) for each in params]),
        "scheduled_in": integer_array(_delays(params)),
        "state": text_array([each.state.value for each in params]),
        "tags": text_array([text_array(each.tags) for each in params]),
        "unique_key": bytea_array([each.unique_key or None for each in params]),
        "unique_states": text_array([f"{each.unique_states:08b}" if each.unique_states else None for each in params]),
    }


def _delays(params: Sequence[InsertParams]) -> Iterator[int | None]:
    return (None if each.scheduled_in is None else microseconds(each.scheduled_in) for each in params)


# -- the statements


def _insert(t: Tables, *, with_nonce: bool = False) -> pg.Insert:
    types: dict[str, Any] = {
        "args": sa.Text(),
        "kind": sa.Text(),
        "max_attempts": sa.SmallInteger(),
        "metadata": sa.Text(),
        "priority": sa.SmallInteger(),
        "queue": sa.Text(),
        "scheduled_at": sa.Text(),
        "scheduled_in": sa.BigInteger(),
        "state": sa.Text(),
        "tags": sa.Text(),
        "unique_key": pg.BYTEA(),
        "unique_states": sa.Text(),
    }
    arrays = [array_param(name, of) for name, of in types.items()]
    columns: list[Any] = [sa.column(name, of) for name, of in types.items()]
    given = sa.func.unnest(*arrays).table_valued(*columns, with_ordinality="place").render_derived(name="given")
    selected = _selected(t, given.c)
    if with_nonce:
        nonce = catalog.jsonb_build_object(_NONCE_KEY, text_param("nonce"))
        marked = sa.case((given.c.unique_key.is_not(None), nonce), else_=sa.literal_column("'{}'::jsonb"))
        selected["metadata"] = selected["metadata"].op("||")(marked)
    return pg.insert(t.job).from_select(
        list(selected),
        # The ids follow the order of the batch, and RETURNING follows the rows as they are inserted.
        sa.select(*selected.values()).select_from(given).order_by(given.c.place),
        include_defaults=False,
    )


def _selected(t: Tables, given: Any) -> dict[str, sa.ColumnElement[Any]]:
    now = sa.func.coalesce(time_param("now"), catalog.statement_timestamp(), type_=TIMESTAMP)
    scheduled_at = sa.func.coalesce(sa.cast(given.scheduled_at, TIMESTAMP), now + later(given.scheduled_in), now)
    return {
        "args": sa.cast(given.args, pg.JSONB()),
        "created_at": now,
        "kind": given.kind,
        "max_attempts": given.max_attempts,
        "metadata": sa.cast(given.metadata, pg.JSONB()),
        "priority": given.priority,
        "queue": given.queue,
        "scheduled_at": scheduled_at,
        "state": sa.cast(given.state, t.state_type),
        # Not as varchar(255)[]: an explicit cast would cut a long tag in silence.
        "tags": sa.cast(given.tags, pg.ARRAY(sa.Text())),
        "unique_key": given.unique_key,
        "unique_states": sa.cast(given.unique_states, pg.BIT(8)),
    }


def _arbiter(t: Tables) -> dict[str, Any]:
    """The unique index, named by its column and predicate: it must be word for word the index's own."""
    job = t.job.c
    return {
        "index_elements": [job.unique_key],
        "index_where": sa.and_(
            job.unique_key.is_not(None), job.unique_states.is_not(None), t.in_mask(job.unique_states, job.state)
        ),
    }


@statement
def _insert_returning(t: Tables) -> sa.Executable:
    return (
        _insert(t, with_nonce=_needs_nonce(t))
        .on_conflict_do_update(**_arbiter(t), set_={"kind": t.job.c.kind})
        .returning(*job_columns(t), _was_there(t).label("skipped"))
    )


def _needs_nonce(t: Tables) -> bool:
    return not t.server.returning_old and not t.server.xmax


def _was_there(t: Tables) -> sa.ColumnElement[bool]:
    """Whether a returned row is one that had the unique key before."""
    if t.server.returning_old:
        return sa.literal_column("old.id").is_not(None)
    if t.server.xmax:
        # It is set on a row that was there already, because the conflict locked it first.
        return sa.cast(sa.literal_column("xmax"), sa.Text()) != sa.literal_column("'0'")
    job = t.job.c
    other = job.metadata.op("->>")(_NONCE_KEY).is_distinct_from(text_param("nonce"))
    return sa.and_(job.unique_key.is_not(None), other)


_NONCE_KEY: sa.ColumnElement[str] = sa.literal_column("'river:unique_nonce'")


@statement
def _insert_skipping(t: Tables) -> sa.Executable:
    inserted = _insert(t).on_conflict_do_nothing(**_arbiter(t)).returning(t.job.c.id).cte("inserted")
    return sa.select(catalog.count(inserted.c.id))
