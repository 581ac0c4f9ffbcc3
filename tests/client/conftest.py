"""What tests of inserting share: a client on each adapter, and an ear for its notifications."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import riverq
from tests.client.faces import Ear, make_client
from tests.client.working import Watch
from tests.fix_database import EngineMaker

SYNC_ADAPTERS = ("psycopg", "pg8000")


@pytest.fixture
def ear(database_url: str, schema: str) -> Iterator[Ear]:
    ear = Ear(database_url, schema)
    yield ear
    ear.close()


@pytest.fixture
def engine_of(adapter: str, make_engine: EngineMaker) -> Any:
    return make_engine(adapter)


@pytest.fixture
def client(engine_of: Any, schema: str) -> Any:
    return make_client(engine_of, riverq.Config(schema=schema))


@pytest.fixture
def watch(database_url: str, schema: str) -> Watch:
    return Watch(database_url, schema)
