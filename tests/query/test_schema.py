from __future__ import annotations

import pytest
import sqlalchemy as sa

from riverq import migrate
from riverq.query.schema import (
    capabilities_of,
    current_schema,
    migration_versions,
    server_capabilities,
    table_exists,
)
from riverq.query.tables import tables
from riverq.unique import MASK
from tests.fix_database import Transact
from tests.fix_schema import SchemaPool
from tests.query.arrange import Caller, Table


def test_the_schema_is_the_given_one_or_the_sessions(transact: Transact, adapter: str, schema: str) -> None:
    def found(conn: sa.Connection, path: str) -> str | None:
        conn.exec_driver_sql(f"SET LOCAL search_path = {path}")
        return current_schema(conn)

    assert transact(adapter, current_schema, "given") == "given"
    assert transact(adapter, found, f"missing, {schema}") == schema
    assert transact(adapter, found, "missing") is None


def test_versions_of_both_lines_rows_of_others_apart(call: Caller, scratch_schema: str) -> None:
    call.schema = scratch_schema
    assert call(migration_versions)[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert call(migration_versions, "pro") == []


def test_without_the_table_there_are_no_versions(call: Caller, empty_schema: str) -> None:
    call.schema = empty_schema
    assert call(migration_versions) == []
    assert call(table_exists, "river_job") is False


def test_before_version_5_every_row_is_of_main(call: Caller, empty_schema: str, engine: sa.Engine) -> None:
    migrate.up(engine, line="main", target=4, schema=empty_schema)
    call.schema = empty_schema
    assert call(migration_versions) == [1, 2, 3, 4]
    assert call(migration_versions, "other") == []


def test_tables_are_looked_for_in_one_schema_only(call: Caller) -> None:
    assert call(table_exists, "river_job") is True
    assert call(table_exists, "River_Job") is False
    call.schema = "pg_catalog"
    assert call(table_exists, "river_job") is False
    assert call(table_exists, "pg_class") is True


def test_a_server_says_what_it_can_do(call: Caller, pytestconfig: pytest.Config) -> None:
    found = call(lambda conn, _: server_capabilities(conn))
    is_yugabyte = pytestconfig.getoption("--server") == "yugabyte"
    assert found.version_num >= 140000
    assert (found.listen_notify, found.xmax) == (not is_yugabyte, not is_yugabyte)
    assert found.returning_old == (found.version_num >= 180000 and not is_yugabyte)


@pytest.mark.parametrize(
    ("version", "number", "expected"),
    [
        ("PostgreSQL 15.2-YB-2.25.1.0-b0 on x86_64-pc-linux-gnu", 150002, (False, False, False)),
        ("PostgreSQL 17.4 (Debian 17.4-1) on x86_64", 170004, (True, True, False)),
        ("PostgreSQL 18.0 on aarch64", 180000, (True, True, True)),
    ],
)
def test_capabilities_follow_from_the_version(version: str, number: int, expected: tuple[bool, bool, bool]) -> None:
    found = capabilities_of(version, number)
    assert (found.listen_notify, found.xmax, found.returning_old) == expected


def test_the_tables_equal_the_migrated_ones(schema: str, engine: sa.Engine) -> None:
    expected = tables(schema)
    reflected = sa.MetaData(schema=schema)
    with engine.connect() as conn:
        reflected.reflect(
            conn, only=lambda name, _: name.startswith(("river_", "riverq_")) and name != "riverq_migration"
        )
        found, meant = [
            {
                (
                    table.name,
                    column.name,
                    column.type.compile(conn.dialect).replace('"', ""),
                    column.nullable,
                    column.primary_key,
                )
                for table in metadata.tables.values()
                for column in table.columns
            }
            for metadata in (reflected, expected.metadata)
        ]
    assert meant == found


def test_the_bits_equal_the_servers_function(schema: str, table: Table, engine: sa.Engine) -> None:
    t = tables(schema)
    with engine.connect() as conn:
        for state, bit in MASK.items():
            mask = sa.cast(sa.literal_column(f"'{bit:08b}'"), sa.dialects.postgresql.BIT(8))
            found = [other for other in MASK if conn.scalar(sa.select(t.in_mask(mask, t.state(other))))]
            assert found == [state]


def test_weird_names_are_schemas_too(
    transact: Transact, adapter: str, schema_pool: SchemaPool, engine: sa.Engine
) -> None:
    name = "Wei\"rd %s: $1 'Ä'"
    schema_pool.create(name)
    try:
        migrate.up(engine, schema=name)
        assert transact(adapter, migration_versions, name)[:7] == [1, 2, 3, 4, 5, 6, 7]
        assert transact(adapter, table_exists, name, "river_queue") is True
    finally:
        schema_pool.drop(name)
