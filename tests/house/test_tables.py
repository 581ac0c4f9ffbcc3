"""`riverq.query.tables` describes exactly what the migrations make."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from riverq.query.tables import tables

NOT_DESCRIBED = {"river_client", "river_client_queue", "river_migration_old"}
"""Tables that River makes and no client uses."""

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own constructor has no types


def _type(kind: sa.types.TypeEngine[Any]) -> str:
    """A type as DDL, with the spellings that mean the same made one, and without a schema."""
    text = kind.compile(dialect=DIALECT).lower().replace('"', "")
    text = text.replace("character varying", "varchar").rsplit(".", 1)[-1]
    return {"varchar": "text", "int": "integer", "timestamp with time zone": "timestamptz"}.get(text, text)


def _described(schema: str) -> dict[str, dict[str, tuple[str, bool]]]:
    return {
        table.name: {column.name: (_type(column.type), bool(column.nullable)) for column in table.columns}
        for table in tables(schema).metadata.sorted_tables
    }


@pytest.fixture
def migrated(schema: str, engine: sa.Engine) -> dict[str, dict[str, tuple[str, bool]]]:
    """What the catalog says."""
    inspector = sa.inspect(engine)
    return {
        name: {c["name"]: (_type(c["type"]), c["nullable"]) for c in inspector.get_columns(name, schema=schema)}
        for name in inspector.get_table_names(schema=schema)
    }


def test_every_described_table_equals_the_migrated_one(
    schema: str, migrated: dict[str, dict[str, tuple[str, bool]]]
) -> None:
    for name, columns in _described(schema).items():
        assert columns == migrated[name], f"{name} differs from the migrations"


def test_every_migrated_table_is_described(schema: str, migrated: dict[str, dict[str, tuple[str, bool]]]) -> None:
    main = {name for name in migrated if name.startswith("river_")}
    assert main - NOT_DESCRIBED <= set(_described(schema))


def test_the_state_enum_has_the_same_labels(schema: str, engine: sa.Engine) -> None:
    enums = {enum["name"]: enum["labels"] for enum in sa.inspect(engine).get_enums(schema=schema)}  # type: ignore[attr-defined]  # the PostgreSQL inspector
    assert sorted(enums["river_job_state"]) == sorted(tables(schema).state_type.enums)
