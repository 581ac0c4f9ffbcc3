"""One oracle for the session, and a schema of its own for each test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest
import sqlalchemy as sa

from tests.fix_skips import skip_or_fail
from tests.interop.oracle import Oracle, build, find_go
from tests.interop.place import Place

_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here that asks for the oracle needs Go, and is marked so."""
    for item in items:
        if "oracle" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.go)


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """The real River. Skips where Go is missing."""
    go = find_go()
    if go is None:
        skip_or_fail("no Go in the PATH, in /usr/local/go/bin or in RIVERQ_GO: the real River cannot be built")
    running = Oracle(build(go))
    yield running
    running.close()


@pytest.fixture
def place(oracle: Oracle) -> Iterator[Place]:
    """An empty schema of the test database, known to both sides."""
    url = os.environ.get("RIVERQ_TEST_DATABASE_URL")
    if not url:
        skip_or_fail("RIVERQ_TEST_DATABASE_URL is not set: no database to test against")
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    schema = f"riverq_interop_{os.getpid()}_{next(_numbers)}"
    with engine.begin() as connection:
        connection.execute(sa.text(f'CREATE SCHEMA "{schema}"'))
    yield Place(oracle, engine, schema)
    with engine.begin() as connection:
        connection.execute(sa.text(f'DROP SCHEMA "{schema}" CASCADE'))
    engine.dispose()


@pytest.fixture
def migrated(place: Place) -> Place:
    """A schema that River itself has migrated to its newest version."""
    place.go("migrate", direction="up")
    return place
