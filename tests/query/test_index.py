from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import DatabaseError
from riverq.query.index import IndexLook, index_drop, index_look, index_rebuild, is_leftover
from riverq.query.limits import marked, statement_cancel, statement_timeout_set
from riverq.query.statement import sqlstate
from tests.fix_database import EngineMaker
from tests.query.arrange import Caller
from tests.query.reindexing import SEVEN, Operator, until

ODD = 'Odd "schema", 100 %s %'


@pytest.fixture
def operator(database_url: str, scratch_schema: str) -> Iterator[Operator]:
    operator = Operator(database_url, scratch_schema)
    yield operator
    operator.close()


@pytest.fixture
def odd_operator(database_url: str) -> Iterator[Operator]:
    """One in a schema whose name needs quotes, with one table and one index of such names."""
    operator = Operator(database_url, ODD)
    drop = SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(ODD))
    operator.conn.execute(drop)
    operator.conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(ODD)))
    operator.conn.execute(SQL("CREATE TABLE {} (x integer)").format(Identifier(ODD, "T")))
    operator.conn.execute(SQL("CREATE INDEX {} ON {} (x)").format(Identifier('I "%" x'), Identifier(ODD, "T")))
    yield operator
    operator.conn.execute(drop)
    operator.close()


OpenDatabase = Callable[[str], Database]


@pytest.fixture
async def database(adapter: str, make_engine: EngineMaker) -> AsyncIterator[OpenDatabase]:
    """`database(schema)` on each adapter in turn."""
    opened: list[Database] = []

    def make(schema: str) -> Database:
        engine = make_engine(adapter)
        opened.append(Database(engine, load_driver(engine), schema=schema, owns_engine=False))
        return opened[-1]

    yield make
    for each in opened:
        await each.close()


def look(call: Caller, schema: str, index: str) -> IndexLook:
    return call.transact(call.adapter, index_look, schema, index)


def constraint_index(operator: Operator) -> str:
    row = operator.conn.execute(
        "SELECT conindid::regclass::text FROM pg_constraint WHERE contype = 'p' AND conrelid = %s::regclass",
        [f'"{operator.schema}".river_job'],
    ).fetchone()
    assert row is not None
    return str(row[0]).rpartition(".")[2]


# -- names


@pytest.mark.parametrize(
    ("index", "candidate", "expected"),
    [
        ("a", "a_ccnew", True),
        ("a", "a_ccold", True),
        ("a", "a_ccnew12", True),
        ("a", "a_ccnew1x", False),
        ("a", "a_ccnewer", False),
        ("a", "b_ccnew", False),
        ("a", "aa_ccnew", False),
        ("a.", "ab_ccnew", False),
        ("a_ccnew", "a_ccnew", False),
        ("a_ccnew", "a_ccnew_ccnew", True),
        ("a\nb", "a\nb_ccold", True),
        ("x" * 63, "x" * 57 + "_ccnew", True),
        ("x" * 63, "x" * 56 + "_ccnew7", True),
        ("x" * 63, "x" * 57 + "_ccnew7", False),
        ("x" * 63, "x" * 56 + "_ccnew", False),
        ("x" * 56 + "ä", "x" * 56 + "_ccnew", True),
    ],
)
def test_names_that_postgres_makes(index: str, candidate: str, expected: bool) -> None:
    assert is_leftover(index, candidate) is expected


@pytest.mark.parametrize("length", [50, 57, 58, 63])
def test_cut_names_are_those_the_server_makes(call: Caller, operator: Operator, length: int) -> None:
    index = ("ä" + "Index_" * 11).encode()[:length].decode()
    operator.conn.execute(
        SQL("CREATE INDEX {} ON {} (kind)").format(Identifier(index), Identifier(operator.schema, "river_job"))
    )
    left = [operator.leave(index) for _ in range(2)]
    assert look(call, operator.schema, index).leftovers == sorted(left)


