"""Runs revisions: one transaction, one lock, no Alembic environment.

The lock is taken before the record is read, so that of two migrators the second finds everything done. Revisions are
called one by one with operations bound to the connection; Alembic's environment and its version table, which would go
stale as soon as another client migrates, are not involved, and nothing is left behind but River's tables.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from time import perf_counter
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql

from riverq.errors import MigrationError
from riverq.migrate.results import Applied, Direction
from riverq.versions import Version

log = logging.getLogger("riverq.migrate")

LOCK_KEY = 125797283492465
"""ASCII "riverq"; the revisions take the same key when an application's own environment runs them."""


@contextmanager
def locked_transaction(connection: sa.Connection) -> Iterator[None]:
    """Hold the migration lock in one READ COMMITTED transaction: the caller's if it has one, else one of our own.

    Raises MigrationError where the transaction cannot hold the lock or would not see what its last holder did.
    """
    if connection.in_transaction():
        _refuse_old_snapshot(connection)
        _lock(connection)
        yield
        return
    with connection.begin():
        # First of all: a snapshot taken before the lock is granted would hide what the other migrator just did.
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
        _lock(connection)
        yield


def _refuse_old_snapshot(connection: sa.Connection) -> None:
    level = connection.scalar(sa.text("SHOW transaction_isolation"))
    if level != "read committed":
        raise MigrationError(
            f"cannot migrate in a transaction of isolation level {level}: pass an engine, or a connection with "
            "execution_options(isolation_level='READ COMMITTED')"
        )


def _lock(connection: sa.Connection) -> None:
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK_KEY})"))
    held = connection.scalar(
        sa.text(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted "
            f"AND classid = {LOCK_KEY >> 32} AND objid = {LOCK_KEY & 0xFFFFFFFF} AND objsubid = 1)"
        )
    )
    if not held:
        raise MigrationError(
            "cannot migrate in AUTOCOMMIT: every version must come about whole and under one lock; pass an engine or "
            "connection without isolation_level='AUTOCOMMIT'"
        )


def run(
    connection: sa.Connection, schema: str | None, direction: Direction, versions: Sequence[Version]
) -> list[Applied]:
    """Run versions in the given order on a connection that holds the lock.

    Raises MigrationError with the version that failed; its cause is the database's error.
    """
    operations = Operations(MigrationContext.configure(connection=connection))
    applied = []
    for version in versions:
        started = perf_counter()
        try:
            _step(version, direction)(operations=operations, schema=schema)
        except CommandError as error:
            raise MigrationError(f"{_title(version, direction)} was refused: {error}") from error
        except sa.exc.DBAPIError as error:
            raise MigrationError(f"{_title(version, direction)} failed: {error.orig}") from error
        duration = timedelta(seconds=perf_counter() - started)
        log.info("migrate: Ran %s (duration=%s)", _title(version, direction), duration)
        applied.append(Applied(version.line, version.number, version.name, direction, duration))
    return applied


def render(schema: str | None, direction: Direction, versions: Sequence[Version]) -> str:
    """The SQL of versions in the given order, each under a comment that names it, without BEGIN and COMMIT."""
    buffer = io.StringIO()
    # Named parameters: with the default style every `%` would be printed doubled.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    options = {"as_sql": True, "literal_binds": True, "output_buffer": buffer}
    operations = Operations(MigrationContext.configure(dialect=dialect, opts=options))
    for version in versions:
        buffer.write(f"-- {_title(version, direction)}\n\n")
        _step(version, direction)(operations=operations, schema=schema)
    return buffer.getvalue()


def _title(version: Version, direction: Direction) -> str:
    return f"migration {version.line} {version.number:03} [{direction}] {version.name}"


def _step(version: Version, direction: Direction) -> Any:
    """A revision's `upgrade` or `downgrade`."""
    module = _scripts().get_revision(version.revision).module
    return module.upgrade if direction == "up" else module.downgrade


@cache
def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "riverq_migrations:")
    return ScriptDirectory.from_config(config)
