"""What is peculiar to one driver, and how drivers are found."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import riverq_asyncpg
import riverq_pg8000
import riverq_psycopg
from riverq.driver import load_driver
from riverq.driver.copy_text import CHUNK, chunks, line
from riverq.driver.failures import message, sqlstate, translate
from riverq.errors import DatabaseError, DriverError, PoolerError, UsageError
from tests.drivers.adapters import ADAPTERS, dispose, driver_engine

URL = sa.make_url("postgresql://u:p%40ss@db.example/app?sslmode=require")


def test_found_by_the_engines_dialect() -> None:
    assert isinstance(load_driver(sa.create_engine("postgresql+psycopg://")), riverq_psycopg.Driver)
    assert isinstance(load_driver(create_async_engine("postgresql+psycopg://")), riverq_psycopg.Driver)
    assert isinstance(load_driver(create_async_engine("postgresql+asyncpg://")), riverq_asyncpg.Driver)
    assert isinstance(load_driver(sa.create_engine("postgresql+pg8000://")), riverq_pg8000.Driver)


@pytest.mark.parametrize(
    ("url", "way_out"), [("postgresql+psycopg2://", "pip install 'riverq"), ("sqlite://", r"use postgresql\+psycopg")]
)
def test_other_engines_are_refused_with_a_way_out(url: str, way_out: str) -> None:
    with pytest.raises(DriverError, match=way_out):
        load_driver(sa.create_engine(url))


def test_made_engines_keep_the_url_and_take_options(adapter: str) -> None:
    driver_class, asynchronous = ADAPTERS[adapter]
    engine = driver_class.make_engine(URL, asynchronous=asynchronous, application_name="x", pool_size=7)
    assert engine.url == URL.set(drivername=f"postgresql+{driver_class.name}")
    assert engine.url.password == "p@ss"
    assert isinstance(engine.pool, sa.QueuePool)
    assert engine.pool.size() == 7


@pytest.mark.parametrize(
    ("driver_class", "asynchronous", "way_out"),
    [(riverq_asyncpg.Driver, False, "use psycopg or pg8000"), (riverq_pg8000.Driver, True, "use psycopg or asyncpg")],
)
def test_what_a_driver_lacks_is_said_with_a_way_out(
    driver_class: type[riverq_asyncpg.Driver | riverq_pg8000.Driver], *, asynchronous: bool, way_out: str
) -> None:
    with pytest.raises(DriverError, match=way_out):
        driver_class.make_engine(URL, asynchronous=asynchronous, application_name="x")


async def test_a_listener_connects_once(adapter: str, database_url: str) -> None:
    driver = driver_engine(adapter, database_url)
    listener = driver.listener(driver.engine)
    await listener.connect()
    with pytest.raises(UsageError, match="twice"):
        await listener.connect()
    await listener.close()
    with pytest.raises(UsageError, match="twice"):
        await listener.connect()
    await dispose(driver.engine)


def test_pg8000_copies_into_names_with_percent_signs(database_url: str) -> None:
    driver = driver_engine("pg8000", database_url)
    engine = driver.engine
    assert isinstance(engine, sa.Engine)
    with engine.connect() as conn:
        conn.exec_driver_sql('CREATE TEMPORARY TABLE "100 %s" ("%(x)s" text)')
        assert driver.copy_from(conn, '"100 %s"', ["%(x)s"], [["a"], ["%"]]) == 2
    engine.dispose()


# -- COPY's text format


@pytest.mark.parametrize(
    ("row", "written"),
    [
        (["a", None, ""], "a\t\\N\t\n"),
        (["\\N"], "\\\\N\n"),
        (["\\."], "\\\\.\n"),
        (["t\tn\nr\rb\\"], "t\\tn\\nr\\rb\\\\\n"),
        (["é{},;'\""], "é{},;'\"\n"),
    ],
)
def test_copy_text_escapes(row: list[str | None], written: str) -> None:
    assert line(row) == written


def test_copy_text_comes_in_chunks_that_make_up_the_whole() -> None:
    rows = [[str(n), "x" * 100] for n in range(3000)]
    pieces = list(chunks(rows))
    assert len(pieces) > 1
    assert all(CHUNK <= len(piece) < CHUNK + 200 for piece in pieces[:-1])
    assert b"".join(pieces) == "".join(map(line, rows)).encode()
    assert list(chunks([])) == []


# -- errors


class OfAnotherAdapter(Exception):
    """As psycopg2 has them: the code is in `pgcode`."""

    pgcode = "23505"


def test_sqlstate_of_a_session_on_another_adapter(adapter: str) -> None:
    driver = ADAPTERS[adapter][0](sa.create_engine("postgresql+psycopg://"))
    error = sa.exc.DBAPIError("INSERT", {}, OfAnotherAdapter("duplicate"))
    assert sqlstate(OfAnotherAdapter("duplicate"), driver) == "23505"
    told = translate(error, driver)
    assert isinstance(told, DatabaseError)
    assert told.sqlstate == "23505"
    assert translate(told, driver) is told


def test_messages_keep_only_the_first_line() -> None:
    assert message(ValueError("duplicate key\nDETAIL: Key (args)=(secret) exists")) == "duplicate key"
    assert message(ValueError({"M": "duplicate key", "D": "Key (args)=(secret) exists"})) == "duplicate key"
    assert message(ValueError()) == "ValueError"


def test_pooler_texts_need_no_sqlstate(adapter: str) -> None:
    driver = ADAPTERS[adapter][0](sa.create_engine("postgresql+psycopg://"))
    for text in (
        "FATAL:  unsupported startup parameter: jit",
        "transaction blocks not allowed in statement pooling mode",
    ):
        assert isinstance(translate(OSError(text), driver), PoolerError)
