"""Reads which versions a database records. `river_migration` alone decides for line main, whichever client wrote it."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from riverq.errors import ConfigError, SchemaError
from riverq.versions import RIVERQ


def quote(name: str) -> str:
    """An SQL identifier, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def recorded(connection: sa.Connection, line: str, schema: str | None) -> dict[int, datetime]:
    """The versions of a line that the database records, with the time each was applied. Unknown ones are among them."""
    table = "riverq_migration" if line == RIVERQ else "river_migration"
    name = f"{quote(schema)}.{table}" if schema else table
    found = connection.execute(
        sa.text(
            "SELECT to_regclass(:name) IS NOT NULL, EXISTS (SELECT FROM pg_attribute "
            "WHERE attrelid = to_regclass(:name) AND attname = 'line' AND NOT attisdropped)"
        ),
        {"name": name},
    ).one()
    if not found[0]:
        return {}
    # Until version 5 the table has no lines; all its rows are main's.
    where = "WHERE line = 'main'" if found[1] else ""
    statement = f"SELECT version, created_at FROM {name} {where}".replace(":", r"\:")
    return {row.version: row.created_at for row in connection.execute(sa.text(statement))}


def check_schema(connection: sa.Connection, schema: str | None) -> None:
    """See that the schema exists and will be followed by every statement.

    Raises SchemaError when it is missing and ConfigError when the connection translates schema names.
    """
    translated = connection.get_execution_options().get("schema_translate_map")
    if translated and schema in translated:
        raise ConfigError(
            f"schema_translate_map {dict(translated)!r} is not followed by migrations: pass schema= instead, "
            "and an engine or connection that does not translate it"
        )
    if schema is None:
        if connection.scalar(sa.text("SELECT current_schema() IS NULL")):
            raise SchemaError("no schema on the search_path exists: create one, or pass schema=")
    elif not connection.scalar(sa.text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :n)"), {"n": schema}):
        raise SchemaError(
            f"schema does not exist: {schema!r} (migrations do not create it; run: CREATE SCHEMA {quote(schema)})"
        )