# -- looking


def test_missing_and_present(call: Caller, operator: Operator, schema: str) -> None:
    assert look(call, operator.schema, "river_job_kind") == IndexLook(is_there=True, is_busy=False, leftovers=[])
    assert not look(call, operator.schema, "no_such_index").is_there
    assert not look(call, operator.schema, "river_job").is_there
    operator.conn.execute(SQL("DROP INDEX {}").format(Identifier(operator.schema, "river_job_kind")))
    assert not look(call, operator.schema, "river_job_kind").is_there
    assert look(call, schema, "river_job_kind").is_there


def test_only_what_is_invalid_and_of_this_index_is_a_leftover(call: Caller, operator: Operator) -> None:
    table = Identifier(operator.schema, "river_job")
    operator.conn.execute(SQL("CREATE INDEX river_job_kind_ccnew ON {} (kind)").format(table))
    left = operator.leave("river_job_kind")
    other = operator.leave("river_job_args_index")
    assert left == "river_job_kind_ccnew1"
    assert look(call, operator.schema, "river_job_kind").leftovers == [left]
    assert look(call, operator.schema, "river_job_args_index").leftovers == [other]
    assert look(call, operator.schema, "river_job_pkey").leftovers == []


@pytest.mark.parametrize(
    ("mode", "busy"), [("ROW EXCLUSIVE", False), ("SHARE UPDATE EXCLUSIVE", True), ("ACCESS EXCLUSIVE", True)]
)
def test_work_on_the_table_makes_its_indexes_busy(call: Caller, operator: Operator, mode: str, busy: bool) -> None:
    with operator.conn.transaction():
        operator.conn.execute(
            SQL("LOCK TABLE {} IN " + mode + " MODE").format(Identifier(operator.schema, "river_job"))
        )
        assert look(call, operator.schema, "river_job_pkey") == IndexLook(is_there=True, is_busy=busy, leftovers=[])
    assert not look(call, operator.schema, "river_job_pkey").is_busy


async def test_rebuild_under_way_is_seen(database: OpenDatabase, operator: Operator) -> None:
    db = database(operator.schema)
    with operator.old_snapshot():
        rebuilding = asyncio.create_task(db.run_outside(index_rebuild, "river_job_kind", mark="riverq test"))
        await until(lambda: operator.waiting("REINDEX"))
        assert operator.invalid() == ["river_job_kind_ccnew"]
        seen = await db.run(index_look, "river_job_kind")
        assert seen == IndexLook(is_there=True, is_busy=True, leftovers=["river_job_kind_ccnew"])
        assert (await db.run(index_look, "river_job_pkey")).is_busy
        assert not rebuilding.done()
    await rebuilding
    assert await db.run(index_look, "river_job_kind") == IndexLook(is_there=True, is_busy=False, leftovers=[])


# -- rebuilding and dropping


@pytest.mark.parametrize("index", SEVEN)
async def test_rebuilt_index_is_another_file(operator: Operator, make_engine: EngineMaker, index: str) -> None:
    engine = make_engine("psycopg")
    db = Database(engine, load_driver(engine), schema=operator.schema, owns_engine=False)
    before = operator.indexes()
    await db.run_outside(index_rebuild, index, mark="riverq test")
    after = operator.indexes()
    assert {name for name in after if after[name] != before[name]} == {index}
    assert after[index][1]
    await db.close()


async def test_every_adapter_rebuilds_and_drops_and_names_are_quoted(
    database: OpenDatabase, odd_operator: Operator
) -> None:
    db = database(ODD)
    index = 'I "%" x'
    before = odd_operator.indexes()[index]
    await db.run_outside(index_rebuild, index, mark="riverq test")
    assert odd_operator.indexes()[index] != before
    left = odd_operator.leave(index)
    assert (await db.run(index_look, index)).leftovers == [left]
    await db.run_outside(index_drop, left, mark="riverq test")
    await db.run_outside(index_drop, left, mark="riverq test")  # gone already: another leader was faster
    assert set(odd_operator.indexes()) == {index}


