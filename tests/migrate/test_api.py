from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from riverq import migrate
from riverq.errors import ConfigError, MigrationError, SchemaError
from tests.migrate.ways import ADAPTERS, ASYNC, SYNC, WEIRD, Place

EVERYTHING = [("main", n) for n in range(1, 9)] + [("riverq", 1)]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_up_status_validate_down(place: Place, adapter: str) -> None:
    assert not place.call(adapter, "validate").ok
    assert [(each.line, each.version) for each in place.call(adapter, "up", dry_run=True)] == EVERYTHING
    assert place.relations() == []
    applied = place.call(adapter, "up")
    assert [(each.line, each.version) for each in applied] == EVERYTHING
    assert all(each.direction == "up" and each.duration.total_seconds() > 0 for each in applied)
    assert place.call(adapter, "up") == []
    assert place.call(adapter, "validate") == migrate.Validation(ok=True, missing={"main": (), "riverq": ()})
    status = place.call(adapter, "status")
    assert [(each.line, each.version, each.applied, each.known) for each in status] == [
        (*v, True, True) for v in EVERYTHING
    ]
    assert status[0].applied_at.tzinfo is not None
    assert [each.version for each in place.call(adapter, "down", dry_run=True)] == [8]
    assert [each.version for each in place.call(adapter, "down")] == [8]
    assert [each.version for each in place.call(adapter, "down", target=0)] == [7, 6, 5, 4, 3, 2, 1]
    assert [each.version for each in place.call(adapter, "down", line="riverq")] == [1]
    assert place.relations() == []


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_any_schema_name(place: Place, adapter: str) -> None:
    for schema in WEIRD:
        with place.engine() as engine, engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(schema))
        place.call(adapter, "up", schema=schema)
    for schema in WEIRD:
        assert place.catalog(schema) == place.catalog(WEIRD[0]), schema
        assert "river_job" in place.catalog(schema)
        assert place.call(adapter, "validate", schema=schema).ok
    assert not [name for name in place.relations() if name.startswith("public.")]
    for schema in WEIRD:
        place.call(adapter, "down", target=-1, schema=schema)
        place.call(adapter, "down", line="riverq", schema=schema)
    assert place.relations() == []


@pytest.mark.parametrize("verb", ["up", "down", "status", "validate"])
def test_missing_schema_says_how_to_create_it(place: Place, verb: str) -> None:
    with pytest.raises(SchemaError, match=r"schema does not exist: 'My Jobs' .*run: CREATE SCHEMA \"My Jobs\""):
        place.call("psycopg", verb, schema="My Jobs")


def test_search_path_without_a_schema_is_told(place: Place) -> None:
    nowhere = {"options": "-csearch_path=nowhere"}
    with (
        place.engine(connect_args=nowhere) as engine,
        pytest.raises(SchemaError, match="no schema on the search_path exists"),
    ):
        migrate.up(engine)


def test_search_path_decides_without_a_schema(place: Place) -> None:
    place.execute("CREATE SCHEMA jobs")
    with place.engine(connect_args={"options": "-csearch_path=jobs"}) as engine:
        migrate.up(engine)
        assert migrate.validate(engine).ok
    assert place.rows("SELECT to_regclass('jobs.river_job') IS NOT NULL, to_regclass('public.river_job')") == [
        (True, None)
    ]


@pytest.mark.parametrize("adapter", SYNC)
def test_callers_transaction_decides(place: Place, adapter: str) -> None:
    with place.engine(adapter) as engine:
        with engine.connect() as connection:
            connection.execute(sa.text("CREATE TABLE mine (id int)"))
            assert len(migrate.up(connection)) == 9
            assert migrate.validate(connection).ok
            connection.rollback()
        assert place.relations() == []
        with engine.begin() as connection:
            migrate.up(connection)
        assert migrate.validate(engine).ok


@pytest.mark.parametrize("adapter", ASYNC)
def test_callers_async_transaction_decides(place: Place, adapter: str) -> None:
    async def run() -> None:
        engine = place.async_engine(adapter)
        async with engine.connect() as connection:
            await connection.execute(sa.text("CREATE TABLE mine (id int)"))
            assert len(await migrate.up_async(connection)) == 9
            assert (await migrate.validate_async(connection)).ok
            await connection.rollback()
        assert place.relations() == []
        async with engine.begin() as connection:
            await migrate.up_async(connection)
        assert (await migrate.validate_async(engine)).ok
        await engine.dispose()

    asyncio.run(run())


