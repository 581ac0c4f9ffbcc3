"""Fixtures of the worker tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fix_database import EngineMaker
from tests.worker.harness import House, Rows


@pytest.fixture
def rows(database_url: str, schema: str) -> Iterator[Rows]:
    """The tables of an empty schema, seen from outside."""
    rows = Rows(database_url, schema)
    yield rows
    rows.close()


@pytest.fixture
async def house(make_engine: EngineMaker, rows: Rows) -> AsyncIterator[House]:
    """A worker side on psycopg's async engine; nothing is started."""
    house = House(make_engine("psycopg_async", pool_size=8), rows)
    yield house
    await house.close()


@pytest.fixture
async def any_house(make_engine: EngineMaker, adapter: str, rows: Rows) -> AsyncIterator[House]:
    """The same on each adapter."""
    house = House(make_engine(adapter, pool_size=8), rows)
    yield house
    await house.close()


@pytest.fixture(params=["async def", "def"])
def style(request: pytest.FixtureRequest) -> str:
    """How the worker is written."""
    name: str = request.param
    return name
