"""Databases that another client migrated, or goes on migrating, are taken over as they are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from riverq import migrate
from riverq.errors import MigrationError
from tests.migrate.test_catalog import rivers
from tests.migrate.ways import ADAPTERS, ASYNC, SYNC, Place

LABELS = "SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum"


@pytest.mark.parametrize("version", range(1, 9))
def test_any_version_is_adopted(place: Place, version: int) -> None:
    place.left_by_another_client(version)
    before = place.record()
    assert [each.version for each in place.call("psycopg", "status", line="main") if each.applied] == [
        *range(1, version + 1)
    ]
    assert place.up() == [("main", n) for n in range(version + 1, 9)] + [("riverq", 1)]
    assert place.record()[:version] == before  # times are kept: nothing was applied twice
    assert place.catalog() == rivers(8)


def test_left_by_another_client_lacks_the_label(place: Place) -> None:
    place.left_by_another_client(3)
    assert "pending" not in place.rows(LABELS)[0][0]
    assert place.catalog().replace(" ", "") == rivers(3).replace(" pending", "").replace(" ", "")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_label_is_added_in_one_transaction(place: Place, adapter: str, version: int) -> None:
    place.execute('CREATE SCHEMA "50%:Jobs"')
    place.left_by_another_client(version, "50%:Jobs")
    assert len(place.call(adapter, "up", schema="50%:Jobs")) == 9 - version
    assert place.catalog("50%:Jobs") == rivers(8)


@pytest.mark.parametrize("adapter", SYNC)
def test_label_is_added_for_a_callers_transaction_with_a_drained_pool(place: Place, adapter: str) -> None:
    place.left_by_another_client(3)
    pool: dict[str, Any] = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 60}
    with place.engine(adapter, **pool) as engine, engine.begin() as connection:
        migrate.up(connection)
    assert place.catalog() == rivers(8)


@pytest.mark.parametrize("adapter", ASYNC)
def test_label_is_added_for_an_async_callers_transaction(place: Place, adapter: str) -> None:
    place.left_by_another_client(3)

    async def run() -> None:
        engine = place.async_engine(adapter)
        async with engine.begin() as connection:
            await migrate.up_async(connection)
        await engine.dispose()

    asyncio.run(run())
    assert place.catalog() == rivers(8)


def test_label_goes_to_the_type_on_the_callers_search_path(place: Place) -> None:
    for schema in ("one", "two"):
        place.execute(f"CREATE SCHEMA {schema}")
        place.left_by_another_client(3, schema)
    with place.engine() as engine, engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL search_path TO two"))
        migrate.up(connection)
    assert place.catalog("two") == rivers(8)
    assert "pending" not in place.catalog("one")


def test_without_a_second_connection_nothing_is_changed(place: Place) -> None:
    place.left_by_another_client(2)
    before = place.catalog()
    with place.engine() as engine:
        connected: list[bool] = []

        @sa.event.listens_for(engine, "do_connect")
        def one_only(*_: Any) -> None:
            if connected:
                raise sa.exc.OperationalError("connect", {}, Exception("too many connections for role"))
            connected.append(True)

        with pytest.raises(MigrationError) as caught:
            migrate.up(engine)
    message = str(caught.value)
    assert "003" in message
    assert "too many connections for role" in message
    assert """ALTER TYPE "public".river_job_state ADD VALUE IF NOT EXISTS 'pending' AFTER 'discarded'""" in message
    assert place.catalog() == before
    assert [version for version, _ in place.record()] == [1, 2]


def test_newer_versions_are_tolerated_and_left_alone(place: Place) -> None:
    place.left_by_another_client(7)
    place.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9), ('pro', 3)")
    assert place.up(line="main") == [("main", 8)]
    assert place.call("psycopg", "validate").ok
    newer = [each for each in place.call("psycopg", "status") if not each.known]
    assert [(each.line, each.version, each.applied) for each in newer] == [("main", 9, True)]
    assert place.down(target=6) == [("main", 8), ("main", 7)]
    assert place.rows("SELECT line, version FROM river_migration WHERE version > 6 OR line <> 'main' ORDER BY 1") == [
        ("main", 9),
        ("pro", 3),
    ]
    with pytest.raises(MigrationError, match=r"005 \[down\] .* was refused: .*another line than main.*: pro"):
        place.down(target=0)
    assert place.catalog() == rivers(6)  # one transaction: 6 was not taken back either
    place.execute("DELETE FROM river_migration WHERE line = 'pro'")
    place.down(target=4)
    assert [version for version, _ in place.record()] == [1, 2, 3, 4, 9]
    place.up()
    assert [version for version, _ in place.record()] == [*range(1, 10)]


def test_newer_own_version_is_tolerated(place: Place) -> None:
    place.up()
    place.execute("INSERT INTO riverq_migration (version) VALUES (2)")
    assert place.up() == []
    assert [each.version for each in place.call("psycopg", "status", line="riverq") if not each.known] == [2]


def test_gap_in_the_record_is_filled(place: Place) -> None:
    place.up(target=6)
    place.execute("DELETE FROM river_migration WHERE version = 3")
    assert place.up(line="main") == [("main", 3), ("main", 7), ("main", 8)]
    assert place.catalog() == rivers(8)


def test_steps_of_another_client_in_between_are_followed(place: Place) -> None:
    place.up()
    for number in (8, 7):
        place.execute("BEGIN;" + migrate.sql("down", versions=[number]) + "COMMIT;")
    assert place.up() == [("main", 7), ("main", 8)]


def test_what_an_operator_made_ahead_is_kept(place: Place) -> None:
    place.up(target=5)
    ahead = migrate.sql(versions=[6]).partition("DROP INDEX")[0]
    place.execute(ahead)
    index = place.rows("SELECT 'river_job_unique_idx'::regclass::oid")
    place.up()
    assert place.rows("SELECT 'river_job_unique_idx'::regclass::oid") == index
    assert place.catalog() == rivers(8)
