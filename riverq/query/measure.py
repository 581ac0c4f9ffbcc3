"""What `riverq bench` asks a server and does to it: a schema of its own, and figures about the server and its jobs.

The schema carries a mark in its comment, written in the transaction that makes it. Only a schema with one's own mark is
dropped, so nobody else's can be, not even where the answer to COMMIT was lost or the name was taken over meanwhile.
Names of schemas are here what `riverq.config` accepts (letters, digits, underscores), and marks have no quotes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from riverq.job import JobState
from riverq.query.statement import Statement, catalog, integer_param, text_param, us_of
from riverq.query.tables import Tables, statement

PATIENCE = "10s"
"""How long to wait for a lock."""

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
    """Make the schema, marked.

    Raises what the server says: 42P06 where it exists, 23505 where another one made it meanwhile, 42501 where it may
    not be made.
    """
    conn.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
    _write_mark(conn, schema, mark)


def schema_mark(conn: sa.Connection, schema: str) -> str | None:
    """The schema's comment; None where there is none, or no such schema."""
    mark: str | None = _MARK.execute(conn, "", schema=schema).scalar_one_or_none()
    return mark


def schema_drop(conn: sa.Connection, schema: str, mark: str) -> bool | None:
    """Drop the schema and what is in it, if it carries `mark`; returns whether it did, None where there is none.

    It is dropped by its name, so it is locked before, by writing the mark once more, and looked at again: between the
    first look and the lock another one may have got the name.
    """
    found = _MARK.execute(conn, "", schema=schema).one_or_none()
    if found is None:
        return None
    if found.mark != mark:
        return False
    before = conn.begin_nested()
    _write_mark(conn, schema, mark)
    if _MARK.execute(conn, "", schema=schema).one_or_none() != found:
        before.rollback()
        return False
    before.commit()
    conn.exec_driver_sql(f'DROP SCHEMA "{schema}" CASCADE')
    return True


def missing_grant(conn: sa.Connection, _schema: str) -> str | None:
    """The GRANT that this role needs to make a schema; None where it has it."""
    found: str | None = _GRANT.execute(conn, "").scalar_one_or_none()
    return found


def lock_wait(conn: sa.Connection, _schema: str, key: int) -> None:
    """Return when no other transaction holds this advisory lock. Raises 55P03 after `PATIENCE`. Needs a transaction."""
    _LOCK_TIMEOUT.execute(conn, "", timeout=PATIENCE)
    _LOCK.execute(conn, "", key=key)


def job_analyze(conn: sa.Connection, schema: str) -> None:
    """Have the planner know the table now, which autovacuum sees to where jobs come and go all day."""
    conn.exec_driver_sql(f'ANALYZE "{schema}".river_job')


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


def _write_mark(conn: sa.Connection, schema: str, mark: str) -> None:
    conn.exec_driver_sql(f"COMMENT ON SCHEMA \"{schema}\" IS '{mark}'")


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
    lambda _: sa.select(
        sa.cast(catalog.obj_description(_NAMESPACE.c.oid, _constant("pg_namespace")), _TEXT).label("mark"),
        sa.cast(_NAMESPACE.c.oid, sa.BigInteger()),
    ).where(sa.cast(_NAMESPACE.c.nspname, _TEXT) == text_param("schema"))
)

_GRANT = Statement(
    lambda _: sa.select(
        catalog.concat(
            _constant("GRANT CREATE ON DATABASE "),
            catalog.quote_ident(sa.cast(catalog.current_database(), _TEXT)),
            _constant(" TO "),
            catalog.quote_ident(sa.cast(sa.func.current_user(), _TEXT)),
        )
    ).where(~catalog.has_database_privilege(catalog.current_database(), _constant("CREATE")))
)

_LOCK = Statement(lambda _: sa.select(catalog.pg_advisory_xact_lock(integer_param("key"))))

_LOCK_TIMEOUT = Statement(
    lambda _: sa.select(catalog.set_config(_constant("lock_timeout"), text_param("timeout"), sa.true()))
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
