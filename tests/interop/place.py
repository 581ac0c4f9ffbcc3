"""A database schema that riverq and the real River share in a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tests.fix_database import SESSION_APPLICATION
from tests.interop.oracle import Oracle


@dataclass(frozen=True)
class Place:
    """The schema, riverq's way to it (`engine`), and River's (`go`)."""

    oracle: Oracle
    engine: sa.Engine
    schema: str
    application: str = SESSION_APPLICATION

    @property
    def database_url(self) -> str:
        """The address as Go's driver reads it."""
        # The usual name keeps River's pool, which lives as long as the session, out of the leak check.
        url = self.engine.url.set(drivername="postgresql").update_query_dict({"application_name": self.application})
        if "sslmode" not in url.query:
            url = url.update_query_dict({"sslmode": "prefer"})
        return url.render_as_string(hide_password=False)

    def go(self, op: str, /, **params: Any) -> Any:
        """Ask the real River for an operation in this schema."""
        return self.oracle.call(op, database_url=self.database_url, schema=self.schema, **params)

    def leave(self) -> None:
        """End what a test has left running or open in this schema."""
        self.go("leave")

    def go_insert(self, kind: str, args: Any, **options: Any) -> dict[str, Any]:
        """Insert one job by River; its row."""
        [inserted] = self.go("insert", jobs=[{"kind": kind, "args": json.dumps(args), **options}])
        row: dict[str, Any] = inserted["job"]
        return row

    def go_row(self, job_id: int) -> dict[str, Any]:
        """One row as River's client reads it."""
        [row] = self.go("rows", ids=[job_id])
        found: dict[str, Any] = row
        return found

    def column_values(self, job_id: int) -> dict[str, Any]:
        """One row as the database has it, without any client, every value as text."""
        with self.engine.connect() as connection:
            row = connection.execute(
                sa.text(f'SELECT to_jsonb(j) FROM "{self.schema}".river_job j WHERE id = :id'),
                {"id": job_id},
            ).scalar_one()
        values: dict[str, Any] = row
        return values

    def scalars(self, sql: str, **params: Any) -> list[Any]:
        """The first column of a query of the test's own; `{schema}` in it is replaced."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(sql.format(schema=self.schema)), params).scalars())
