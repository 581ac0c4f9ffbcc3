"""The files in `catalogs/` are what real River leaves at each version, in the words of `catalog()`."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from riverq import migrate
from riverq.versions import LINES
from tests.migrate.catalog import notification
from tests.migrate.ways import Place

FOLDER = Path(__file__).parent / "catalogs"
LABELS = "available cancelled completed discarded pending retryable running scheduled"


def rivers(version: int, *, back: bool = False) -> str:
    text = (FOLDER / f"main_{min(version, 7):03}.txt").read_text()
    if version in (2, 3):
        # The one thing that is different: the label is in the enum from the start, or stays there on the way back.
        text = text.replace(LABELS.replace("pending ", ""), LABELS)
        if back:
            text = text.replace("metadata jsonb not null default '{}'::jsonb", "metadata jsonb")
    return text


def test_every_version_is_as_in_river(place: Place) -> None:
    place.execute('CREATE SCHEMA "My Jobs"')
    with place.engine(poolclass=sa.QueuePool) as engine:
        for version in range(1, 9):
            migrate.up(engine, target=version, schema="My Jobs")
            assert place.catalog("My Jobs") == rivers(version), version
        for version in range(7, 0, -1):
            migrate.down(engine, schema="My Jobs")
            assert place.catalog("My Jobs") == rivers(version, back=True), version
        migrate.down(engine, schema="My Jobs")
    assert place.relations() == []


def test_all_versions_at_once(place: Place) -> None:
    assert place.up() == [("main", n) for n in range(1, 9)] + [("riverq", 1)]
    assert place.catalog() == rivers(7)
    assert place.down(target=0) == [("main", n) for n in range(8, 0, -1)]
    assert place.down(line="riverq") == [("riverq", 1)]
    assert place.relations() == []


def test_down_and_up_again(place: Place) -> None:
    place.up()
    place.down(target=3)
    place.up()
    assert place.catalog() == rivers(7)


@pytest.mark.parametrize("version", [2, 3])
def test_trigger_of_the_first_versions_notifies_for_available_jobs(place: Place, version: int) -> None:
    place.up(target=version)
    with place.engine() as engine, engine.connect() as connection:
        sent = [(channel, payload.replace(" ", "")) for channel, payload in notification(connection, "public")]
    assert sent == [("river_insert", '{"queue":"mail"}')]


def test_rows_survive_and_are_made_to_fit(place: Place) -> None:
    place.left_by_another_client(2)
    place.execute("INSERT INTO river_job (kind, max_attempts, args, tags) VALUES ('k', 3, NULL, NULL)")
    place.up()
    assert place.rows("SELECT kind, args, tags, metadata FROM river_job") == [("k", {}, [], {})]


def test_own_tables(place: Place) -> None:
    place.up(line="riverq")
    columns = place.rows(
        "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || "
        "coalesce(column_default, identity_generation, '') FROM information_schema.columns "
        "WHERE table_name LIKE 'riverq%' ORDER BY table_name, ordinal_position"
    )
    assert [row[0].strip() for row in columns] == [
        "riverq_client.id integer NO BY DEFAULT",
        "riverq_client.client_id text NO",
        "riverq_client.incarnation uuid NO",
        "riverq_client.started_at timestamp with time zone NO now()",
        "riverq_client.seen_at timestamp with time zone NO now()",
        "riverq_client.lock_taken boolean NO false",
        "riverq_migration.version bigint NO",
        "riverq_migration.created_at timestamp with time zone NO now()",
        "riverq_periodic_job.id text NO",
        "riverq_periodic_job.next_run_at timestamp with time zone NO",
        "riverq_periodic_job.updated_at timestamp with time zone NO now()",
        "riverq_queue.name text NO",
        "riverq_queue.paused_at timestamp with time zone NO",
        "riverq_queue.until timestamp with time zone NO",
    ]
    assert place.rows("SELECT version FROM riverq_migration") == [(1,)]
    assert place.rows("SELECT to_regclass('river_job')") == [(None,)]
    assert len(LINES["riverq"]) == 1
