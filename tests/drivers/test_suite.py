"""The conformance suite on every adapter that riverq ships."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from riverq.testing.driver_suite import (  # noqa: F401  # collected here
    DriverCase,
    TestConnection,
    TestCopying,
    TestFailures,
    TestListening,
    conformance,
)
from tests.drivers.adapters import ADAPTERS


@pytest.fixture
def driver_case(adapter: str, database_url: str) -> DriverCase:
    driver_class, asynchronous = ADAPTERS[adapter]
    return DriverCase(driver_class, make_url(database_url), asynchronous)
