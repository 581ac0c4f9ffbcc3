"""The four ways in which riverq's own drivers are used."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq_asyncpg
import riverq_pg8000
import riverq_psycopg
from riverq.driver import AnyEngine, Driver

ADAPTERS: dict[str, tuple[type[Driver], bool]] = {
    "psycopg": (riverq_psycopg.Driver, False),
    "psycopg_async": (riverq_psycopg.Driver, True),
    "asyncpg": (riverq_asyncpg.Driver, True),
    "pg8000": (riverq_pg8000.Driver, False),
}


def driver_engine(adapter: str, url: str, **options: Any) -> Driver:
    """A driver on an engine that it made itself; the caller disposes of `driver.engine`."""
    driver_class, asynchronous = ADAPTERS[adapter]
    engine = driver_class.make_engine(
        make_url(url), asynchronous=asynchronous, application_name="riverq_tests_driver", **options
    )
    return driver_class(engine)


async def dispose(engine: AnyEngine) -> None:
    """Close the engine's connections."""
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()
