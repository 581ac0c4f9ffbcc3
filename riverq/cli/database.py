"""From `--database-url` or `DATABASE_URL` to an engine with settings that work direct and behind PgBouncer.

A bare `postgresql://` is completed with a driver that is installed, because SQLAlchemy's own choice changed from
psycopg2 to psycopg between its versions and may be neither.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from riverq.driver import AnyEngine, load_driver_class
from riverq.errors import ConfigError, DriverError

PREFERRED = ("psycopg", "asyncpg", "pg8000")

_HOW = "pass --database-url postgresql://user:password@host:5432/name, or set DATABASE_URL"


def engine_from_args(args: argparse.Namespace) -> AnyEngine:
    """The engine for the command's arguments; async only where just an async driver is installed."""
    return make_engine(database_url(args), application_name="riverq")


def database_url(args: argparse.Namespace) -> URL:
    """The URL given, with a driver. Raises ConfigError, never printing a password."""
    text = getattr(args, "database_url", None) or os.environ.get("DATABASE_URL")
    if not text:
        raise ConfigError(f"no database given ({_HOW})")
    return read_url(text)


def read_url(text: str) -> URL:
    """`text` as a URL with a driver. Raises ConfigError, never printing a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise ConfigError(f"the database URL cannot be read ({_HOW})") from error
    return complete(url)


def complete(url: URL) -> URL:
    """Name an installed driver in a bare Postgres URL. Raises ConfigError for another database."""
    backend, _, driver = url.drivername.partition("+")
    if backend not in ("postgres", "postgresql"):
        raise ConfigError(f"expected a Postgres URL, got one for {url.drivername!r} ({_HOW})")
    if driver:
        return url.set(drivername=f"postgresql+{driver}")
    for name in PREFERRED:
        if find_spec(name) is not None:
            return url.set(drivername=f"postgresql+{name}")
    raise DriverError("no Postgres driver is installed (pip install 'riverq[psycopg]')")


def make_engine(url: URL, *, application_name: str, asynchronous: bool | None = None) -> AnyEngine:
    """An engine made by the driver named in `url`; sync unless the driver is async only, or `asynchronous` says."""
    driver = load_driver_class(url.drivername.partition("+")[2])
    use_async = not driver.capabilities.sync if asynchronous is None else asynchronous
    return driver.make_engine(url, asynchronous=use_async, application_name=application_name)
