"""The conformance suite on every adapter that riverq ships."""

from __future__ import annotations

import os

import pytest
import riverq_asyncpg
import riverq_pg8000
import riverq_psycopg
from sqlalchemy.engine import make_url

from riverq.testing.driver_suite import (  # noqa: F401  # collected here
    DriverCase,
    TestConnection,
    TestCopying,
    TestFailures,
    TestListening,
    conformance,
)

CASES = {
    "psycopg": (riverq_psycopg.Driver, False),
    "psycopg_async": (riverq_psycopg.Driver, True),
    "asyncpg": (riverq_asyncpg.Driver, True),
    "pg8000": (riverq_pg8000.Driver, False),
}


@pytest.fixture(params=CASES)
def driver_case(request: pytest.FixtureRequest, database_url: str) -> DriverCase:
    driver_class, asynchronous = CASES[request.param]
    return DriverCase(driver_class, make_url(database_url), asynchronous)
