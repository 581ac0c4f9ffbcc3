"""What the database is and holds, asked before anything else: schema, versions, tables, the server."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from riverq.driver import ServerCapabilities
from riverq.query.statement import Statement, catalog, text_param
from riverq.query.tables import Tables, statement

_POSTGRES_18 = 180000


def current_schema(conn: sa.Connection, schema: str = "") -> str | None:
    """`schema` where it is given, else the first schema of the search_path that exists; None where none does."""
    if schema:
        return schema
    found: str | None = _CURRENT_SCHEMA.execute(conn, "").scalar_one()
    return found


def table_exists(conn: sa.Connection, schema: str, name: str) -> bool:
    """Whether the schema has the table (or view) `name`."""
    return bool(_TABLE_EXISTS.execute(conn, "", schema=schema, name=name).scalar_one())


def migration_versions(conn: sa.Connection, schema: str, line: str = "main") -> list[int]:
    """The applied versions of a line, ascending; empty where nothing was ever migrated.

    Before version 5 the table has no lines; all its rows belong to `main` then.
    """
    if not table_exists(conn, schema, "river_migration"):
        return []
    has_line = _COLUMN_EXISTS.execute(conn, "", schema=schema, name="river_migration", column="line").scalar_one()
    if has_line:
        return [row[0] for row in _versions.execute(conn, schema, line=line)]
    return [row[0] for row in _versions_before_lines.execute(conn, schema)] if line == "main" else []


def server_capabilities(conn: sa.Connection) -> ServerCapabilities:
    """What the server can do. YugabyteDB says so in `version()`; it has no LISTEN/NOTIFY and no `xmax`."""
    row: Any = _SERVER.execute(conn, "").one()
    return capabilities_of(row[0], row[1])


def capabilities_of(version: str, number: int) -> ServerCapabilities:
    """The capabilities of a server with this `version()` and `server_version_num`."""
    is_yugabyte = "-YB-" in version
    return ServerCapabilities(
        version_num=number,
        listen_notify=not is_yugabyte,
        xmax=not is_yugabyte,
        returning_old=number >= _POSTGRES_18 and not is_yugabyte,
    )


_CURRENT_SCHEMA = Statement(lambda _: sa.select(sa.cast(catalog.current_schema(), sa.Text())))

_SERVER = Statement(
    lambda _: sa.select(
        catalog.version(),
        sa.cast(catalog.current_setting(sa.literal_column("'server_version_num'")), sa.Integer()),
    )
)


# Read from the catalog by name: to_regclass would need the name quoted, and hides tables one may not see into.
_NAMESPACE = sa.table("pg_namespace", sa.column("oid"), sa.column("nspname"), schema="pg_catalog")
_CLASS = sa.table("pg_class", sa.column("oid"), sa.column("relname"), sa.column("relnamespace"), schema="pg_catalog")
_ATTRIBUTE = sa.table(
    "pg_attribute", sa.column("attrelid"), sa.column("attname"), sa.column("attisdropped"), schema="pg_catalog"
)


def _relation() -> sa.Select[Any]:
    return (
        sa.select(sa.true())
        .select_from(_CLASS.join(_NAMESPACE, _NAMESPACE.c.oid == _CLASS.c.relnamespace))
        .where(
            sa.cast(_NAMESPACE.c.nspname, sa.Text()) == text_param("schema"),
            sa.cast(_CLASS.c.relname, sa.Text()) == text_param("name"),
        )
    )


def _column() -> sa.Select[Any]:
    return (
        _relation()
        .join(_ATTRIBUTE, _ATTRIBUTE.c.attrelid == _CLASS.c.oid)
        .where(sa.cast(_ATTRIBUTE.c.attname, sa.Text()) == text_param("column"), sa.not_(_ATTRIBUTE.c.attisdropped))
    )


_TABLE_EXISTS = Statement(lambda _: sa.select(sa.exists(_relation())))
_COLUMN_EXISTS = Statement(lambda _: sa.select(sa.exists(_column())))


@statement
def _versions(t: Tables) -> sa.Executable:
    migration = t.migration.c
    return sa.select(migration.version).where(migration.line == text_param("line")).order_by(migration.version)


@statement
def _versions_before_lines(t: Tables) -> sa.Executable:
    return sa.select(t.migration.c.version).order_by(t.migration.c.version)
