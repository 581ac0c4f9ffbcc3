"""River's tables as SQLAlchemy sees them, for one schema, and the expressions every statement shares.

They equal the head of the migrations (a test compares them with the catalog); DDL is not made from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import FunctionElement

from riverq.driver import POSTGRES, ServerCapabilities
from riverq.job import JobState
from riverq.query.statement import TIMESTAMP, Statement, at_us, catalog


class _InBitmask(FunctionElement[bool]):
    """River's function in its schema. SQLAlchemy's functions leave a schema of capitals unquoted, and fail at `%`."""

    type = sa.Boolean()
    inherit_cache = False

    def __init__(self, schema: quoted_name, *arguments: sa.ColumnElement[Any]) -> None:
        self.schema = schema
        super().__init__(*arguments)


@compiles(_InBitmask)
def _in_bitmask(element: _InBitmask, compiler: Any, **options: Any) -> str:
    schema = compiler.preparer.quote(element.schema)
    return f"{schema}.river_job_state_in_bitmask({compiler.process(element.clauses, **options)})"


class Tables:
    """The tables, the state type and the function of one schema, quoted however the schema is spelt.

    `server` is what the server can do that a statement is written for.
    """

    def __init__(self, schema: str, server: ServerCapabilities = POSTGRES) -> None:
        self.server = server
        self._schema = quoted_name(schema, True)
        self.metadata = sa.MetaData(schema=self._schema)
        self.state_type = pg.ENUM(
            *(state.value for state in JobState), name="river_job_state", schema=self._schema, create_type=False
        )
        self.job = _job(self.metadata, self.state_type)
        self.leader = _leader(self.metadata)
        self.queue = _queue(self.metadata)
        self.migration = _migration(self.metadata)
        self.notification = _notification(self.metadata)
        self.client = _client(self.metadata)
        self.timed_pause = _timed_pause(self.metadata)
        self.periodic_job = _periodic_job(self.metadata)

    def state(self, state: JobState) -> sa.ColumnElement[Any]:
        """A state as a constant of the enum."""
        return sa.cast(sa.literal_column(f"'{state.value}'"), self.state_type)

    def in_mask(self, mask: sa.ColumnElement[Any], state: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether a row with this mask is in the unique index while it has this state."""
        return _InBitmask(self._schema, mask, state)

    def is_run(
        self, us: sa.ColumnElement[int], client_id: sa.ColumnElement[str], job: sa.FromClause | None = None
    ) -> sa.ColumnElement[bool]:
        """The fence: the row is still running, as claimed at `us` by this client.

        A CASE, because a plain AND would let the planner read every running row through an index on `state`, and would
        make it expect next to no rows.
        """
        columns = (self.job if job is None else job).c
        last = columns.attempted_by[catalog.cardinality(columns.attempted_by)]
        mine = sa.and_(
            columns.state == self.state(JobState.RUNNING), columns.attempted_at == at_us(us), last == client_id
        )
        return sa.case((mine, sa.true()), else_=sa.false())

    def cancel_mark(self, job: sa.FromClause | None = None) -> sa.ColumnElement[str]:
        """When somebody last asked to cancel the job: metadata's `cancel_attempted_at`."""
        return (self.job if job is None else job).c.metadata.op("->>")(sa.literal_column("'cancel_attempted_at'"))


@lru_cache(maxsize=64)
def tables(schema: str, server: ServerCapabilities = POSTGRES) -> Tables:
    """The tables of `schema`, made once."""
    return Tables(schema, server)


def statement(build: Callable[[Tables], sa.Executable]) -> Statement:
    """Make the function that writes a statement into the statement."""
    return Statement.by_server(lambda schema, server: build(tables(schema, server)))


def _job(metadata: sa.MetaData, state_type: pg.ENUM) -> sa.Table:
    return sa.Table(
        "river_job",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("state", state_type, nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("max_attempts", sa.SmallInteger, nullable=False),
        sa.Column("attempted_at", TIMESTAMP),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("finalized_at", TIMESTAMP),
        sa.Column("scheduled_at", TIMESTAMP, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("args", pg.JSONB, nullable=False),
        sa.Column("attempted_by", pg.ARRAY(sa.Text)),
        sa.Column("errors", pg.ARRAY(pg.JSONB)),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("metadata", pg.JSONB, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("tags", pg.ARRAY(sa.String(255)), nullable=False),
        sa.Column("unique_key", pg.BYTEA),
        sa.Column("unique_states", pg.BIT(8)),
    )


def _leader(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "river_leader",
        metadata,
        sa.Column("elected_at", TIMESTAMP, nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False),
        sa.Column("leader_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, primary_key=True),
    )


def _queue(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "river_queue",
        metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("metadata", pg.JSONB, nullable=False),
        sa.Column("paused_at", TIMESTAMP),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
    )


def _migration(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "river_migration",
        metadata,
        sa.Column("line", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("created_at", TIMESTAMP, nullable=False),
    )


def _notification(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "river_notification",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
    )


# -- riverq's own tables, on a migration line of their own; a database may lack them


def _client(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "riverq_client",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("incarnation", sa.Uuid, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("seen_at", TIMESTAMP, nullable=False),
        sa.Column("lock_taken", sa.Boolean, nullable=False),
    )


def _timed_pause(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "riverq_queue",
        metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("paused_at", TIMESTAMP, nullable=False),
        sa.Column("until", TIMESTAMP, nullable=False),
    )


def _periodic_job(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "riverq_periodic_job",
        metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("next_run_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
    )
