"""Ways into one database: an engine of each adapter, plain SQL, and a database as another client would leave it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.rows import TupleRow
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from riverq import migrate
from tests.migrate.catalog import catalog

SYNC = ("psycopg", "pg8000")
ASYNC = ("psycopg_async", "asyncpg")
ADAPTERS = SYNC + ASYNC
WEIRD = ("My Jobs", 'sch"q 50%off :x:y', "a.b", "$x\\y'z")


def quote(name: str | None) -> str:
    return '"' + name.replace('"', '""') + '".' if name else ""


@dataclass(frozen=True)
class Place:
    """A database of the test's own."""

    url: str

    def sqlalchemy_url(self, adapter: str = "psycopg") -> sa.URL:
        return sa.make_url(self.url).set(drivername=f"postgresql+{adapter}")

    @contextmanager
    def engine(self, adapter: str = "psycopg", **options: Any) -> Iterator[sa.Engine]:
        engine = sa.create_engine(self.sqlalchemy_url(adapter), **({"poolclass": NullPool} | options))
        try:
            yield engine
        finally:
            engine.dispose()

    def async_engine(self, adapter: str, **options: Any) -> AsyncEngine:
        return create_async_engine(self.sqlalchemy_url(adapter), **({"poolclass": NullPool} | options))

    def call(self, adapter: str, verb: str, **options: Any) -> Any:
        """`migrate.up(engine, …)` or its twin, on any adapter."""
        if adapter in SYNC:
            with self.engine(adapter) as engine:
                return getattr(migrate, verb)(engine, **options)

        async def run() -> Any:
            engine = self.async_engine(adapter)
            try:
                return await getattr(migrate, f"{verb}_async")(engine, **options)
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def up(self, **options: Any) -> list[tuple[str, int]]:
        return [(each.line, each.version) for each in self.call("psycopg", "up", **options)]

    def down(self, **options: Any) -> list[tuple[str, int]]:
        return [(each.line, each.version) for each in self.call("psycopg", "down", **options)]

    def rows(self, statement: str, parameters: Sequence[object] | None = None) -> list[TupleRow]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    def execute(self, statement: str) -> None:
        """Statements, each a transaction of its own unless they say BEGIN."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def catalog(self, schema: str = "public") -> str:
        with self.engine() as engine, engine.connect() as connection:
            return catalog(connection, schema)

    def relations(self) -> list[str]:
        """Everything of any kind outside the system's own schemas."""
        names = self.rows(
            "SELECT n.nspname || '.' || o.name FROM (SELECT relnamespace ns, relname::text name FROM pg_class "
            "UNION ALL SELECT pronamespace, proname FROM pg_proc "
            "UNION ALL SELECT typnamespace, typname FROM pg_type) o "
            "JOIN pg_namespace n ON n.oid = o.ns "
            "WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1"
        )
        return [str(row[0]) for row in names]

    def left_by_another_client(self, version: int, schema: str | None = None) -> None:
        """Bring line main to a version as other clients do: one transaction each, and no label `pending` before 4."""
        for number in range(1, version + 1):
            script = migrate.sql(versions=[number], schema=schema).replace("'pending', 'retryable'", "'retryable'")
            self.execute(f"BEGIN;\n{script}\nCOMMIT;")

    def record(self, schema: str | None = None) -> list[tuple[int, Any]]:
        """What river_migration holds for line main, with times."""
        rows = self.rows(f"SELECT version, created_at FROM {quote(schema)}river_migration ORDER BY 1")
        return [(int(row[0]), row[1]) for row in rows]
