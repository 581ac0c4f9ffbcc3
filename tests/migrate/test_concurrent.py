"""Several migrators at once: each is held at the lock until all have come, then they go one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import psycopg
import pytest

from riverq import migrate
from riverq.migrate.run import LOCK_KEY
from tests.migrate.test_catalog import rivers
from tests.migrate.ways import Place

ONE_OF_EACH = ("psycopg", "pg8000", "asyncpg")


@contextmanager
def gate(place: Place) -> Iterator[Callable[[int], None]]:
    """Holds the migration lock; the function given waits until so many stand before it, and opens."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])

        def open_at(count: int) -> None:
            waiting = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            pause = Event()
            came = False
            for _ in range(1500):
                came = connection.execute(waiting, [LOCK_KEY & 0xFFFFFFFF]).fetchone() == (count,)
                if came:
                    break
                pause.wait(0.01)
            connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK_KEY])  # else those that came would wait for ever
            assert came, f"{count} migrators never came"

        yield open_at


@pytest.mark.parametrize("start", [0, 3])
def test_three_at_once(place: Place, start: int) -> None:
    place.left_by_another_client(start)
    with gate(place) as open_at, ThreadPoolExecutor(3) as threads:
        racing = [threads.submit(place.call, adapter, "up") for adapter in ONE_OF_EACH]
        open_at(3)
        applied = sorted(len(each.result(60)) for each in racing)
    assert applied == [0, 0, 9 - start]
    assert place.catalog() == rivers(8)


def test_three_at_once_on_a_serializable_engine(place: Place) -> None:
    def up() -> int:
        with place.engine(isolation_level="SERIALIZABLE") as engine:
            return len(migrate.up(engine))

    with gate(place) as open_at, ThreadPoolExecutor(3) as threads:
        racing = [threads.submit(up) for _ in range(3)]
        open_at(3)
        assert sorted(each.result(60) for each in racing) == [0, 0, 9]


def test_up_and_down_at_once(place: Place) -> None:
    place.up()
    with gate(place) as open_at, ThreadPoolExecutor(3) as threads:
        racing = [threads.submit(place.call, adapter, "down") for adapter in ONE_OF_EACH]
        open_at(3)
        assert sorted(each.result(60)[0].version for each in racing) == [6, 7, 8]
    assert place.catalog() == rivers(5)


def test_processes_at_once(place: Place) -> None:
    code = "import sqlalchemy as sa, sys; from riverq.migrate import up; print(len(up(sa.create_engine(sys.argv[1]))))"
    with gate(place) as open_at:
        url = place.sqlalchemy_url().render_as_string(hide_password=False)
        command = [sys.executable, "-c", code, url]
        racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        open_at(2)
        assert sorted(each.communicate(timeout=60)[0].strip() for each in racing) == ["0", "9"]
    assert place.catalog() == rivers(8)


def test_two_schemas_in_one_process(place: Place) -> None:
    """No module-wide state: migrations of two schemas in two open transactions do not meet."""
    place.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    with place.engine() as engine, engine.connect() as first:
        migrate.up(first, schema="one")
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(place.call, "asyncpg", "up", schema="two")
            first.commit()
            assert len(second.result(60)) == 9
    assert place.catalog("one") == place.catalog("two")