async def test_leftover_of_the_primary_key_is_dropped_and_the_key_stays(
    database: OpenDatabase, operator: Operator
) -> None:
    db = database(operator.schema)
    left = operator.leave("river_job_pkey")
    assert (await db.run(index_look, "river_job_pkey")).leftovers == [left] == ["river_job_pkey_ccnew"]
    await db.run_outside(index_drop, left, mark="riverq test")
    await db.run_outside(index_rebuild, "river_job_pkey", mark="riverq test")
    assert operator.invalid() == []
    assert constraint_index(operator) == "river_job_pkey"


async def test_drop_of_a_rebuild_under_way_never_takes_the_finished_index(
    database: OpenDatabase, operator: Operator
) -> None:
    """Whoever drops waits for the lock and looks the name up again; by then it is nobody's."""
    db = database(operator.schema)
    with operator.old_snapshot():
        rebuilding = asyncio.create_task(db.run_outside(index_rebuild, "river_job_kind", mark="riverq test"))
        await until(lambda: operator.waiting("REINDEX"))
        dropping = asyncio.create_task(db.run_outside(index_drop, "river_job_kind_ccnew", mark="riverq other"))
        await until(lambda: operator.waiting("DROP INDEX"))
    outcome = await asyncio.gather(rebuilding, dropping, return_exceptions=True)
    assert all(error is None or (isinstance(error, DatabaseError) and error.sqlstate == "40P01") for error in outcome)
    assert operator.indexes()["river_job_kind"][1]


# -- limits


def slow(conn: sa.Connection, _schema: str, mark: str) -> None:
    conn.exec_driver_sql(marked(mark, "DO $$ BEGIN PERFORM pg_catalog.pg_sleep(60); END $$"))


async def test_marked_statement_is_ended_and_no_other(database: OpenDatabase, operator: Operator) -> None:
    db = database(operator.schema)
    wanted = asyncio.create_task(db.run_outside(slow, "riverq one"))
    other = asyncio.create_task(database(operator.schema).run_outside(slow, "riverq one more"))
    await until(lambda: len(operator.statements("pg_sleep")) == 2)
    assert await db.run(statement_cancel, "riverq none") == 0
    assert await db.run(statement_cancel, "riverq one") == 1
    with pytest.raises(DatabaseError) as caught:
        await wanted
    assert caught.value.sqlstate == "57014"
    assert not other.done()
    assert await db.run(statement_cancel, "riverq one more") == 1
    with pytest.raises(DatabaseError):
        await other
    assert await db.run(statement_cancel, "riverq one") == 0


def patiently(ask: Callable[[], str]) -> str:
    """Ask until the limit that is asked for has not ended the asking: a machine that stalls takes 1 ms for anything."""
    for _ in range(100):
        try:
            return ask()
        except sa.exc.DBAPIError as error:
            if sqlstate(error) != "57014":
                raise
    raise AssertionError("every statement was ended")


@pytest.mark.parametrize(
    ("timeout", "shown"),
    [
        (timedelta(seconds=30), "30s"),
        (timedelta(microseconds=1), "1ms"),
        (timedelta.max, "2147483647ms"),
    ],
)
def test_statement_timeout_holds_for_the_transaction_only(call: Caller, timeout: timedelta, shown: str) -> None:
    def in_one(conn: sa.Connection, schema: str) -> str:
        statement_timeout_set(conn, schema, timeout)
        conn.exec_driver_sql("SET LOCAL lock_timeout = 0")  # and it holds beyond the next statement
        return str(conn.exec_driver_sql("SHOW statement_timeout").scalar_one())

    assert patiently(lambda: call(in_one)) == shown
    assert call(lambda conn, _: str(conn.exec_driver_sql("SHOW statement_timeout").scalar_one())) == "0"
