"""The kind of server that tests run on: the machine's Postgres, the newest of the wheel, or one that can do less.

`--server newest` runs on the newest Postgres of the wheel, whatever the machine has. `--server yugabyte` runs on a
Postgres that is made to look like YugabyteDB where riverq asks: `version()` says so, `pg_notify` does not exist, and a
statement that reads `xmax` fails. Tests that need to hear something are left out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import psycopg
import pytest
import sqlalchemy as sa

from riverq.driver import ServerCapabilities
from riverq.query.schema import capabilities_of
from riverq.query.statement import remember_server

T = TypeVar("T")

KINDS = ("any", "newest", "yugabyte")
YUGABYTE_VERSION = "PostgreSQL 15.2-YB-2.25.1.0-b0 on x86_64-pc-linux-gnu, a simulation"
YUGABYTE = capabilities_of(YUGABYTE_VERSION, 150002)
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
    if config.getoption("--server") == "yugabyte":
        make_yugabyte(database_url)


def make_yugabyte(database_url: str) -> None:
    """Make one database look like YugabyteDB; those beside it stay as they are."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        for statement in SIMULATION:
            admin.execute(statement)


def hears() -> bool:
    """Whether this run's server delivers notifications."""
    assert KNOWN.server is not None, "the test has no database"
    return KNOWN.server.listen_notify


def audible(sent: list[T]) -> list[T]:
    """What of this is heard on this run's server: all of it, or nothing."""
    return sent if hears() else []


def tell(conn: psycopg.Connection[Any], channel: str, payload: str) -> None:
    """NOTIFY as another River client would, where the server can."""
    if hears():
        conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))


def plain(metadata: Mapping[str, Any], *, unique: bool = True) -> dict[str, Any]:
    """A job's metadata without the nonce, which it has on a server that needs one if it was inserted with a key."""
    assert KNOWN.server is not None, "the test has no database"
    needs_nonce = unique and not KNOWN.server.xmax and not KNOWN.server.returning_old
    assert ("river:unique_nonce" in metadata) == needs_nonce
    return {key: value for key, value in metadata.items() if key != "river:unique_nonce"}


class Known:
    """What the server of this run can do, looked up once; and its engines, which are told."""

    server: ServerCapabilities | None = None

    def look_up(self, database_url: str) -> None:
        with psycopg.connect(database_url) as conn:
            row: Any = conn.execute("SELECT version(), current_setting('server_version_num')::int").fetchone()
        self.server = capabilities_of(*row)

    def tell(self, engine: sa.Engine) -> None:
        """Statements on this engine fit the server, as they do on a client's after its first look."""
        if self.server is not None:
            pretend(engine, self.server)


def pretend(engine: sa.Engine, server: ServerCapabilities) -> None:
    """Have this engine's statements written for `server`; one that it could not run fails the test."""
    remember_server(engine.dialect, server)
    guard(engine, server)


def guard(engine: sa.Engine, server: ServerCapabilities) -> None:
    """Fail the test at a statement on this engine that `server` could not run."""
    missing = [] if server.xmax else ["xmax"]
    missing += [] if server.listen_notify else ["pg_catalog.pg_notify"]

    def refuse(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        found = [name for name in missing if name in statement]
        assert not found, f"this server has no {', '.join(found)}: {statement}"

    sa.event.listen(engine, "before_cursor_execute", refuse)


KNOWN = Known()
