"""The schemas that tests run in: migrated ones, emptied and used again, and empty ones."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq import migrate
from tests.fix_database import SESSION_APPLICATION, adapter_url

KEPT_TABLES = ("river_migration", "riverq_migration")


class SchemaPool:
    """Migrated schemas, used again: emptying one costs a tenth of migrating one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[str] = []
        self._made = 0
        self._admin = psycopg.connect(url, autocommit=True, application_name=SESSION_APPLICATION)
        self._admin.execute("SET lock_timeout = '10s'")

    def new_name(self) -> str:
        self._made += 1
        return f"riverq_test_{self._made}"

    def create(self, name: str) -> None:
        self.drop(name)
        self._admin.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))

    def drop(self, name: str) -> None:
        self._admin.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(name)))

    def take(self) -> str:
        """A schema with both lines migrated and no rows."""
        if self._free:
            return self._free.pop()
        name = self.new_name()
        self.create(name)
        engine = sa.create_engine(adapter_url(self._url, "psycopg"))
        try:
            migrate.up(engine, schema=name)
        finally:
            engine.dispose()
        return name

    def give_back(self, name: str) -> None:
        """Empty it. One that a test has damaged, or still holds locked, is an error and is not used again."""
        rows = self._admin.execute(
            "SELECT relname FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = %s::regnamespace AND relname <> ALL (%s)",
            (Identifier(name).as_string(), list(KEPT_TABLES)),
        ).fetchall()
        names = [Identifier(name, str(row[0])) for row in rows]
        self._admin.execute(SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(SQL(", ").join(names)))
        self._free.append(name)

    def close(self) -> None:
        for number in range(1, self._made + 1):
            self.drop(f"riverq_test_{number}")
        self._admin.close()


@pytest.fixture(scope="session")
def schema_pool(database_url: str) -> Iterator[SchemaPool]:
    """The migrated schemas of this process."""
    pool = SchemaPool(database_url)
    yield pool
    pool.close()


@pytest.fixture
def schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A migrated schema without rows. A test that changes its structure asks for `scratch_schema` instead."""
    name = schema_pool.take()
    yield name
    schema_pool.give_back(name)


@pytest.fixture
def scratch_schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A migrated schema that is dropped after the test."""
    name = schema_pool.take()
    yield name
    schema_pool.drop(name)


@pytest.fixture
def empty_schema(schema_pool: SchemaPool) -> Iterator[str]:
    """A schema with nothing in it."""
    name = schema_pool.new_name()
    schema_pool.create(name)
    yield name
    schema_pool.drop(name)
