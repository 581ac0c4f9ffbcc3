"""The kind of server that tests run on: the machine's Postgres, the newest of the wheel, or one that can do less.

`--server newest` runs on the newest Postgres of the wheel, whatever the machine has. `--server yugabyte` runs on a
Postgres that is made to look like YugabyteDB where riverq asks: `version()` says so, `pg_notify` does not exist, and a
statement that reads `xmax` fails. Tests that need to hear something are left out there.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.driver import ServerCapabilities
from riverq.query.schema import capabilities_of
from riverq.query.statement import remember_server

KINDS = ("any", "newest", "yugabyte")
YUGABYTE_VERSION = "PostgreSQL 15.2-YB-2.25.1.0-b0 on x86_64-pc-linux-gnu, a simulation"
SIMULATION = (
    "ALTER FUNCTION pg_catalog.pg_notify(text, text) RENAME TO pg_notify_of_postgres",
    "ALTER FUNCTION pg_catalog.version() RENAME TO version_of_postgres",
    f"CREATE FUNCTION pg_catalog.version() RETURNS text LANGUAGE sql STABLE RETURN '{YUGABYTE_VERSION}'::text",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=KINDS, default="any", help="the kind of server to run on")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hears: a notification reaches the test, so the server must have them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the simulated YugabyteDB nothing is heard."""
    if config.getoption("--server") != "yugabyte":
        return
    deaf = [item for item in items if item.get_closest_marker("hears") or item.get_closest_marker("listens")]
    if deaf:
        config.hook.pytest_deselected(items=deaf)
        items[:] = [item for item in items if item not in deaf]


def simulate(config: pytest.Config, database_url: str) -> None:
    """Make a database of the tests what `--server` says, where Postgres is not that already."""
    if config.getoption("--server") != "yugabyte":
        return
    with psycopg.connect(database_url, autocommit=True) as admin:
        for statement in SIMULATION:
            admin.execute(statement)


class Known:
    """What the server of this run can do, looked up once; and its engines, which are told."""

    server: ServerCapabilities | None = None

    def look_up(self, database_url: str) -> None:
        with psycopg.connect(database_url) as conn:
            row: Any = conn.execute("SELECT version(), current_setting('server_version_num')::int").fetchone()
        self.server = capabilities_of(*row)

    def tell(self, engine: sa.Engine) -> None:
        """Statements on this engine fit the server, as they do on a client's after its first look."""
        if self.server is None:
            return
        remember_server(engine.dialect, self.server)
        if not self.server.xmax:
            sa.event.listen(engine, "before_cursor_execute", _refuse_xmax)


def _refuse_xmax(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
    assert "xmax" not in statement, f"this server has no xmax: {statement}"


KNOWN = Known()
