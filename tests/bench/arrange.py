"""Ways to run the bench in a test, and to look at its schema while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.bench.figures import Figures
from riverq.bench.place import Place
from riverq.bench.plan import Phase, Plan, Target
from riverq.bench.run import measure
from riverq.cli.database import make_engine
from tests.fix_database import ASYNC_ADAPTERS, adapter_url

JOBS = 60

Do = Callable[[], object]


def target(url: str, adapter: str) -> Target:
    """The database, by one adapter, as the command line reaches it."""
    full: sa.URL = adapter_url(url, adapter)
    asynchronous = adapter in ASYNC_ADAPTERS
    return Target(
        lambda name: make_engine(full, application_name=name, asynchronous=asynchronous), asynchronous=asynchronous
    )


def small(**options: Any) -> Plan:
    """A plan that ends with its few jobs, after about a second; the time is for machines that stall."""
    return Plan(**{"jobs": JOBS, "seconds": 30.0, **options})


class Script:
    """A progress that remembers the phases, and does something when one begins."""

    def __init__(self, **actions: Do) -> None:
        self.phases: list[Phase] = []
        self.shares: list[float] = []
        self._actions = {Phase[name]: do for name, do in actions.items()}

    def begin(self, phase: Phase) -> None:
        self.phases.append(phase)
        if phase in self._actions:
            self._actions.pop(phase)()

    def advance(self, share: float, jobs: int) -> None:
        self.shares.append(share)


async def run(url: str, adapter: str, plan: Plan | None = None, **actions: Do) -> Figures:
    """Measure, doing `actions[phase]` when a phase begins."""
    plan = plan or small()
    return await measure(target(url, adapter), plan, Script(**actions), place(plan))


def place(plan: Plan) -> Place:
    """The plan's, to be asked what became of it."""
    return Place(plan.schema, plan.mark)


class Onlooker:
    """Somebody else's view of the database."""

    def __init__(self, url: str) -> None:
        self.conn = psycopg.connect(url, autocommit=True)

    def schemas(self) -> set[str]:
        """All but Postgres' own and those of this test run."""
        rows = self.conn.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|riverq_test_)'"
        ).fetchall()
        return {str(row[0]) for row in rows}

    def counts(self, schema: str) -> dict[tuple[str, str], int]:
        """How many jobs each queue has in each state."""
        rows = self.conn.execute(
            SQL("SELECT queue, state::text, count(*) FROM {} GROUP BY 1, 2").format(Identifier(schema, "river_job"))
        ).fetchall()
        return {(str(queue), str(state)): int(count) for queue, state, count in rows}

    def is_waiting(self, application_name: str) -> bool:
        """Whether a connection of that name waits for a lock."""
        query = "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        return bool(self.conn.execute(query, (application_name,)).fetchall())

    def terminate(self, application_name: str) -> None:
        """Cut every connection of that name."""
        self.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (application_name,)
        )
