from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.insert_opts import InsertParams
from riverq.job import InsertResult, JobState
from riverq.query.job_insert import can_copy, copy_streams, job_insert_many, job_insert_many_skipping
from riverq.query.job_read import job_get_by_id
from riverq.query.statement import sqlstate
from tests.fix_database import adapter_url
from tests.fix_server import KNOWN, plain
from tests.query.arrange import CLAIMED_AT, DEFAULT_MASK, Caller, Table, job, unique

HOUR = timedelta(hours=1)


def insert(call: Caller, *params: InsertParams, **options: Any) -> list[InsertResult]:
    return call(job_insert_many, params, **options)


def test_a_plain_job_gets_every_default(call: Caller, table: Table) -> None:
    before = table.now()
    [result] = insert(call, job())
    row = table.get(result.job.id)
    assert result.unique_skipped_as_duplicate is False
    assert result.job == call(job_get_by_id, result.job.id)
    assert row["created_at"] == row["scheduled_at"]
    assert before <= row["created_at"] <= table.now()
    expected = {
        "state": "available",
        "attempt": 0,
        "max_attempts": 25,
        "priority": 1,
        "queue": "default",
        "args": {},
        "metadata": {},
        "tags": [],
        "errors": None,
        "attempted_at": None,
        "attempted_by": None,
        "finalized_at": None,
        "unique_key": None,
        "unique_states": None,
    }
    assert {name: row[name] for name in expected} == expected


def test_everything_given_is_stored(call: Caller, table: Table) -> None:
    [result] = insert(
        call,
        job(
            "kind",
            encoded_args='{"a":"\\" \\\\ {} é \\n ☃","n":12345678901234567890.5}',
            max_attempts=3,
            metadata='{"m":null}',
            priority=4,
            queue="other",
            scheduled_at=CLAIMED_AT,
            state=JobState.SCHEDULED,
            tags=("one", 'two"{,}\\', "NULL"),
            unique_key=b"\x00\xff",
            unique_states=DEFAULT_MASK,
        ),
    )
    row = table.get(result.job.id)
    assert result.job == call(job_get_by_id, result.job.id)
    assert row["args"]["a"] == '" \\ {} é \n ☃'
    assert "12345678901234567890.5" in result.job.encoded_args
    assert (row["kind"], row["max_attempts"], row["priority"], row["queue"]) == ("kind", 3, 4, "other")
    assert (plain(row["metadata"]), row["tags"]) == ({"m": None}, ["one", 'two"{,}\\', "NULL"])
    assert (row["scheduled_at"], row["state"]) == (CLAIMED_AT, "scheduled")
    assert (row["unique_key"], row["mask"]) == (b"\x00\xff", "11110101")


def test_a_long_batch_comes_back_in_its_order(call: Caller) -> None:
    results = insert(call, *(job(f"kind{number}") for number in range(1500)))
    assert [result.job.kind for result in results] == [f"kind{number}" for number in range(1500)]
    ids = [result.job.id for result in results]
    assert ids == sorted(ids)


def test_times_are_the_statements_not_the_transactions(call: Caller) -> None:
    def twice(conn: sa.Connection, schema: str) -> tuple[Any, Any]:
        started = conn.exec_driver_sql("SELECT now()").scalar_one()
        conn.exec_driver_sql("SELECT pg_sleep(0.002)")  # so that the two differ at all
        [result] = job_insert_many(conn, schema, [job()])
        return started, result.job.created_at

    started, created_at = call(twice)
    assert created_at > started


def test_a_delay_is_counted_from_the_databases_clock(call: Caller, table: Table) -> None:
    [result] = insert(call, job(scheduled_in=HOUR, state=JobState.SCHEDULED))
    assert result.job.scheduled_at - result.job.created_at == HOUR


def test_a_given_now_is_the_time(call: Caller) -> None:
    first, second = insert(call, job(), job(scheduled_in=HOUR), now=CLAIMED_AT)
    assert (first.job.created_at, first.job.scheduled_at) == (CLAIMED_AT, CLAIMED_AT)
    assert second.job.scheduled_at == CLAIMED_AT + HOUR


# -- unique jobs


def test_a_duplicate_returns_the_row_that_is_there(call: Caller, table: Table) -> None:
    [first] = insert(call, unique(kind="first"))
    before = table.get(first.job.id)
    [again, other] = insert(call, unique(kind="second", encoded_args='{"x":1}'), unique(b"other"))
    assert (again.job, again.unique_skipped_as_duplicate) == (first.job, True)
    assert other.unique_skipped_as_duplicate is False
    assert table.get(first.job.id) == before


def test_equal_keys_in_a_batch_are_one_job(call: Caller, table: Table) -> None:
    results = insert(call, unique(b"a", kind="k1"), job(), unique(b"b"), unique(b"a", kind="k2"), unique(b"b"))
    assert [result.unique_skipped_as_duplicate for result in results] == [False, False, False, True, True]
    assert results[3].job == results[0].job
    assert results[4].job == results[2].job
    assert len({result.job.id for result in results}) == 3
    assert len(table.sql("SELECT id FROM {job}")) == 3


