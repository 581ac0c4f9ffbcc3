from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

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


@pytest.fixture
def heard(call: Caller, table: Table) -> Table:
    """That view, listening for inserts and for control; `payloads` gives what came."""
    for topic in ("insert", "control"):
        table.conn.execute(f'LISTEN "{call.schema}.river_{topic}"')
    return table


@pytest.fixture
def other(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Somebody's open transaction, rolled back after the test."""
    with engine.connect() as connection:
        yield connection
