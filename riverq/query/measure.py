"""What `riverq bench` asks a server and does to it: a schema of its own, and figures about the server and its jobs.

The schema carries a mark in its comment, written in the transaction that makes it. Only a schema with one's own mark is
dropped, so nobody else's can be, not even where the answer to COMMIT was lost or the name was taken over meanwhile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.schema import CreateSchema, DropSchema
from sqlalchemy.sql.elements import quoted_name

from riverq.job import JobState
from riverq.query.statement import Statement, catalog, text_param, us_of
from riverq.query.tables import Tables, statement

_TEXT = sa.Text()


class ServerFacts(NamedTuple):
    """The server's version and what its commits promise."""

    version: str
    fsync: str
    synchronous_commit: str


class Backend(NamedTuple):
    """One of a program's connections as the server sees it; `wait_type` and `wait_event` are None while it computes."""

    pid: int
    started_us: int
    state: str
    wait_type: str | None
    wait_event: str | None


class Tally(NamedTuple):
    """The jobs of one queue, counted in their table.

    `claims` and `completions` are the statements that it took. `worked_us` is the time between the start of the first
    claim and this count, by the server's clock; None before the first claim.
    """

    jobs: int
    completed: int
    runs: int
    claims: int
    completions: int
    worked_us: int | None


def schema_create(conn: sa.Connection, schema: str, mark: str) -> None:
    """Make the schema, marked. Raises what the server says: 42P06 where it exists, 42501 where it may not be made.

    `mark` is letters, digits and spaces.
    """
    conn.execute(CreateSchema(quoted_name(schema, True)))
    _execute_on_schema(conn, "COMMENT ON SCHEMA {schema} IS '" + mark + "'", schema)


def schema_mark(conn: sa.Connection, schema: str) -> str | None:
    """The schema's comment; None where there is none, or no such schema."""
    found: str | None = _MARK.execute(conn, "", schema=schema).scalar_one_or_none()
    return found


def schema_drop(conn: sa.Connection, schema: str, mark: str) -> bool:
    """Drop the schema and what is in it, if it carries `mark`; returns whether it did."""
    if schema_mark(conn, schema) != mark:
        return False
    conn.execute(DropSchema(quoted_name(schema, True), cascade=True))
    return True


def job_analyze(conn: sa.Connection, schema: str) -> None:
    """Have the planner know the table now, which autovacuum sees to where jobs come and go all day."""
    _execute_on_schema(conn, "ANALYZE {schema}.river_job", schema)


def select_one(conn: sa.Connection, _schema: str) -> int:
    """The least that can be asked."""
    one: int = _ONE.execute(conn, "").scalar_one()
    return one


def server_facts(conn: sa.Connection, _schema: str) -> ServerFacts:
    """Which server this is."""
    return ServerFacts._make(_FACTS.execute(conn, "").one())


def wal_position(conn: sa.Connection, _schema: str) -> int:
    """How many bytes of WAL were ever written. Raises where the role may not ask, or the server has none."""
    position: int = _WAL.execute(conn, "").scalar_one()
    return position


def backends(conn: sa.Connection, _schema: str, application_name: str) -> list[Backend]:
    """The connections of that name to this database, without the one that asks."""
    return [Backend._make(row) for row in _BACKENDS.rows(conn, "", application_name=application_name)]


def job_tally(conn: sa.Connection, schema: str, queue: str) -> Tally:
    """Count the jobs of `queue`."""
    return Tally._make(_tally.execute(conn, schema, queue=queue).one())


def _execute_on_schema(conn: sa.Connection, template: str, schema: str) -> None:
    quoted = '"' + schema.replace('"', '""') + '"'
    conn.execute(sa.text(template.format(schema=quoted.replace(":", r"\:"))))  # text() takes a colon for a parameter


# -- the statements

_NAMESPACE = sa.table("pg_namespace", sa.column("oid"), sa.column("nspname"), schema="pg_catalog")
_ACTIVITY = sa.table(
    "pg_stat_activity",
    sa.column("pid"),
    sa.column("datname"),
    sa.column("application_name"),
    sa.column("backend_start"),
    sa.column("state"),
    sa.column("wait_event_type"),
    sa.column("wait_event"),
    schema="pg_catalog",
)


def _constant(text: str) -> sa.ColumnElement[Any]:
    return sa.literal_column(f"'{text}'")


def _setting(name: str) -> sa.ColumnElement[str]:
    return sa.cast(catalog.current_setting(_constant(name)), _TEXT)


_ONE = Statement(lambda _: sa.select(sa.literal_column("1")))

_FACTS = Statement(lambda _: sa.select(_setting("server_version"), _setting("fsync"), _setting("synchronous_commit")))

_WAL = Statement(
    lambda _: sa.select(
        sa.cast(
            catalog.pg_wal_lsn_diff(catalog.pg_current_wal_insert_lsn(), sa.literal_column("'0/0'::pg_catalog.pg_lsn")),
            sa.BigInteger(),
        )
    )
)

_MARK = Statement(
    lambda _: sa.select(sa.cast(catalog.obj_description(_NAMESPACE.c.oid, _constant("pg_namespace")), _TEXT)).where(
        sa.cast(_NAMESPACE.c.nspname, _TEXT) == text_param("schema")
    )
)

_BACKENDS = Statement(
    lambda _: sa.select(
        sa.cast(_ACTIVITY.c.pid, sa.Integer()),
        us_of(_ACTIVITY.c.backend_start),
        sa.func.coalesce(sa.cast(_ACTIVITY.c.state, _TEXT), _constant("unknown")),
        sa.cast(_ACTIVITY.c.wait_event_type, _TEXT),
        sa.cast(_ACTIVITY.c.wait_event, _TEXT),
    ).where(
        sa.cast(_ACTIVITY.c.application_name, _TEXT) == text_param("application_name"),
        _ACTIVITY.c.datname == catalog.current_database(),
        _ACTIVITY.c.pid != catalog.pg_backend_pid(),
    )
)


@statement
def _tally(t: Tables) -> sa.Executable:
    job = t.job.c
    is_completed = job.state == t.state(JobState.COMPLETED)
    return sa.select(
        catalog.count(job.id),
        catalog.count(job.id).filter(is_completed),
        sa.cast(sa.func.coalesce(catalog.sum(job.attempt), sa.literal_column("0")), sa.BigInteger()),
        catalog.count(job.attempted_at.distinct()),
        catalog.count(job.finalized_at.distinct()),
        us_of(catalog.statement_timestamp()) - us_of(catalog.min(job.attempted_at), nullable=True),
    ).where(job.queue == text_param("queue"))
