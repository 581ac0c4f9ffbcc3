"""Each kind of server gets statements that it can run, and duplicates are told from new jobs on all of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg, pg8000, psycopg

import riverq.query
from riverq.driver import POSTGRES, ServerCapabilities
from riverq.job import InsertResult
from riverq.notification import Topic
from riverq.query import job_insert
from riverq.query.job_insert import job_insert_many, job_insert_many_skipping
from riverq.query.job_update import job_update
from riverq.query.notify import can_notify, notify_many
from riverq.query.statement import Statement, remember_server, server_of
from tests.fix_database import Transact, sync_side
from tests.fix_pgbouncer import Pooler
from tests.fix_server import KNOWN, YUGABYTE, pretend
from tests.query.arrange import DEFAULT_MASK, Caller, Table, job, unique
from tests.query.racing import waiting

POSTGRES_18 = ServerCapabilities(version_num=180000, returning_old=True)
DIALECTS = (psycopg.PGDialect_psycopg, asyncpg.PGDialect_asyncpg, pg8000.PGDialect_pg8000)
MISSING = re.compile(r"\bxmax\b|\bpg_notify\b|\bLISTEN\b|\bNOTIFY\b|\bold\.")
NONCE = "river:unique_nonce"


# -- the texts


def statements() -> Iterator[tuple[str, Statement]]:
    """Every statement of riverq, with the name that it has in its module."""
    for module in pkgutil.iter_modules(riverq.query.__path__):
        found = vars(importlib.import_module(f"riverq.query.{module.name}"))
        yield from ((f"{module.name}.{name}", each) for name, each in found.items() if isinstance(each, Statement))


def new_dialect() -> sa.Dialect:
    dialect: sa.Dialect = psycopg.PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy left it untyped
    return dialect


def text(each: Statement, dialect: sa.Dialect, server: ServerCapabilities) -> str:
    remember_server(dialect, server)
    return each.prepare(dialect, "some_schema")[0]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_statement_asks_for_what_yugabytedb_lacks(dialect: type[sa.Dialect]) -> None:
    of = dialect()
    on_postgres = {name for name, each in statements() if MISSING.search(text(each, of, POSTGRES))}
    on_yugabytedb = {name for name, each in statements() if MISSING.search(text(each, of, YUGABYTE))}
    assert len(on_postgres) > 5  # else the pattern finds nothing anywhere
    assert on_yugabytedb == set()


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (POSTGRES, {"xmax"}),
        (POSTGRES_18, {"old.id"}),
        (YUGABYTE, {NONCE}),
        (replace(YUGABYTE, xmax=True), {"xmax"}),
        (replace(YUGABYTE, returning_old=True), {"old.id"}),
    ],
)
def test_each_server_has_one_way_of_telling_duplicates(server: ServerCapabilities, expected: set[str]) -> None:
    found = text(job_insert._insert_returning, new_dialect(), server)
    assert {way for way in ("xmax", "old.id", NONCE) if way in found} == expected


def test_a_server_is_known_by_its_dialect_and_others_are_taken_for_postgres() -> None:
    mine, other = new_dialect(), new_dialect()
    remember_server(mine, YUGABYTE)
    assert (server_of(mine), server_of(other)) == (YUGABYTE, POSTGRES)
    shared = job_insert._insert_returning
    assert shared.prepare(mine, "some_schema") != shared.prepare(other, "some_schema")


# -- duplicates


@pytest.fixture
def yugabyte(pooled_url: str, pooler: Pooler | None, adapter: str, schema: str) -> Iterator[Caller]:
    """Queries on a server without LISTEN/NOTIFY and xmax, whatever this run's is."""
    transact = Transact(pooled_url, pooler)
    pretend(sync_side(transact.engine(adapter)), YUGABYTE)
    yield Caller(transact, adapter, schema)
    transact.close()


@pytest.fixture(params=["own", "yugabyte"])
def each(request: pytest.FixtureRequest, call: Caller) -> Caller:
    """Queries as this run's server gets them, and as one without xmax does."""
    if request.param == "own":
        return call
    other: Caller = request.getfixturevalue("yugabyte")
    return other


def insert(call: Caller, *params: Any) -> list[InsertResult]:
    return call(job_insert_many, params)


def found(results: list[InsertResult]) -> list[tuple[int, bool]]:
    return [(result.job.id, result.unique_skipped_as_duplicate) for result in results]


def nonce_of(result: InsertResult) -> str | None:
    nonce: str | None = result.job.metadata.get(NONCE)
    return nonce


def test_the_first_of_a_key_is_new_and_the_second_is_not(each: Caller) -> None:
    [first] = insert(each, unique())
    [second] = insert(each, unique())
    assert (first.unique_skipped_as_duplicate, second.unique_skipped_as_duplicate) == (False, True)
    assert second.job == first.job


def test_a_batch_tells_new_from_old_from_its_own(each: Caller) -> None:
    [old] = insert(each, unique(b"old"))
    results = insert(each, unique(b"new"), unique(b"old"), unique(b"new"), unique(b"other"), unique(b"old"))
    new, other = results[0].job.id, results[3].job.id
    assert len({old.job.id, new, other}) == 3
    assert found(results) == [(new, False), (old.job.id, True), (new, True), (other, False), (old.job.id, True)]


