"""The conformance suite for riverq drivers: an adapter that passes it works under riverq.

It needs pytest, pytest-asyncio and a real Postgres, whose role may end its own backends. In the adapter's own tests
(`tests/test_conformance.py`, say):

    import pytest
    from sqlalchemy.engine import make_url

    from riverq.testing.driver_suite import *  # the tests, and the fixture `conformance`
    from riverq_mydriver import Driver

    @pytest.fixture
    def driver_case() -> DriverCase:
        return DriverCase(Driver, make_url("postgresql://postgres@localhost/test"), asynchronous=False)

An adapter for sync and async engines parametrizes the fixture over both. What `Driver.capabilities` denies is skipped.
Nothing outlives a test: its tables are temporary or dropped, its connections closed.

    TestConnection    transactions, savepoints, how values come back
    TestListening     LISTEN and NOTIFY; every way in which a connection ends
    TestCopying       COPY of awkward values, and what an error leaves
    TestFailures      each category of error, provoked on the server
"""

from __future__ import annotations

from riverq.testing.driver_suite.case import Conformance, DriverCase, conformance
from riverq.testing.driver_suite.connection import TestConnection
from riverq.testing.driver_suite.copying import TestCopying
from riverq.testing.driver_suite.failures import TestFailures
from riverq.testing.driver_suite.listening import TestListening

__all__ = [
    "Conformance",
    "DriverCase",
    "TestConnection",
    "TestCopying",
    "TestFailures",
    "TestListening",
    "conformance",
]
