from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fix_database import Transact
from tests.query.arrange import Caller, Table


@pytest.fixture
def call(transact: Transact, adapter: str, schema: str) -> Caller:
    """Query functions on each adapter in turn."""
    return Caller(transact, adapter, schema)


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    """Somebody else's view of the same rows."""
    table = Table(database_url, schema)
    yield table
    table.conn.close()
