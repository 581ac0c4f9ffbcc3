"""One oracle for the session, a schema for each test in which it and riverq meet, and the two sides there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from tests.fix_database import SESSION_APPLICATION
from tests.fix_skips import skip_or_fail
from tests.interop import table
from tests.interop.oracle import Oracle, build, find_go
from tests.interop.peer import Peer
from tests.interop.place import Place
from tests.interop.sides import Side

collect_ignore = [] if os.environ.get("RIVERQ_INTEROP") else ["fleet", "ui"]
"""Scenarios, and River UI in a browser, take minutes: `make test-interop` runs them, `make test` leaves them out."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "scenario(area, what): the test's row in the table of `make test-interop`")
    config.addinivalue_line("markers", "rivers_tables_only: the fleet's schema is River's, without riverq's own tables")
    if os.environ.get("RIVERQ_INTEROP"):
        table.install(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here that asks for the oracle needs Go, and is marked so."""
    table.name_in_reports(items)
    for item in items:
        if "oracle_binary" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.go)


@pytest.fixture(scope="session")
def oracle_binary() -> Path:
    """The program. Skips where Go is missing."""
    go = find_go()
    if go is None:
        skip_or_fail("no Go in the PATH, in /usr/local/go/bin or in RIVERQ_GO: the real River cannot be built")
    return build(go)


@pytest.fixture(scope="session")
def oracle(oracle_binary: Path) -> Iterator[Oracle]:
    """The real River."""
    running = Oracle(oracle_binary)
    yield running
    running.close()


@pytest.fixture
def place(oracle: Oracle, engine: sa.Engine, empty_schema: str) -> Iterator[Place]:
    """An empty schema of the test database, known to both sides."""
    place = Place(oracle, engine, empty_schema)
    yield place
    place.leave()


@pytest.fixture
def migrated(place: Place) -> Place:
    """A schema that River itself has migrated to its newest version."""
    place.go("migrate", direction="up")
    return place


# -- a fleet: both sides on one schema


@pytest.fixture
def fleet(request: pytest.FixtureRequest, oracle: Oracle, engine: sa.Engine) -> Iterator[Place]:
    """A schema of its own name with River's tables and riverq's, as a mixed fleet has them; the newest version of each.

    With the mark `rivers_tables_only` it has River's alone, made by River.
    """
    if request.node.get_closest_marker("rivers_tables_only"):
        migrated: Place = request.getfixturevalue("migrated")
        yield migrated
        return
    place = Place(oracle, engine, request.getfixturevalue("schema"))
    yield place
    place.leave()


@pytest.fixture
def river(fleet: Place) -> Side:
    """The real River."""
    return Side("river", fleet, fleet.go)


@pytest.fixture
def riverq_side(request: pytest.FixtureRequest, fleet: Place, database_url: str) -> Iterator[Side]:
    """riverq, on the test's `adapter` if it asks for one, else on psycopg."""
    peer = Peer(database_url, fleet.schema, _adapter(request))
    yield Side("riverq", fleet, peer.call)
    peer.close()


def _adapter(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("adapter")) if "adapter" in request.fixturenames else "psycopg"


class Direction(NamedTuple):
    """Who hands over to whom, by the sides' names."""

    giver: str
    taker: str

    def __str__(self) -> str:
        return f"{NAMES[self.giver]} → {NAMES[self.taker]}"


NAMES = {"river": "go", "riverq": "riverq"}
DIRECTIONS = (Direction("river", "riverq"), Direction("riverq", "river"))


@pytest.fixture(params=DIRECTIONS, ids=["go-to-riverq", "riverq-to-go"])
def direction(request: pytest.FixtureRequest) -> Direction:
    """Go → riverq, and riverq → Go; the test runs both ways."""
    found: Direction = request.param
    return found


@pytest.fixture
def giver(direction: Direction, river: Side, riverq_side: Side) -> Side:
    """The side that the test begins with: in most it inserts."""
    return river if direction.giver == "river" else riverq_side


@pytest.fixture
def taker(direction: Direction, river: Side, riverq_side: Side) -> Side:
    """The other side: in most it works."""
    return river if direction.taker == "river" else riverq_side


ProcessMaker = Callable[..., Side]


@pytest.fixture
def process_of(
    request: pytest.FixtureRequest, fleet: Place, oracle_binary: Path, database_url: str
) -> Iterator[ProcessMaker]:
    """`process_of("river")`, `process_of("riverq")`: a side in a process of its own, to kill or to make stand still.

    Ended after the test, whatever was done to it. riverq's runs on the test's adapter, unless `adapter=` names another.
    `application=` is the application_name of its connections, by which a test may tell them from others.
    """
    running: list[Oracle] = []

    def make(name: str, *, adapter: str = "", application: str = SESSION_APPLICATION) -> Side:
        if name == "river":
            process = Oracle(oracle_binary)
        else:
            told = (database_url, fleet.schema, adapter or _adapter(request), application)
            process = Oracle(sys.executable, "-m", "tests.interop.peer_process", *told)
        running.append(process)
        place = Place(process, fleet.engine, fleet.schema, application)
        return Side(name, place, place.go, process)

    yield make
    for process in running:
        process.close()
