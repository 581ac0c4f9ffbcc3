"""The registry as somebody else sees it, and what somebody else may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from riverq.liveness import Liveness
from tests.fix_database import SESSION_APPLICATION

PATIENCE_SECONDS = 20.0
"""What nothing right ever takes."""

HEART, LISTENER = "riverq_test_heart", "riverq_test_listener"
"""The application_name of each connection."""


class Registry:
    """`riverq_client` of one schema, over a connection of its own that blocks whoever uses it."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row, application_name=SESSION_APPLICATION)

    def sql(self, text: str, *params: Any) -> list[dict[str, Any]]:
        """Run a statement in which `{client}` stands for the table's quoted name."""
        cursor = self.conn.execute(SQL(text).format(client=Identifier(self.schema, "riverq_client")), params)
        return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[dict[str, Any]]:
        return self.sql("SELECT *, incarnation::text AS uuid FROM {client} ORDER BY id")

    def row(self) -> dict[str, Any]:
        [row] = self.rows()
        return row

    def seen_at(self) -> datetime:
        seen_at: datetime = self.row()["seen_at"]
        return seen_at

    def holders(self, row_id: int) -> list[int]:
        """The backends that hold the lock of this row."""
        found = self.sql(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted AND objsubid = 2"
            " AND classid = %s::regclass::oid AND objid = %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            Identifier(self.schema, "riverq_client").as_string(),
            row_id,
        )
        return [row["pid"] for row in found]

    def backends(self, application: str) -> list[int]:
        found = self.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()", application
        )
        return [row["pid"] for row in found]

    def terminate(self, application: str) -> int:
        """End every backend of one application; returns how many."""
        pids = self.backends(application)
        for pid in pids:
            self.sql("SELECT pg_terminate_backend(%s)", pid)
        return len(pids)

    def close(self) -> None:
        self.conn.close()


async def until(liveness: Liveness, condition: Callable[[], bool]) -> None:
    """Look again after each heartbeat, until it is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await liveness.beaten.wait(PATIENCE_SECONDS)


async def eventually(condition: Callable[[], bool]) -> None:
    """Look again and again, until it is so: for what the server does in its own time."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await asyncio.to_thread(condition):
            pass
