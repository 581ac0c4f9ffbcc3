"""A schema with the triggers that write everything down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.record import Record


@pytest.fixture
def record(database_url: str, scratch_schema: str) -> Iterator[Record]:
    record = Record(database_url, scratch_schema)
    record.begin()
    yield record
    record.close()
