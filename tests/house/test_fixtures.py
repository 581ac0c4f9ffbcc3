"""The fixtures themselves: schemas come back empty, adapters are what they say, and leaks are found."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.testing.fake_clock import FakeClock
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker, Transact
from tests.fix_schema import SchemaPool

pytest_plugins = ("pytester",)


def _select_path(connection: sa.Connection) -> tuple[str, str]:
    row = connection.execute(sa.text("SELECT current_setting('search_path'), current_database()")).one()
    return str(row[0]), str(row[1])


def test_every_adapter_reaches_the_database_with_an_empty_search_path(
    transact: Transact, adapter: str, database_url: str
) -> None:
    path, database = transact(adapter, _select_path)
    assert path in ('""', "")
    assert database == sa.make_url(database_url).database


@pytest.mark.own_session("the search_path that it asks for")
async def test_make_engine_gives_the_face_that_the_adapter_names(make_engine: EngineMaker, adapter: str) -> None:
    engine = make_engine(adapter, search_path="public")
    assert isinstance(engine, AsyncEngine) == (adapter in ASYNC_ADAPTERS)
    if isinstance(engine, AsyncEngine):
        async with engine.connect() as connection:
            path, _ = await connection.run_sync(_select_path)
    else:
        with engine.connect() as sync_connection:
            path, _ = _select_path(sync_connection)
    assert path == "public"


def test_a_schema_comes_back_empty_and_migrated(schema_pool: SchemaPool, engine: sa.Engine) -> None:
    name = schema_pool.take()
    with engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO {name}.river_queue (name, updated_at) VALUES ('q', now())"))
    schema_pool.give_back(name)
    assert schema_pool.take() == name
    with engine.begin() as connection:
        assert connection.scalar(sa.text(f"SELECT count(*) FROM {name}.river_queue")) == 0
        assert connection.scalar(sa.text(f"SELECT count(*) FROM {name}.river_migration")) != 0
    schema_pool.give_back(name)


async def test_held_clock_wakes_only_those_whose_time_has_come(held_clock: FakeClock) -> None:
    woken: list[float] = []

    async def wait(seconds: float) -> None:
        await held_clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(wait(seconds)) for seconds in (1, 2)]
    await asyncio.sleep(0)
    assert held_clock.sleeping == 2
    await held_clock.advance(1.5)
    assert woken == [1]
    await held_clock.advance(0.5)
    assert woken == [1, 2]
    await asyncio.gather(*tasks)


LEAKING_TESTS = """
import asyncio, threading
import psycopg

kept = []

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="lost task"))

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(600,), name="riverq lost thread", daemon=True).start()

def test_connection(database_url):
    kept.append(psycopg.connect(database_url, application_name="lost connection"))
"""


def test_leaks_are_found(pytester: pytest.Pytester, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERQ_TEST_DATABASE_URL", database_url)
    pytester.makeconftest(
        "import tests.fix_leaks\n"
        "tests.fix_leaks.PATIENCE_SECONDS = 0.2\n"
        'pytest_plugins = ("tests.fix_server", "tests.fix_database", "tests.fix_context", "tests.fix_leaks")\n'
    )
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nasyncio_mode = "auto"\nasyncio_default_fixture_loop_scope = "function"\n'
    )
    pytester.makepyfile(test_it=LEAKING_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:xdist", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=3)
    for what in ("task", "thread", "connection"):
        result.stdout.fnmatch_lines([f"E *lost {what}*"])