def test_a_repeated_key_that_exists_already_is_a_duplicate_twice(call: Caller) -> None:
    [first] = insert(call, unique())
    results = insert(call, unique(), unique())
    assert [(result.job.id, result.unique_skipped_as_duplicate) for result in results] == [(first.job.id, True)] * 2


def test_rows_outside_their_mask_do_not_count(call: Caller, table: Table) -> None:
    done = table.add(state="completed", unique_key=b"key", unique_states=DEFAULT_MASK & ~4)
    [result] = insert(call, unique())
    assert result.job.id != done
    assert result.unique_skipped_as_duplicate is False


def test_duplicates_within_one_transaction(call: Caller) -> None:
    def twice(conn: sa.Connection, schema: str) -> list[InsertResult]:
        return job_insert_many(conn, schema, [unique()]) + job_insert_many(conn, schema, [unique()])

    first, second = call(twice)
    assert (first.job.id, first.unique_skipped_as_duplicate) == (second.job.id, False)
    assert second.unique_skipped_as_duplicate is True


def test_inserting_around_duplicates_counts_what_is_new(call: Caller, table: Table) -> None:
    insert(call, unique())
    assert call(job_insert_many_skipping, [unique(), unique(b"new"), unique(b"new"), job(), job()]) == 3
    assert len(table.sql("SELECT id FROM {job}")) == 4


# -- in the caller's transaction


def test_a_refused_insert_inside_a_savepoint_leaves_the_transaction_alive(call: Caller, table: Table) -> None:
    def attempt(conn: sa.Connection, schema: str) -> str | None:
        job_insert_many(conn, schema, [job("kept")])
        with pytest.raises(sa.exc.DBAPIError) as caught, conn.begin_nested():
            job_insert_many(conn, schema, [job("lost"), job(priority=9)])
        job_insert_many(conn, schema, [job("kept")])
        return sqlstate(caught.value)

    assert call(attempt) == "23514"
    assert [row["kind"] for row in table.sql("SELECT kind FROM {job}")] == ["kept", "kept"]


def test_a_tag_too_long_is_refused_and_not_cut(call: Caller) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught:
        insert(call, job(tags=("t" * 256,)))
    assert sqlstate(caught.value) == "22001"


@pytest.fixture
def psycopg2_engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(adapter_url(database_url, "psycopg2"))
    KNOWN.tell(engine)
    yield engine
    engine.dispose()


def test_a_psycopg2_session_can_insert(psycopg2_engine: sa.Engine, schema: str, table: Table) -> None:
    with psycopg2_engine.begin() as conn:
        [first, second] = job_insert_many(conn, schema, [unique(tags=("a", "b")), unique()], now=CLAIMED_AT)
        assert second.unique_skipped_as_duplicate is True
        assert first.job.unique_key == b"key"
        assert first.job.created_at == CLAIMED_AT
        assert job_insert_many_skipping(conn, schema, [unique(), job()]) == 1
    with psycopg2_engine.begin() as conn:
        assert job_get_by_id(conn, schema, first.job.id) == first.job


# -- COPY


def test_streams_are_split_by_who_sets_the_time() -> None:
    streams = copy_streams('S "x', [job("a"), job("b", scheduled_at=CLAIMED_AT), job("c", tags=('x"y',))])
    assert [stream.table for stream in streams] == ['"S ""x"."river_job"'] * 2
    assert "scheduled_at" not in streams[0].columns
    assert streams[1].columns[-1] == "scheduled_at"
    assert [row[1] for row in streams[0].rows] == ["a", "c"]
    assert streams[0].rows[1][-1] == '{"x\\"y"}'
    assert [row[-1] for row in streams[1].rows] == [CLAIMED_AT.isoformat()]
    assert all(len(row) == len(stream.columns) for stream in streams for row in stream.rows)


def test_what_cannot_be_copied() -> None:
    assert can_copy([job(), job(scheduled_at=CLAIMED_AT)])
    assert not can_copy([job(), unique()])
    assert not can_copy([job(scheduled_in=HOUR)])
    with pytest.raises(ValueError, match="cannot be copied"):
        copy_streams("s", [job(scheduled_in=HOUR)])


def test_streams_are_what_copy_reads(schema: str, table: Table) -> None:
    awkward = job(encoded_args='{"a":"\\t\\\\ é"}', tags=("one", "NULL"), metadata='{"m":1}')
    for stream in copy_streams(schema, [awkward, job(scheduled_at=CLAIMED_AT, state=JobState.SCHEDULED)]):
        columns = ", ".join(stream.columns)
        with table.conn.cursor().copy(f"COPY {stream.table} ({columns}) FROM STDIN") as copy:
            for row in stream.rows:
                copy.write_row(row)
    first, second = table.sql("SELECT * FROM {job} ORDER BY id")
    assert (first["args"], first["tags"], first["metadata"]) == ({"a": "\t\\ é"}, ["one", "NULL"], {"m": 1})
    assert first["scheduled_at"] == first["created_at"]
    assert (second["scheduled_at"], second["state"]) == (CLAIMED_AT, "scheduled")
