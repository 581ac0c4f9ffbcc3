"""Indexes as the leader rebuilds them: look, drop what an earlier attempt left behind, rebuild.

Postgres rebuilds an index beside the old one, under the name `<index>_ccnew`, and keeps the old one as `<index>_ccold`
for a moment after the swap. An attempt that is cut short leaves one of them: invalid, never used by a query, but kept
up to date by every write. They may be dropped, unless the attempt is still under way.

Whether one is under way shows in its locks: until its end it holds the table and both indexes in SHARE UPDATE EXCLUSIVE
mode. `pg_locks` shows that to every role, where `pg_stat_progress_create_index` shows a role its own only. A second one
on the same table must not even be tried: it would wait for the table with a snapshot that the first one in turn waits
for, and the server would end one of them, maybe an operator's.

`index_rebuild` and `index_drop` run outside a transaction (`Database.run_outside`) and start with a mark, by which
`riverq.query.limits` finds them. Names are written out and quoted here, because statements of this kind take no
parameters.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import sqlalchemy as sa

from riverq.query.limits import marked
from riverq.query.statement import Statement, catalog, text_param

NAME_BYTES = 63
"""Postgres cuts longer identifiers, the first part of a made-up name in this case."""

_LEFTOVER = re.compile(r"(?P<index>.+)_(?P<label>cc(?:new|old)[0-9]*)", re.DOTALL)


class IndexLook(NamedTuple):
    """What was seen of an index.

    `is_there`: it exists. `is_busy`: somebody builds, rebuilds or vacuums on its table, or holds it in a stronger lock;
    autovacuum does not count, as it gives way. `leftovers`: invalid indexes that earlier attempts left behind.
    """

    is_there: bool
    is_busy: bool
    leftovers: list[str]


def index_look(conn: sa.Connection, schema: str, index: str) -> IndexLook:
    """Look at the index of this name, its table and what an earlier attempt may have left."""
    rows = _LOOK.rows(conn, schema, schema=schema, index=index)
    if not rows:
        return IndexLook(is_there=False, is_busy=False, leftovers=[])
    leftovers = sorted(row.invalid for row in rows if row.invalid is not None and is_leftover(index, row.invalid))
    return IndexLook(is_there=True, is_busy=rows[0].is_busy, leftovers=leftovers)


def index_rebuild(conn: sa.Connection, schema: str, index: str, *, mark: str) -> None:
    """Rebuild the index beside the old one; jobs are inserted and worked meanwhile.

    It waits for every older transaction of others, however long. What it leaves when it is ended is invalid.
    """
    _execute(conn, mark, f"REINDEX INDEX CONCURRENTLY {_quoted(schema)}.{_quoted(index)}")


def index_drop(conn: sa.Connection, schema: str, index: str, *, mark: str) -> None:
    """Drop the index if it exists, without keeping others from the table. Waits as `index_rebuild` does."""
    _execute(conn, mark, f"DROP INDEX CONCURRENTLY IF EXISTS {_quoted(schema)}.{_quoted(index)}")


def is_leftover(index: str, candidate: str) -> bool:
    """Whether Postgres may have made the name `candidate` for a rebuild of `index`."""
    found = _LEFTOVER.fullmatch(candidate)
    if found is None:
        return False
    room = NAME_BYTES - len("_") - len(found["label"])
    kept = index.encode()[:room].decode(errors="ignore")  # never half a character
    return found["index"] == kept


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _execute(conn: sa.Connection, mark: str, text: str) -> None:
    # Without the option SQLAlchemy would pass an empty list, and some adapters would then take a % for a placeholder.
    conn.exec_driver_sql(marked(mark, text), execution_options={"no_parameters": True})


# -- looking


def _catalog_table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns), schema="pg_catalog")


_CLASS = _catalog_table("pg_class", "oid", "relname", "relnamespace")
_NAMESPACE = _catalog_table("pg_namespace", "oid", "nspname")
_INDEX = _catalog_table("pg_index", "indexrelid", "indrelid", "indisvalid")
_LOCKS = _catalog_table("pg_locks", "locktype", "database", "relation", "mode", "pid")
_DATABASE = _catalog_table("pg_database", "oid", "datname")
_ACTIVITY = _catalog_table("pg_stat_activity", "pid", "usesysid")
_MODES = (
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)


def _constant(text: str) -> sa.ColumnElement[Any]:
    return sa.literal_column(f"'{text}'")


def _is_busy(table: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Whether a session of somebody's, which autovacuum's workers are not, holds or awaits such a lock."""
    here = sa.select(_DATABASE.c.oid).where(_DATABASE.c.datname == catalog.current_database()).scalar_subquery()
    return sa.exists(
        sa.select(_LOCKS.c.pid)
        .select_from(_LOCKS.join(_ACTIVITY, _ACTIVITY.c.pid == _LOCKS.c.pid))
        .where(
            _LOCKS.c.locktype == _constant("relation"),
            _LOCKS.c.database == here,
            _LOCKS.c.relation == table,
            sa.cast(_LOCKS.c.mode, sa.Text()).in_([_constant(mode) for mode in _MODES]),
            _LOCKS.c.pid != catalog.pg_backend_pid(),
            _ACTIVITY.c.usesysid.is_not(None),
        )
    )


def _look(_schema: str) -> sa.Executable:
    """One row for each invalid index of the table, or one without; none where the index is missing."""
    invalid = _INDEX.alias("invalid")
    invalid_class = _CLASS.alias("invalid_class")
    others = invalid.join(invalid_class, invalid_class.c.oid == invalid.c.indexrelid)
    joined = (
        _CLASS.join(_NAMESPACE, _NAMESPACE.c.oid == _CLASS.c.relnamespace)
        .join(_INDEX, _INDEX.c.indexrelid == _CLASS.c.oid)
        .outerjoin(
            others,
            sa.and_(
                invalid.c.indrelid == _INDEX.c.indrelid,
                sa.not_(invalid.c.indisvalid),
                invalid.c.indexrelid != _INDEX.c.indexrelid,
            ),
        )
    )
    return (
        sa.select(
            _is_busy(_INDEX.c.indrelid).label("is_busy"),
            sa.cast(invalid_class.c.relname, sa.Text()).label("invalid"),
        )
        .select_from(joined)
        .where(
            sa.cast(_NAMESPACE.c.nspname, sa.Text()) == text_param("schema"),
            sa.cast(_CLASS.c.relname, sa.Text()) == text_param("index"),
        )
    )


_LOOK = Statement(_look)
