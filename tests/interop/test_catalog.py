"""riverq's migrations against River's own: the same catalog at every version, up and down, alone and taking turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from riverq import migrate
from riverq.versions import LINES, MAIN
from tests.interop.place import Place
from tests.migrate.catalog import catalog

HEAD = LINES[MAIN][-1].number
VERSIONS = range(1, HEAD + 1)


@pytest.fixture
def other(place: Place) -> Iterator[Place]:
    """A second schema, for riverq where `place` is River's."""
    schema = f"{place.schema}_other"
    with place.engine.begin() as connection:
        connection.execute(sa.text(f'CREATE SCHEMA "{schema}"'))
    yield replace(place, schema=schema)
    with place.engine.begin() as connection:
        connection.execute(sa.text(f'DROP SCHEMA "{schema}" CASCADE'))


def test_river_has_no_version_that_riverq_lacks(place: Place) -> None:
    assert place.go("versions")["all"] == list(VERSIONS)


def test_catalogs_are_equal_at_every_version_up(place: Place, other: Place) -> None:
    for version in VERSIONS:
        place.go("migrate", direction="up", target=version)
        migrate.up(other.engine, line=MAIN, target=version, schema=other.schema)
        assert _catalog(other) == _with_pending(_catalog(place)), f"at version {version}"


def test_catalogs_are_equal_at_every_version_down(place: Place, other: Place) -> None:
    place.go("migrate", direction="up")
    migrate.up(other.engine, line=MAIN, schema=other.schema)
    for version in reversed(VERSIONS):
        assert _catalog(other) == _catalog(place), f"at version {version}"
        # River's target -1 and riverq's 0 both mean: nothing left.
        place.go("migrate", direction="down", target=version - 1 or -1)
        migrate.down(other.engine, line=MAIN, target=version - 1, schema=other.schema)
    assert _catalog(other) == _catalog(place)
    assert "table" not in _catalog(other)


@pytest.mark.parametrize("version", VERSIONS)
def test_riverq_goes_on_from_where_river_stopped(place: Place, other: Place, version: int) -> None:
    place.go("migrate", direction="up", target=version)
    before = _recorded(place)
    migrate.up(place.engine, line=MAIN, schema=place.schema)
    other.go("migrate", direction="up")
    assert _catalog(place) == _catalog(other)
    assert _recorded(place)[:version] == before, "rows that River wrote have changed"
    told = place.go("versions")
    assert (told["existing"], told["valid"]) == (list(VERSIONS), True)


@pytest.mark.parametrize("version", VERSIONS)
def test_river_goes_on_from_where_riverq_stopped(place: Place, other: Place, version: int) -> None:
    migrate.up(place.engine, line=MAIN, target=version, schema=place.schema)
    before = _recorded(place)
    place.go("migrate", direction="up")
    other.go("migrate", direction="up")
    assert _catalog(place) == _catalog(other)
    assert _recorded(place)[:version] == before, "rows that riverq wrote have changed"
    assert migrate.validate(place.engine, line=MAIN, schema=place.schema).ok


def test_river_takes_down_what_riverq_built_with_its_own_line_beside(place: Place) -> None:
    """riverq's own tables are recorded elsewhere; a foreign line in `river_migration` would stop River at version 5."""
    migrate.up(place.engine, schema=place.schema)
    assert place.go("migrate", direction="down", target=-1) == list(reversed(VERSIONS))


def test_riverq_takes_down_what_river_built(place: Place) -> None:
    place.go("migrate", direction="up")
    taken = migrate.down(place.engine, target=0, schema=place.schema)
    assert [each.version for each in taken] == list(reversed(VERSIONS))
    assert place.go("versions")["existing"] == []


def test_they_take_turns(place: Place, other: Place) -> None:
    """One step each, up and down and up again."""
    for version in VERSIONS:
        _step(place, version, by_river=version % 2 == 0)
    for version in reversed(VERSIONS):
        if version % 2:
            place.go("migrate", direction="down", max_steps=1)
        else:
            migrate.down(place.engine, schema=place.schema)
    for version in VERSIONS:
        _step(place, version, by_river=version % 2 == 1)
    other.go("migrate", direction="up")
    assert _catalog(place) == _catalog(other)
    assert [row[0] for row in _recorded(place)] == list(VERSIONS)


def _step(place: Place, version: int, *, by_river: bool) -> None:
    if by_river:
        place.go("migrate", direction="up", target=version)
    else:
        migrate.up(place.engine, line=MAIN, target=version, schema=place.schema)


def _catalog(place: Place) -> str:
    with place.engine.begin() as connection:
        return catalog(connection, place.schema)


def _with_pending(text: str) -> str:
    """riverq has `pending` in the type from the start: added later, its use would need a transaction of its own."""
    return text.replace("discarded retryable", "discarded pending retryable")


def _recorded(place: Place) -> list[tuple[int, str]]:
    with place.engine.connect() as connection:
        rows = connection.execute(
            sa.text(f'SELECT version, created_at::text FROM "{place.schema}".river_migration ORDER BY version')
        )
        return [(row.version, row.created_at) for row in rows]