def test_unused_connection_is_committed(place: Place) -> None:
    with place.engine() as engine, engine.connect() as connection:
        migrate.up(connection)
        assert not connection.in_transaction()
        assert migrate.validate(connection).ok
        assert not connection.in_transaction()
    assert place.call("psycopg", "validate").ok


@pytest.mark.parametrize("adapter", SYNC)
def test_autocommit_is_refused_before_any_change(place: Place, adapter: str) -> None:
    with place.engine(adapter, isolation_level="AUTOCOMMIT") as engine:
        with pytest.raises(MigrationError, match="cannot migrate in AUTOCOMMIT"):
            migrate.up(engine)
        with engine.begin() as connection, pytest.raises(MigrationError, match="cannot migrate in AUTOCOMMIT"):
            migrate.up(connection)
    assert place.relations() == []


@pytest.mark.parametrize("adapter", ASYNC)
def test_autocommit_is_refused_on_async_engines(place: Place, adapter: str) -> None:
    async def run() -> None:
        engine = place.async_engine(adapter, isolation_level="AUTOCOMMIT")
        with pytest.raises(MigrationError, match="cannot migrate in AUTOCOMMIT"):
            await migrate.up_async(engine)
        await engine.dispose()

    asyncio.run(run())
    assert place.relations() == []


@pytest.mark.parametrize("adapter", SYNC)
def test_strict_engines_migrate_and_strict_transactions_do_not(place: Place, adapter: str) -> None:
    with place.engine(adapter, isolation_level="SERIALIZABLE") as engine:
        assert len(migrate.up(engine)) == 9
        with engine.begin() as connection, pytest.raises(MigrationError, match="isolation level serializable"):
            migrate.down(connection)
    assert place.call("psycopg", "validate").ok


def test_failure_names_the_version_and_leaves_nothing(place: Place) -> None:
    place.execute("CREATE TABLE river_queue (id int)")
    with pytest.raises(MigrationError, match=r"migration main 004 \[up\] pending and more failed: .*river_queue"):
        place.up()
    assert [name for name in place.relations() if "river_queue" not in name] == []


def test_schema_translate_map_is_refused(place: Place) -> None:
    with place.engine(execution_options={"schema_translate_map": {None: "tenant"}}) as engine:
        for call in (migrate.up, migrate.validate):
            with pytest.raises(ConfigError, match=r"schema_translate_map .* pass schema= instead"):
                call(engine)


def test_wrong_objects_are_told_the_right_function(place: Place) -> None:
    engine = place.async_engine("asyncpg")
    bad: Any = engine
    with pytest.raises(ConfigError, match="await the twin"):
        migrate.up(bad)
    bad = object()
    with pytest.raises(ConfigError, match="expected an Engine or a Connection, got: object"):
        migrate.up(bad)
    with pytest.raises(ConfigError, match="expected an AsyncEngine"):
        asyncio.run(migrate.up_async(bad))


def test_line_alone(place: Place) -> None:
    assert place.up(line="main") == EVERYTHING[:8]
    result = place.call("psycopg", "validate")
    assert result.ok
    assert result.missing == {"main": (), "riverq": (1,)}
    assert len(result.warnings) == 1
    assert not place.call("psycopg", "validate", line="riverq").ok
    assert place.up() == EVERYTHING[8:]
    assert place.down() == [("main", 8)]


def test_validation_names_the_command(place: Place) -> None:
    place.execute('CREATE SCHEMA "My Jobs"')
    place.up(target=6, schema="My Jobs")
    result = place.call("psycopg", "validate", schema="My Jobs")
    assert result.missing["main"] == (7, 8)
    assert result.messages == ("migration line 'main' lacks version 7, 8: run `riverq migrate-up --schema 'My Jobs'`",)
    assert place.call("psycopg", "validate", schema="My Jobs", target=6).ok
    with pytest.raises(ConfigError, match="unknown version"):
        place.call("psycopg", "validate", target=9)


def test_role_without_temp_or_superuser_migrates(place: Place) -> None:
    role = "riverq_plain_" + place.url.rpartition("_")[2]
    database = sa.make_url(place.url).database
    place.execute(
        f"CREATE ROLE {role} LOGIN; REVOKE TEMP ON DATABASE {database} FROM PUBLIC; "
        f"CREATE SCHEMA jobs AUTHORIZATION {role}"
    )
    try:
        with place.engine() as engine, engine.connect() as connection:
            connection.execute(sa.text(f"SET ROLE {role}"))
            connection.commit()
            assert len(migrate.up(connection, schema="jobs")) == 9
            assert migrate.validate(connection, schema="jobs").ok
            assert len(migrate.down(connection, schema="jobs", target=0)) == 8
    finally:
        place.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
