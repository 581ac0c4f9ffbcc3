"""The Postgres that everybody is measured on, and the databases in it.

One server for a whole run, fsync on. A *template* is a database that was filled once; each run gets a fresh copy of it,
so that no contender meets what another one left behind. Contenders log in as `bench`, the harness as `postgres`, which
keeps the harness's own statements out of the count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from riverq.demo.postgres import PostgresStartError, ThrowawayPostgres, find_binaries

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "1GB",
    "max_connections": "300",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track_planning": "off",
    "track_commit_timestamp": "on",
}
"""Larger buffers and fewer checkpoints than Postgres's defaults, as on any server that is in earnest; commit times tell
when a job's end was committed (before its WAL was flushed, for everybody alike). All else is Postgres's default,
autovacuum and synchronous_commit included."""

RUN_DATABASE = "bench_run"
OLDEST = 150_000
"""The first version that copies a template's files when asked to."""


class Server:
    """A running Postgres with templates. Use it in a `with` block."""

    def __init__(self, postgres: ThrowawayPostgres) -> None:
        self._postgres = postgres
        self.admin = psycopg.connect(postgres.url("postgres"), autocommit=True)
        self._made: set[str] = set()
        self.admin.execute("CREATE ROLE bench SUPERUSER LOGIN")
        self.admin.execute("CREATE EXTENSION pg_stat_statements")
        self.version: str = self.value("SHOW server_version")

    @property
    def postmaster_pid(self) -> int:
        """The root of all of Postgres's processes."""
        return int((self._postgres.folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def url(self, database: str, *, user: str = "bench") -> str:
        """Where a contender connects to."""
        return f"postgresql://{user}@{self._postgres.host}:{self._postgres.port}/{database}"

    @property
    def folder(self) -> Path:
        """Where the data are, for the report's facts about the disk."""
        return self._postgres.folder

    # -- databases

    def template(self, name: str, fill: Callable[[str], None]) -> str:
        """The database `name`, filled by `fill(its name)` the first time; vacuumed and written out."""
        if name not in self._made:
            self.drop(name)
            self.admin.execute(f'CREATE DATABASE "{name}"')
            try:
                fill(name)
            except BaseException:
                self.drop(name)
                raise
            with psycopg.connect(self.url(name, user="postgres"), autocommit=True) as conn:
                conn.execute("VACUUM (ANALYZE)")
            self._made.add(name)
        return name

    def copy(self, template: str, name: str) -> None:
        """A fresh database like `template`."""
        self.drop(name)
        self.admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._made.discard(name)

    @contextmanager
    def fresh(self, template: str, name: str = RUN_DATABASE) -> Iterator[psycopg.Connection[Any]]:
        """A fresh copy for one run, everything before it written to disk; gives the harness's connection to it."""
        self.copy(template, name)
        self.admin.execute("CHECKPOINT")
        try:
            with psycopg.connect(self.url(name, user="postgres"), autocommit=True, prepare_threshold=0) as conn:
                # "Is anything left?" is asked within the measured time: by an index, however large the table is.
                conn.execute("SET enable_seqscan = off")
                yield conn
        finally:
            self.drop(name)

    # -- figures

    def value(self, query: str, *params: object) -> Any:
        """One value, asked as `postgres`."""
        row = self.admin.execute(query.encode(), params or None).fetchone()
        return None if row is None else row[0]

    def wal_position(self) -> int:
        """Bytes of WAL written so far."""
        return int(self.value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def forget_statements(self) -> None:
        """Begin counting at zero, so that entries are never evicted."""
        self.admin.execute("SELECT pg_stat_statements_reset()")

    def statements(self, database: str) -> int:
        """Statements that contenders ran in `database`, transaction control included."""
        query = """
            SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
            WHERE d.datname = %s AND s.userid = 'bench'::regrole
        """
        return int(self.value(query, database))

    def settings(self) -> dict[str, str]:
        """Every setting that is not at its default, for the report."""
        rows = self.admin.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE source IN ('command line', 'configuration file')"
        ).fetchall()
        hidden = re.compile(
            "^(data_directory|config_file|hba_file|ident_file|unix_socket|port|listen|lc_|log_|default_text)"
        )
        return {name: value for name, value in rows if not hidden.match(name)}


@contextmanager
def running_server(settings: Mapping[str, str] = SETTINGS) -> Iterator[Server]:
    """Start one for as long as the block runs. Raises PostgresStartError where this machine has none that will do."""
    binaries = find_binaries()
    if not list(binaries.folder.parent.glob("lib/**/pg_stat_statements.*")):
        raise PostgresStartError(
            f"the Postgres in {binaries.folder} comes without pg_stat_statements "
            "(install Postgres 15 or newer with its contrib modules; on Debian and Ubuntu: apt-get install postgresql)"
        )
    with ThrowawayPostgres(fsync=True, settings=settings, binaries=binaries) as postgres:
        server = Server(postgres)
        if server.admin.info.server_version < OLDEST:
            raise PostgresStartError(f"Postgres {server.version} is too old for the benchmark, it needs 15 or newer")
        try:
            yield server
        finally:
            server.admin.close()
