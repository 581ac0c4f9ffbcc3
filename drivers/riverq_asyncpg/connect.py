"""From a URL to a SQLAlchemy engine that works direct and behind PgBouncer, in session and in transaction mode.

`statement_cache_size=0`: from asyncpg 0.31 on, a statement that is not cached is unnamed and sent again with every
execution, in one round trip, so it does not matter which server it reaches, and nothing is left behind there. With the
cache 88 of 200 transactions failed in transaction mode. `application_name` is the only startup parameter that PgBouncer
takes from everybody: `server_settings={"jit": "off"}`, which SQLAlchemy's own documentation advises, is refused.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from riverq.driver import AnyEngine
from riverq.errors import DriverError


def make_engine(url: URL, *, asynchronous: bool, application_name: str, options: dict[str, Any]) -> AnyEngine:
    """An engine of `postgresql+asyncpg` for `url`, whatever driver the URL names. `options` win over ours."""
    if not asynchronous:
        raise DriverError("driver asyncpg has no synchronous interface (use psycopg or pg8000 for a sync engine)")
    given = dict(options)
    connect_args = {"statement_cache_size": 0, **given.pop("connect_args", {})}
    settings = {"application_name": application_name, **connect_args.pop("server_settings", {})}
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        connect_args={**connect_args, "server_settings": settings},
        **given,
    )
