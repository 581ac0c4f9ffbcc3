"""What happened, written down by the database itself: every change of a job's state and every change of the leader.

The triggers write who made a change (the connection's `application_name`, which is the client's id) and who led at that
moment by the table. So a leader that acts after its term is seen, and so is a job that is completed twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

_TABLES = """
CREATE TABLE {schema}.seen_change (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), job_id bigint NOT NULL,
    old text NOT NULL, new text NOT NULL, run_of text, rescued boolean NOT NULL, writer text, leader text
);
CREATE TABLE {schema}.seen_leader (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), what text NOT NULL,
    leader_id text NOT NULL, elected_at timestamptz NOT NULL, expires_at timestamptz NOT NULL
);
CREATE FUNCTION {schema}.see_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.seen_change (job_id, old, new, run_of, rescued, writer, leader) VALUES (
        OLD.id, OLD.state, NEW.state, OLD.attempted_by[cardinality(OLD.attempted_by)],
        NEW.metadata -> 'river:rescue_count' IS DISTINCT FROM OLD.metadata -> 'river:rescue_count',
        current_setting('application_name'),
        (SELECT leader_id FROM {schema}.river_leader WHERE expires_at >= clock_timestamp())
    );
    RETURN NULL;
END $$;
CREATE FUNCTION {schema}.see_leader() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.seen_leader (what, leader_id, elected_at, expires_at)
        SELECT TG_OP, r.leader_id, r.elected_at, r.expires_at
        FROM (SELECT (CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END).*) r;
    RETURN NULL;
END $$;
CREATE TRIGGER seen AFTER UPDATE OF state ON {schema}.river_job
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION {schema}.see_change();
CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON {schema}.river_leader
    FOR EACH ROW EXECUTE FUNCTION {schema}.see_leader();
"""


@dataclass(frozen=True)
class Change:
    """One change of a job's state. `run_of` is whose run it was, `writer` who wrote it, `leader` who led then."""

    at: datetime
    job_id: int
    old: str
    new: str
    run_of: str | None
    rescued: bool
    writer: str
    leader: str | None

    @property
    def is_leaders(self) -> bool:
        """Whether only a leader does this: rescue, and making waiting jobs available."""
        return self.rescued or (self.old in ("scheduled", "retryable") and self.new in ("available", "discarded"))


@dataclass(frozen=True)
class Term:
    """A term as the table had it: until it was given back, taken over, or ran out."""

    leader_id: str
    began: datetime
    ended: datetime


class Record:
    """The tables of one schema, and the connection of whoever looks at them."""

    def __init__(self, url: str, schema: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True, application_name="riverq_tests")
        self._schema = Identifier(schema)

    def begin(self) -> None:
        """Make the triggers."""
        self._conn.execute(SQL(_TABLES).format(schema=self._schema))

    def close(self) -> None:
        self._conn.close()

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query in which `{}` is the schema."""
        return self._conn.execute(SQL(query).format(self._schema), values or None).fetchall()

    def now(self) -> datetime:
        """The database's clock."""
        found: datetime = self.ask("SELECT clock_timestamp()")[0][0]
        return found

    def leader(self) -> str | None:
        """Whose term has not run out."""
        found = self.ask("SELECT leader_id FROM {}.river_leader WHERE expires_at >= clock_timestamp()")
        return str(found[0][0]) if found else None

    def running_of(self, client_id: str) -> int:
        """How many jobs are running in this client, by the table."""
        query = (
            "SELECT count(*) FROM {}.river_job WHERE state = 'running' AND attempted_by[cardinality(attempted_by)] = %s"
        )
        return int(self.ask(query, client_id)[0][0])

    def terminate(self, names: Sequence[str]) -> int:
        """Terminate the backends with these application names."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY (%s)"
        return len(self.ask(query, list(names)))

    def states(self) -> dict[str, int]:
        """How many jobs are in which state."""
        return {
            str(state): int(count) for state, count in self.ask("SELECT state, count(*) FROM {}.river_job GROUP BY 1")
        }

    def changes(self) -> list[Change]:
        """Every change of a state, in order."""
        query = "SELECT at, job_id, old, new, run_of, rescued, writer, leader FROM {}.seen_change ORDER BY id"
        return [Change(*row) for row in self.ask(query)]

    def terms(self) -> list[Term]:
        """Every term, in order."""
        rows = self.ask("SELECT at, what, leader_id, elected_at, expires_at FROM {}.seen_leader ORDER BY id")
        terms: list[Term] = []
        for at, what, leader_id, elected_at, expires_at in rows:
            known = terms and (terms[-1].leader_id, terms[-1].began) == (leader_id, elected_at)
            ended = at if what == "DELETE" else expires_at
            if known:
                terms[-1] = Term(leader_id, elected_at, ended)
            else:
                terms.append(Term(leader_id, elected_at, ended))
        return terms


def read_ledgers(paths: Sequence[Path]) -> dict[str, list[int]]:
    """The ids of the jobs that `began`, `failed` and `ended`, one for each time; a line cut short by a kill is none."""
    found: dict[str, list[int]] = {"began": [], "failed": [], "ended": []}
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[entry["what"]].append(entry["job"])
    return found
