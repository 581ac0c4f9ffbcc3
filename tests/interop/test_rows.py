"""Rows written by one side and read by the other: every column says the same to both."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

import riverq
from riverq.query.job_read import job_get_by_id
from tests.interop import neutral
from tests.interop.place import Place

LATER = datetime(2031, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
ARGS = {"text": "<Zoë> \u2028 🦀", "numbers": [1, -0.5, 1e21, 2**53 + 1], "nested": {"z": None, "a": [True, {}]}}

# What each side calls the same options.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "everything": (
        {
            "max_attempts": 7,
            "metadata": {"trace": "<1>", "n": [1]},
            "priority": 3,
            "queue": "mail",
            "tags": ["one-two", "three"],
            "scheduled_at": LATER.isoformat(),
        },
        {
            "max_attempts": 7,
            "metadata": {"trace": "<1>", "n": [1]},
            "priority": 3,
            "queue": "mail",
            "tags": ["one-two", "three"],
            "scheduled_at": LATER,
        },
    ),
    "pending": ({"pending": True}, {"pending": True}),
    "pending and scheduled": (
        {"pending": True, "scheduled_at": LATER.isoformat()},
        {"pending": True, "scheduled_at": LATER},
    ),
    "scheduled in the past": (
        {"scheduled_at": "2020-01-01T01:00:00+01:00"},
        {"scheduled_at": datetime(2020, 1, 1, tzinfo=UTC)},
    ),
    "unique": (
        {"unique": {"by_queue": True}, "queue": "a|b"},
        {"unique_opts": riverq.UniqueOpts(by_queue=True), "queue": "a|b"},
    ),
    "no tags": ({"tags": []}, {"tags": []}),
}

# Set by the database where the options do not say, and so never equal in two rows.
OF_THE_MOMENT = {"id", "created_at"}


@pytest.mark.parametrize("name", OPTIONS)
def test_both_sides_write_the_same_columns(migrated: Place, name: str) -> None:
    """The rows themselves, before any client's reading of them."""
    for_river, for_riverq = OPTIONS[name]
    by_river = migrated.column_values(migrated.go_insert("report", ARGS, **for_river)["id"])
    if by_river["unique_key"] is not None:
        _empty(migrated)
    by_riverq = migrated.column_values(_client(migrated).insert(riverq.RawArgs("report", ARGS), **for_riverq).job.id)
    differing = {column for column in by_river if by_river[column] != by_riverq[column]}
    assert differing <= OF_THE_MOMENT | ({"scheduled_at"} if "scheduled_at" not in for_river else set())
    assert (by_river["created_at"] == by_river["scheduled_at"]) == (
        by_riverq["created_at"] == by_riverq["scheduled_at"]
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_river_reads_what_riverq_inserted(migrated: Place, name: str) -> None:
    inserted = _client(migrated).insert(riverq.RawArgs("report", ARGS), **OPTIONS[name][1])
    told = neutral.of_river(migrated.go_row(inserted.job.id))
    assert told == neutral.of_riverq(inserted.job)
    assert told["args"] == ARGS


@pytest.mark.parametrize("name", OPTIONS)
def test_riverq_reads_what_river_inserted(migrated: Place, name: str) -> None:
    inserted = migrated.go_insert("report", ARGS, **OPTIONS[name][0])
    assert neutral.of_riverq(_read(migrated, inserted["id"])) == neutral.of_river(inserted)


def test_both_read_a_row_with_every_column_filled(migrated: Place) -> None:
    job_id = migrated.go_insert("report", ARGS, unique={"by_args": True}, tags=["one", "two,"[:3]])["id"]
    errors = [
        json.dumps({"at": "2026-01-02T03:04:05.123456789Z", "attempt": 1, "error": "first <é>", "trace": ""}),
        json.dumps({"at": "2026-01-02T05:04:05.5+02:00", "attempt": 2, "error": 'quote " and \\', "trace": "a\n\tb"}),
    ]
    with migrated.engine.begin() as connection:
        connection.execute(
            sa.text(
                f"""UPDATE "{migrated.schema}".river_job SET state = 'cancelled', attempt = 2,
                attempted_at = :at, finalized_at = :at,
                attempted_by = ARRAY['vm_1', 'comma, "quote" {{brace}}', 'NULL', ''], errors = CAST(:errors AS jsonb[]),
                metadata = '{{"output": {{"a": [1, null]}}, "cancel_attempted_at": "2026-01-02T03:04:05.1Z"}}',
                tags = ARRAY['with,comma', '{{brace}}', 'quote"'] WHERE id = :id"""
            ),
            {"at": LATER, "errors": errors, "id": job_id},
        )
    ours = neutral.of_riverq(_read(migrated, job_id))
    assert ours == neutral.of_river(migrated.go_row(job_id))
    assert ours["attempted_by"] == ["vm_1", 'comma, "quote" {brace}', "NULL", ""]
    assert [each["attempt"] for each in ours["errors"]] == [1, 2]


def test_both_read_extreme_values(migrated: Place) -> None:
    job_id = migrated.go_insert("report", {"id": 2**63 - 1})["id"]
    with migrated.engine.begin() as connection:
        connection.execute(
            sa.text(
                f"""UPDATE "{migrated.schema}".river_job SET attempt = 32767, max_attempts = 32767,
                id = 9223372036854775807, created_at = '1970-01-01T00:00:00.000001Z',
                scheduled_at = '9998-12-31T23:59:59.999999Z', kind = repeat('ß', 127)
                WHERE id = :id"""
            ),
            {"id": job_id},
        )
    assert neutral.of_riverq(_read(migrated, 2**63 - 1)) == neutral.of_river(migrated.go_row(2**63 - 1))


def test_many_by_either_side_keep_their_order(migrated: Place) -> None:
    by_riverq = _client(migrated).insert_many([riverq.RawArgs("many", {"n": n}) for n in range(50)])
    by_river = migrated.go("insert", jobs=[{"kind": "many", "args": json.dumps({"n": n})} for n in range(50)])
    ids = [result.job.id for result in by_riverq] + [each["job"]["id"] for each in by_river]
    assert ids == sorted(ids)
    assert [json.loads(row["args"])["n"] for row in migrated.go("rows", ids=ids)] == [*range(50), *range(50)]


def test_fast_inserts_of_both_sides_write_the_same_columns(migrated: Place) -> None:
    migrated.go("insert", fast=True, jobs=[{"kind": "fast", "args": json.dumps(ARGS), "tags": ["one"]}])
    assert _client(migrated).insert_many_fast([riverq.InsertItem(riverq.RawArgs("fast", ARGS), tags=["one"])]) == 1
    first, second = migrated.scalars("SELECT id FROM {schema}.river_job ORDER BY id")
    by_river, by_riverq = migrated.column_values(first), migrated.column_values(second)
    assert {name for name in by_river if by_river[name] != by_riverq[name]} <= OF_THE_MOMENT | {"scheduled_at"}


def test_delay_lies_ahead_for_river_too(migrated: Place) -> None:
    job = _client(migrated).insert(riverq.RawArgs("later", {}), delay=timedelta(hours=2)).job
    told = neutral.of_river(migrated.go_row(job.id))
    assert told["state"] == "scheduled"
    assert told["scheduled_at"] - told["created_at"] == timedelta(hours=2)


def _client(place: Place) -> riverq.Client:
    return riverq.Client(place.engine, riverq.Config(schema=place.schema))


def _read(place: Place, job_id: int) -> riverq.JobRow:
    with place.engine.connect() as connection:
        row = job_get_by_id(connection, place.schema, job_id)
    assert row is not None
    return row


def _empty(place: Place) -> None:
    with place.engine.begin() as connection:
        connection.execute(sa.text(f'TRUNCATE "{place.schema}".river_job'))
