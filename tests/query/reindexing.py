"""Indexes as an operator sees them, attempts at rebuilding them that are cut short, and what makes them wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

PATIENCE = 20.0
SEVEN = (
    "river_job_args_index",
    "river_job_kind",
    "river_job_metadata_index",
    "river_job_pkey",
    "river_job_prioritized_fetching_index",
    "river_job_state_and_finalized_at_index",
    "river_job_unique_idx",
)


class Operator:
    """Somebody else on the same database, who can hold things up."""

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema
        self.conn = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self.conn.close()

    def indexes(self) -> dict[str, tuple[int, bool]]:
        """Name, file and validity of each index in the schema."""
        rows = self.conn.execute(
            "SELECT relname, relfilenode::bigint, indisvalid FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid "
            "JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s",
            [self.schema],
        ).fetchall()
        return {name: (file, valid) for name, file, valid in rows}

    def invalid(self) -> list[str]:
        return sorted(name for name, (_, valid) in self.indexes().items() if not valid)

    def waiting(self, beginning: str = "") -> list[int]:
        """The backends that execute such a statement and wait for a lock."""
        rows = self.conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Lock' "
            "AND datname = current_database() AND query LIKE %s",
            [f"%{beginning}%"],
        )
        return [row[0] for row in rows]

    def statements(self, part: str) -> list[str]:
        """The active statements of others that contain `part`."""
        rows = self.conn.execute(
            "SELECT query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() "
            "AND datname = current_database() AND query LIKE %s",
            [f"%{part}%"],
        )
        return [row[0] for row in rows]

    @contextmanager
    def old_snapshot(self) -> Iterator[psycopg.Connection[Any]]:
        """An open transaction that has seen the database, but touched no table: rebuilds wait, drops do not."""
        with psycopg.connect(self.url) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute("SELECT 1")
            yield conn
            conn.rollback()

    @contextmanager
    def old_reader(self, table: str = "river_job") -> Iterator[psycopg.Connection[Any]]:
        """An open transaction that has read the table: rebuilds and drops wait."""
        with psycopg.connect(self.url) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute(SQL("SELECT count(*) FROM {}").format(Identifier(self.schema, table)))
            yield conn
            conn.rollback()

    def leave(self, index: str) -> str:
        """Really cut a rebuild of `index` short; returns the name of what it left behind."""
        before = set(self.invalid())
        with self.old_snapshot(), psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute("SET statement_timeout = '100ms'")
            while set(self.invalid()) == before:
                try:
                    conn.execute(SQL("REINDEX INDEX CONCURRENTLY {}").format(Identifier(self.schema, index)))
                except psycopg.errors.QueryCanceled:
                    continue
                raise AssertionError("the rebuild did not wait for the old snapshot")
        [left] = set(self.invalid()) - before
        return left


async def until(condition: Callable[[], object]) -> None:
    """Look again and again until it holds."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(0.01)
