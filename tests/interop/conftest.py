"""One oracle for the session, and a schema for each test in which it and riverq meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.fix_skips import skip_or_fail
from tests.interop.oracle import Oracle, build, find_go
from tests.interop.place import Place


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
def place(oracle: Oracle, engine: sa.Engine, empty_schema: str) -> Place:
    """An empty schema of the test database, known to both sides."""
    return Place(oracle, engine, empty_schema)


@pytest.fixture
def migrated(place: Place) -> Place:
    """A schema that River itself has migrated to its newest version."""
    place.go("migrate", direction="up")
    return place
