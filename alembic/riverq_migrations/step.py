"""What every revision does around its DDL: find the schema, take the lock, keep the record of versions in step.

A revision is called in two ways. In an application's Alembic environment Alembic calls `upgrade()`, and the schema
comes from that environment. `riverq.migrate` calls `upgrade(operations=…, schema=…)` with operations of its own, so
that no module-wide state of Alembic is touched: two threads, two tasks of an event loop, or a migration started from
within another one do not meet.

The record (`river_migration`, or `riverq_migration` for riverq's own line) alone decides whether a version is applied.
A version that is recorded is skipped, whoever applied it; Alembic's own version table in an application's database is
only a consequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy.sql import quoted_name

LOCK_KEY = 125797283492465
"""ASCII "riverq". One key for the whole database: two schemas may share an enum label's side connection, and migrating
is rare. `riverq.migrate` takes the same key; a test compares the two."""

MAIN = "main"
OWN = "riverq"

Body = Callable[["River"], None]
Step = Callable[..., bool]


@dataclass(frozen=True)
class River:
    """Where River's objects live, and the operations to make them with."""

    op: Operations
    schema: str | None

    @classmethod
    def at(cls, operations: Operations, schema: str | None) -> River:
        """River in a schema of any name, or where the search_path decides."""
        # Marked as quoted, because Alembic would split a plain name at its dots.
        return cls(operations, quoted_name(schema, quote=True) if schema else None)

    @cached_property
    def q(self) -> str:
        """The prefix of an unquoted name in raw SQL: `"my schema".`, or nothing where the search_path decides.

        Quoted here, because a dialect's own quoter also doubles `%` for its parameter style.
        """
        return quote(self.schema) + "." if self.schema else ""

    @property
    def offline(self) -> bool:
        """True while SQL is printed and the database cannot be asked."""
        return self.op.get_context().as_sql

    @property
    def connection(self) -> sa.Connection:
        """The connection that migrates; only while online."""
        return self.op.get_bind()

    def execute(self, sql: str) -> None:
        """Run one statement without parameters. One statement a call: asyncpg prepares, and accepts no more."""
        self.op.execute(literal(sql))

    def scalar(self, sql: str, **parameters: Any) -> Any:
        """Ask the database one thing. Where the SQL names the schema there can be no parameters."""
        return self.connection.scalar(sa.text(sql) if parameters else literal(sql), parameters)

    def has_table(self, name: str) -> bool:
        """Whether the table exists in River's schema."""
        return bool(self.scalar("SELECT to_regclass(:name) IS NOT NULL", name=f"{self.q}{name}"))

    def has_line_column(self) -> bool:
        """Whether `river_migration` has the form it got with version 5."""
        sql = "SELECT FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attname = 'line' AND NOT attisdropped"
        return bool(self.scalar(f"SELECT EXISTS ({sql})", name=f"{self.q}river_migration"))


def quote(name: str) -> str:
    """An SQL identifier, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(sql: str) -> sa.TextClause:
    """SQL without parameters, in which a colon is a colon."""
    return sa.text(sql.replace(":", r"\:"))


def up(version: int, line: str = MAIN) -> Callable[[Body], Step]:
    """Make a function of DDL the `upgrade()` of a revision. It returns whether it did anything."""

    def decorate(ddl: Body) -> Step:
        def upgrade(*, operations: Operations | None = None, schema: str | None = None, **_: object) -> bool:
            river = _river(operations, schema)
            if not river.offline and _recorded(river, line, version):
                return False
            ddl(river)
            _record(river, line, version)
            return True

        return upgrade

    return decorate


def down(version: int, line: str = MAIN) -> Callable[[Body], Step]:
    """Make a function of DDL the `downgrade()` of a revision. It returns whether it did anything."""

    def decorate(ddl: Body) -> Step:
        def downgrade(*, operations: Operations | None = None, schema: str | None = None, **_: object) -> bool:
            river = _river(operations, schema)
            if not river.offline and not _recorded(river, line, version):
                return False
            ddl(river)
            if version > 1:  # the table that holds the record goes with version 1
                _forget(river, line, version)
            return True

        return downgrade

    return decorate


def _river(operations: Operations | None, schema: str | None) -> River:
    """The caller's operations, or those of the Alembic environment that runs the revision."""
    if operations is not None:
        return River.at(operations, schema)
    river = River.at(Operations(context.get_context()), _schema_of_environment())
    # Each revision takes the lock for its transaction: an environment of the application's does not know of it.
    river.execute(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
    if not river.offline:
        translated = river.connection.get_execution_options().get("schema_translate_map")
        if translated and river.schema in translated:
            raise CommandError(
                f"schema_translate_map {dict(translated)!r} is not followed by River's migrations: set "
                'config.attributes["riverq_schema"] in env.py, and leave this schema out of the map'
            )
    return river


def _schema_of_environment() -> str | None:
    config = context.config
    schema = (
        config.attributes.get("riverq_schema")
        or context.get_x_argument(as_dictionary=True).get("riverq_schema")
        or config.get_alembic_option("riverq_schema")
    )
    if schema is not None and not isinstance(schema, str):
        raise CommandError(f"riverq_schema must be one name, got {schema!r}")
    return schema or None


def _recorded(river: River, line: str, version: int) -> bool:
    table = "riverq_migration" if line == OWN else "river_migration"
    if not river.has_table(table):
        return False
    of_line = " AND line = 'main'" if line == MAIN and river.has_line_column() else ""
    return bool(river.scalar(f"SELECT EXISTS (SELECT FROM {river.q}{table} WHERE version = {version}{of_line})"))


def _record(river: River, line: str, version: int) -> None:
    if line == OWN:
        river.execute(f"INSERT INTO {river.q}riverq_migration (version) VALUES ({version})")
    elif _knows_lines(river, offline=version >= 5):
        river.execute(f"INSERT INTO {river.q}river_migration (line, version) VALUES ('main', {version})")
    else:
        river.execute(f"INSERT INTO {river.q}river_migration (version) VALUES ({version})")


def _forget(river: River, line: str, version: int) -> None:
    if line == OWN:
        river.execute(f"DELETE FROM {river.q}riverq_migration WHERE version = {version}")
    elif _knows_lines(river, offline=version > 5):
        river.execute(f"DELETE FROM {river.q}river_migration WHERE line = 'main' AND version = {version}")
    else:
        river.execute(f"DELETE FROM {river.q}river_migration WHERE version = {version}")


def _knows_lines(river: River, *, offline: bool) -> bool:
    """Asked of the catalog, because a record may have gaps; assumed by version while offline."""
    return offline if river.offline else river.has_line_column()