def test_a_duplicate_of_another_kind_keeps_its_kind(each: Caller, table: Table) -> None:
    """Keys that leave the kind out are shared by kinds; what is written at the conflict is the row's own kind."""
    [first] = insert(each, unique(kind="first"))
    before = table.get(first.job.id)
    [second] = insert(each, unique(kind="second"))
    assert (second.job.id, second.job.kind, second.unique_skipped_as_duplicate) == (first.job.id, "first", True)
    assert table.get(first.job.id) == before


def test_a_row_that_another_client_wrote_is_a_duplicate(each: Caller, table: Table) -> None:
    theirs = table.add(unique_key=b"key", unique_states=DEFAULT_MASK, metadata={"a": 1})
    assert found(insert(each, unique())) == [(theirs, True)]
    assert table.get(theirs)["metadata"] == {"a": 1}


def test_a_row_written_without_reading_it_back_is_a_duplicate(each: Caller, table: Table) -> None:
    assert each(job_insert_many_skipping, [unique(), unique(), unique(b"other")]) == 2
    assert [row["metadata"] for row in table.sql("SELECT metadata FROM {job}")] == [{}, {}]
    assert [result.unique_skipped_as_duplicate for result in insert(each, unique(), unique(b"other"))] == [True, True]
    assert each(job_insert_many_skipping, [unique(), unique(b"new")]) == 1


def test_a_job_that_conflicts_with_nothing_is_new(each: Caller) -> None:
    outside = unique(mask=DEFAULT_MASK & ~1)  # the mask leaves out the state that it is inserted in
    results = insert(each, outside, outside)
    assert [result.unique_skipped_as_duplicate for result in results] == [False, False]
    assert len({result.job.id for result in results}) == 2


def test_a_duplicate_within_one_transaction_is_told(each: Caller) -> None:
    def twice(conn: sa.Connection, schema: str) -> list[InsertResult]:
        return job_insert_many(conn, schema, [unique()]) + job_insert_many(conn, schema, [unique()])

    assert [result.unique_skipped_as_duplicate for result in each(twice)] == [False, True]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_of_two_who_insert_a_key_at_once_one_is_new(each: Caller, table: Table, engine: sa.Engine, ends: str) -> None:
    with engine.connect() as other:
        job_insert_many(other, each.schema, [unique()])
        with waiting(table, lambda: insert(each, unique())) as result:
            getattr(other, ends)()
        assert [each.unique_skipped_as_duplicate for each in result.result()] == [ends == "commit"]
    assert len(table.sql("SELECT id FROM {job}")) == 1


# -- the nonce


def test_every_call_has_a_nonce_of_its_own(yugabyte: Caller) -> None:
    batches = [insert(yugabyte, unique(b"a%d" % number), unique(b"b%d" % number)) for number in range(3)]
    nonces = [{nonce_of(result) for result in batch} for batch in batches]
    assert all(len(each) == 1 for each in nonces)
    [*values] = set().union(*nonces)
    assert len(values) == 3
    assert all(value is not None and re.fullmatch("[0-9a-f]{32}", value) for value in values)


def test_the_nonce_stands_beside_the_metadata_of_unique_jobs_only(yugabyte: Caller, table: Table) -> None:
    given = '{"a": {"b": 1}, "river:unique_nonce": "mine"}'
    with_key, without = insert(yugabyte, unique(metadata=given), job(metadata=given))
    assert with_key.job.metadata == {"a": {"b": 1}, NONCE: nonce_of(with_key)}
    assert nonce_of(with_key) != "mine"
    assert without.job.metadata == {"a": {"b": 1}, NONCE: "mine"}
    assert table.get(with_key.job.id)["metadata"] == with_key.job.metadata


@pytest.mark.parametrize("changed", ["{}", '{"river:unique_nonce": "another"}', '{"river:unique_nonce": null}'])
def test_a_row_whose_metadata_was_changed_is_a_duplicate(yugabyte: Caller, table: Table, changed: str) -> None:
    [first] = insert(yugabyte, unique())
    table.sql("UPDATE {job} SET metadata = %s", changed)
    assert found(insert(yugabyte, unique())) == [(first.job.id, True)]


def test_metadata_that_is_merged_leaves_the_nonce(yugabyte: Caller) -> None:
    [first] = insert(yugabyte, unique())
    yugabyte(job_update, first.job.id, metadata='{"a": 1}')
    [again] = insert(yugabyte, unique())
    assert again.unique_skipped_as_duplicate
    assert again.job.metadata == {NONCE: nonce_of(first), "a": 1}


# -- notifications


def test_nothing_is_sent_where_there_is_no_notify(yugabyte: Caller) -> None:
    assert yugabyte(notify_many, Topic.INSERT, ["x"]) is False
    assert yugabyte(lambda conn, _: can_notify(conn)) is False


def test_the_servers_of_the_tests_are_what_the_run_asks_for(call: Caller, pytestconfig: pytest.Config) -> None:
    known = call(lambda conn, _: server_of(conn.dialect))
    assert known == KNOWN.server
    asked = pytestconfig.getoption("--server")
    if asked != "any":
        assert (known.returning_old, known.xmax) == ((True, True) if asked == "newest" else (False, False))
