"""A real PgBouncer in front of the test database, one for each pool mode, with its default settings otherwise."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.demo.postgres import free_port, short_temp_dir, unprivileged_account
from tests.fix_skips import skip_or_fail
from tests.pooler_process import PgBouncer

NO_PGBOUNCER = "no pgbouncer in the PATH or in /usr/sbin (Debian: apt-get install pgbouncer)"


@dataclass(frozen=True)
class Pooler:
    """A PgBouncer that the whole run goes through."""

    mode: str
    process: PgBouncer

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def keeps_sessions(self) -> bool:
        """Whether a client that loses its server's connection notices, and one that sets something finds it again."""
        return self.mode == "session"

    def clients(self, but: str) -> dict[Any, str]:
        """The connections that clients hold open to it, but for those with this application name."""
        others = [row for row in self._show("CLIENTS") if row["application_name"] != but]
        return {
            # PgBouncer uses its pointers again; with the client's port they name one connection.
            (row["ptr"], row["port"], row["connect_time"]): f"{row['application_name'] or 'unnamed'} ({row['state']})"
            for row in others
        }

    def clients_named(self, application: str) -> list[int]:
        """The ports of the connections that clients with this application name hold open to it."""
        return [int(row["port"]) for row in self._show("CLIENTS") if row["application_name"] == application]

    def linked_backends(self) -> set[int]:
        """The pids of the server's backends that are some client's at this moment."""
        return {int(row["remote_pid"]) for row in self._show("SERVERS") if row["link"]}

    def _show(self, what: str) -> list[dict[str, Any]]:
        """A list of the admin console, without what belongs to the console itself."""
        console = sa.make_url(self.url).set(database="pgbouncer").render_as_string(hide_password=False)
        with psycopg.connect(console, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
            return [row for row in conn.execute(f"SHOW {what}").fetchall() if row["database"] != "pgbouncer"]


def find_pgbouncer() -> str | None:
    """The command: of the PATH, or where Debian puts it."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


def _configuration(url: sa.URL, pool_mode: str, port: int, settings: dict[str, str]) -> str:
    """`auth_type = any` logs everybody in as the user of the database line."""
    target = {
        "host": url.host or url.query.get("host"),
        "port": url.port or 5432,
        "dbname": url.database,
        "user": url.username,
        "password": url.password,
    }
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": pool_mode,
        "max_client_conn": "200",
        **settings,
    }
    lines = ["[databases]", f"{url.database} = {' '.join(f'{k}={v}' for k, v in target.items() if v)}", "[pgbouncer]"]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in options.items()), ""])


@contextmanager
def running_pgbouncer(command: str, database_url: str, pool_mode: str, **settings: str) -> Iterator[str]:
    """Run PgBouncer in front of a database; gives the URL through it."""
    with watched_pgbouncer(command, database_url, pool_mode, **settings) as pgbouncer:
        yield pgbouncer.url


@contextmanager
def watched_pgbouncer(command: str, database_url: str, pool_mode: str, **settings: str) -> Iterator[PgBouncer]:
    """The same with its process, which comes back on its port whenever it ends (`pooler_process.py`)."""
    url = sa.make_url(database_url)
    port = int(settings.get("listen_port", 0)) or free_port("127.0.0.1")
    through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    folder = Path(tempfile.mkdtemp(prefix="riverq-pgbouncer-", dir=short_temp_dir()))
    try:
        unprivileged_account().take(folder)
        (folder / "pgbouncer.ini").write_text(_configuration(url, pool_mode, port, settings))
        (folder / "pgbouncer.ini").chmod(0o644)
        pgbouncer = PgBouncer(command, folder, through)
        pgbouncer.start()
        try:
            yield pgbouncer
        finally:
            pgbouncer.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class PgBouncers:
    """`pgbouncers.url("transaction")`: started when first asked for, one for each pool mode."""

    def __init__(self, command: str, database_url: str) -> None:
        self._command = command
        self._database_url = database_url
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}

    def url(self, pool_mode: str) -> str:
        """The test database through PgBouncer: `session`, `transaction` or `statement`."""
        if pool_mode not in self._urls:
            bouncer = running_pgbouncer(self._command, self._database_url, pool_mode)
            self._urls[pool_mode] = self._stack.enter_context(bouncer)
        return self._urls[pool_mode]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def pgbouncers(database_url: str) -> Iterator[PgBouncers]:
    """PgBouncer in front of the test database, for as long as the test. Skips where it is missing."""
    command = find_pgbouncer()
    if command is None:
        skip_or_fail(NO_PGBOUNCER)
    bouncers = PgBouncers(command, database_url)
    yield bouncers
    bouncers.close()
