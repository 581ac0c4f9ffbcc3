"""Rows for the tests of queries, made directly, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from riverq.insert_opts import InsertParams
from riverq.job import JobState
from riverq.query.job_fetch import ClaimedRow, job_get_available
from riverq.state import Run
from tests.fix_database import Transact
from tests.fix_server import hears

P = ParamSpec("P")
T = TypeVar("T")

ME = "me"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLAIMED_AT = datetime(2026, 11, 21, 5, 4, 3, 123457, tzinfo=UTC)
CLAIMED_US = (CLAIMED_AT - EPOCH) // timedelta(microseconds=1)
DEFAULT_MASK = 245
MARKER = "riverq test marker"


class Caller:
    """Calls query functions on one adapter and schema, each in a transaction of its own."""

    def __init__(self, transact: Transact, adapter: str, schema: str) -> None:
        self.transact = transact
        self.adapter = adapter
        self.schema = schema

    def __call__(self, fn: Callable[Concatenate[sa.Connection, str, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def patiently(conn: sa.Connection) -> T:
            conn.exec_driver_sql(
                "SET LOCAL lock_timeout = '5s'"
            )  # a statement that should not wait fails, and does not hang
            return fn(conn, self.schema, *args, **kwargs)

        return self.transact(self.adapter, patiently)

    def claim(self, **options: Any) -> list[ClaimedRow]:
        given: dict[str, Any] = {"client_id": ME, "queue": "default", "limit": 100, **options}
        return self(job_get_available, **given)


class Table:
    """The job table, seen and changed by somebody else, in autocommit."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row, options="-c search_path=")
        self.conn.execute("SET timezone = 'UTC'")

    def sql(self, text: str, *params: Any) -> list[dict[str, Any]]:
        """Run a statement in which `{job}`, `{queue}`, `{leader}` and `{schema}` stand for quoted names."""
        names = {name: Identifier(self.schema, f"river_{name}") for name in ("job", "queue", "leader", "migration")}
        cursor = self.conn.execute(SQL(text).format(schema=Identifier(self.schema), **names), params)
        return cursor.fetchall() if cursor.description else []

    def add(self, **columns: Any) -> int:
        """One row; columns not given have the defaults of a fresh job."""
        values: dict[str, Any] = {"args": "{}", "kind": "k", **columns}
        for name in ("args", "metadata"):
            if isinstance(values.get(name), dict):
                values[name] = psycopg.types.json.Jsonb(values[name])
        if "errors" in values:
            values["errors"] = [psycopg.types.json.Jsonb(each) for each in values["errors"]]
        if values.get("state") in ("completed", "cancelled", "discarded"):
            values.setdefault("finalized_at", CLAIMED_AT)
        if isinstance(values.get("unique_states"), int):
            values["unique_states"] = f"{values['unique_states']:08b}"
        marks = ["%s::text::bit(8)" if name == "unique_states" else "%s" for name in values]
        names = SQL(", ").join(map(Identifier, values))
        query = SQL("INSERT INTO {} ({}) VALUES (" + ", ".join(marks) + ") RETURNING id").format(
            Identifier(self.schema, "river_job"), names
        )
        row = self.conn.execute(query, list(values.values())).fetchone()
        assert row is not None
        return int(row["id"])

    def add_running(self, **columns: Any) -> Run:
        """A row that this client claimed at CLAIMED_AT."""
        given = {"state": "running", "attempt": 1, "attempted_at": CLAIMED_AT, "attempted_by": [ME], **columns}
        return Run(self.add(**given), CLAIMED_US)

    def get(self, job_id: int) -> dict[str, Any]:
        """The row as it is."""
        [row] = self.sql("SELECT *, unique_states::text AS mask FROM {job} WHERE id = %s", job_id)
        return row

    def state(self, job_id: int) -> JobState:
        return JobState(self.get(job_id)["state"])

    def now(self) -> datetime:
        found: datetime = self.sql("SELECT clock_timestamp() AS now")[0]["now"]
        return found


def notified(conn: psycopg.Connection[Any]) -> list[psycopg.Notify]:
    """What was committed since the last call on the channels that `conn`, in autocommit, listens to.

    Notifications come in the order of their commits: what came before one that is sent now is all that there was.
    """
    if not hears():
        return []
    marker = "SELECT pg_notify(channel, %s) FROM pg_listening_channels() AS channel LIMIT 1"
    assert conn.execute(marker, (MARKER,)).rowcount == 1, "the connection listens to nothing"
    told: list[psycopg.Notify] = []
    for note in conn.notifies(timeout=30):
        if note.payload == MARKER:
            return told
        told.append(note)
    raise TimeoutError("the marker was not heard")


def payloads(heard: Table) -> list[str]:
    """What was notified since the last call, on the channels that it listens to."""
    return [note.payload for note in notified(heard.conn)]


def job(kind: str = "k", **options: Any) -> InsertParams:
    """An insert's parameters."""
    return InsertParams(kind=kind, **{"encoded_args": "{}", **options})


def unique(key: bytes = b"key", mask: int = DEFAULT_MASK, **options: Any) -> InsertParams:
    """The same with a unique key."""
    return job(unique_key=key, unique_states=mask, **options)
