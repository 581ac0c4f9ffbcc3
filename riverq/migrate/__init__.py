"""Brings River's tables about, step by step, from Python; the command line is a face of these functions.

Every function takes an `Engine`, or a `Connection` with or without a transaction. The `…_async` twins take an
`AsyncEngine` or `AsyncConnection` and are awaited. With an engine, or a connection that has no transaction yet, all
versions are applied and committed in one transaction. With a connection that is already in a transaction (one that was
used before counts, because SQLAlchemy begins by itself) the versions join it, and the caller must commit.

`river_migration` alone decides what is applied, so a database that another River client migrated is taken over as it
is. Concurrent migrators wait for each other. Versions that a newer client applied are left alone. docs/operations/
migrating.md shows this beside the command line and the way through an application's own Alembic environment.

Alembic is imported only when something is migrated or printed: a client that checks its schema does without.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from riverq.errors import ConfigError
from riverq.migrate.plan import check_known, check_line, lines_up, plan_down, plan_named, plan_up
from riverq.migrate.record import check_schema, recorded
from riverq.migrate.results import Applied, Direction, MigrationStatus, Validation
from riverq.versions import LINES, MAIN, RIVERQ, Version

__all__ = [
    "Applied",
    "MigrationStatus",
    "Validation",
    "down",
    "down_async",
    "sql",
    "status",
    "status_async",
    "up",
    "up_async",
    "validate",
    "validate_async",
]

Bind = sa.Engine | sa.Connection
AsyncBind = AsyncEngine | AsyncConnection
T = TypeVar("T")


def up(
    bind: Bind,
    *,
    line: str | None = None,
    target: int | None = None,
    max_steps: int | None = None,
    schema: str | None = None,
    dry_run: bool = False,
) -> list[Applied]:
    """Apply every missing version and return those that were applied, in order.

    `line` is "main" (River's tables), "riverq" (what riverq adds), or None for both, main first. `target` is the last
    version to apply, `max_steps` the largest number of versions; with either, None means "main". `schema` is the schema
    of River's tables, which must exist; None leaves it to the search_path. `dry_run` only tells.

    If `bind` is a connection that is already in a transaction, the caller must commit.

    Raises ConfigError on an unknown line or target, SchemaError when the schema does not exist, and MigrationError when
    a version fails or the transaction is not fit (AUTOCOMMIT, REPEATABLE READ).
    """
    lines = lines_up(line, names_versions=target is not None or max_steps is not None)

    def plan(connection: sa.Connection) -> list[Version]:
        versions: list[Version] = []
        for each in lines:
            versions += plan_up(each, recorded(connection, each, schema or None), target, max_steps)
        return versions

    return _migrate(bind, schema or None, "up", plan, dry_run=dry_run)


def down(
    bind: Bind,
    *,
    line: str | None = None,
    target: int | None = None,
    max_steps: int | None = None,
    schema: str | None = None,
    dry_run: bool = False,
) -> list[Applied]:
    """Take versions back and return them, highest first. Their tables and rows are lost.

    `line` is "main" or "riverq"; None means "main". Without `target` and `max_steps` one version is taken back.
    `target` is the version to arrive at, which stays; 0 or -1 removes every version. The rest is as in `up`.

    Raises MigrationError also when the target is not applied, or when version 5 is to be taken back while another line
    has versions in `river_migration`.
    """
    line = check_line(line or MAIN)

    def plan(connection: sa.Connection) -> list[Version]:
        return plan_down(line, recorded(connection, line, schema or None), target, max_steps)

    return _migrate(bind, schema or None, "down", plan, dry_run=dry_run)


def status(bind: Bind, *, line: str | None = None, schema: str | None = None) -> list[MigrationStatus]:
    """Every known version with the time it was applied, and after them the recorded versions of newer clients.

    Raises ConfigError on an unknown line, SchemaError when the schema does not exist.
    """
    result = []
    with _reading(bind, schema or None) as connection:
        for each in lines_up(line, names_versions=False):
            applied = recorded(connection, each, schema or None)
            known = {version.number for version in LINES[each]}
            result += [MigrationStatus(each, v.number, v.name, applied.get(v.number)) for v in LINES[each]]
            newer = sorted(set(applied) - known)
            result += [MigrationStatus(each, number, "", applied[number], known=False) for number in newer]
    return result


def validate(
    bind: Bind, *, line: str | None = None, target: int | None = None, schema: str | None = None
) -> Validation:
    """Whether every known version (up to `target`, if given) is applied.

    Without a line both are looked at, but only main's missing versions make it fail: riverq works without its own
    tables, and `warnings` says what is then off.

    Raises ConfigError on an unknown line or target, SchemaError when the schema does not exist.
    """
    lines = lines_up(line, names_versions=target is not None)
    missing = {}
    with _reading(bind, schema or None) as connection:
        for each in lines:
            applied = recorded(connection, each, schema or None)
            last = LINES[each][-1].number if target is None else check_known(each, target)
            missing[each] = tuple(v.number for v in LINES[each] if v.number <= last and v.number not in applied)
    messages = {each: _missing_message(each, numbers, schema) for each, numbers in missing.items() if numbers}
    warning = messages.pop(RIVERQ, None) if line is None else None
    warnings = (
        (f"{warning} (until then fast rescue, durable periodic jobs and timed pauses are off)",) if warning else ()
    )
    return Validation(not messages, missing, tuple(messages.values()), warnings)


def sql(
    direction: Direction = "up",
    *,
    line: str | None = None,
    versions: Iterable[int] | None = None,
    exclude: Collection[int] = (),
    schema: str | None = None,
) -> str:
    """The SQL of versions, without a database: for review, or for another migration tool.

    `versions` are the numbers to print, as in `range(5, 9)`; None means all. They come in the order in which they must
    run. `line=None` means both lines when everything is printed upwards, else main. There is no BEGIN or COMMIT, and no
    look-up: printed SQL suits a database that has none of these versions (up) or all of them (down). All versions may
    run in one transaction, except when another client left the database at version 2 or 3: there 4 must be committed
    before 6.

    Raises ConfigError on an unknown line, version or direction.
    """
    from riverq.migrate.run import render

    if direction not in ("up", "down"):
        raise ConfigError(f"expected direction to be 'up' or 'down', got: {direction!r}")
    some = versions is not None or bool(exclude) or direction == "down"
    planned: list[Version] = []
    for each in lines_up(line, names_versions=some):
        planned += plan_named(each, direction, versions, exclude)
    return render(schema or None, direction, planned)


async def up_async(
    bind: AsyncBind,
    *,
    line: str | None = None,
    target: int | None = None,
    max_steps: int | None = None,
    schema: str | None = None,
    dry_run: bool = False,
) -> list[Applied]:
    """`up` for an AsyncEngine or AsyncConnection."""
    return await _run_sync(
        bind, lambda c: up(c, line=line, target=target, max_steps=max_steps, schema=schema, dry_run=dry_run)
    )


async def down_async(
    bind: AsyncBind,
    *,
    line: str | None = None,
    target: int | None = None,
    max_steps: int | None = None,
    schema: str | None = None,
    dry_run: bool = False,
) -> list[Applied]:
    """`down` for an AsyncEngine or AsyncConnection."""
    return await _run_sync(
        bind, lambda c: down(c, line=line, target=target, max_steps=max_steps, schema=schema, dry_run=dry_run)
    )


async def status_async(bind: AsyncBind, *, line: str | None = None, schema: str | None = None) -> list[MigrationStatus]:
    """`status` for an AsyncEngine or AsyncConnection."""
    return await _run_sync(bind, lambda c: status(c, line=line, schema=schema))


async def validate_async(
    bind: AsyncBind, *, line: str | None = None, target: int | None = None, schema: str | None = None
) -> Validation:
    """`validate` for an AsyncEngine or AsyncConnection."""
    return await _run_sync(bind, lambda c: validate(c, line=line, target=target, schema=schema))


def _migrate(
    bind: Bind,
    schema: str | None,
    direction: Direction,
    plan: Callable[[sa.Connection], list[Version]],
    *,
    dry_run: bool,
) -> list[Applied]:
    if dry_run:
        with _reading(bind, schema) as connection:
            return [Applied(v.line, v.number, v.name, direction) for v in plan(connection)]
    from riverq.migrate.run import locked_transaction, run

    with _connected(bind) as connection, locked_transaction(connection):
        check_schema(connection, schema)
        return run(connection, schema, direction, plan(connection))


@contextmanager
def _connected(bind: Bind) -> Iterator[sa.Connection]:
    if isinstance(bind, sa.Engine):
        with bind.connect() as connection:
            yield connection
    elif isinstance(bind, sa.Connection):
        yield bind
    elif isinstance(bind, AsyncEngine | AsyncConnection):
        raise ConfigError(
            f"cannot migrate with {type(bind).__name__} here: await the twin, as in `await up_async(engine)`"
        )
    else:
        raise ConfigError(
            f"expected an Engine or a Connection, got: {type(bind).__name__} (session.connection() gives one)"
        )


@contextmanager
def _reading(bind: Bind, schema: str | None) -> Iterator[sa.Connection]:
    """A connection to ask with; a transaction that began by asking is ended, one of the caller's is left alone."""
    with _connected(bind) as connection:
        ours = not connection.in_transaction()
        try:
            check_schema(connection, schema)
            yield connection
        finally:
            if ours:
                connection.rollback()


async def _run_sync(bind: AsyncBind, function: Callable[[sa.Connection], T]) -> T:
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as connection:
            return await connection.run_sync(function)
    if isinstance(bind, AsyncConnection):
        return await bind.run_sync(function)
    raise ConfigError(f"expected an AsyncEngine or an AsyncConnection, got: {type(bind).__name__}")


def _missing_message(line: str, numbers: tuple[int, ...], schema: str | None) -> str:
    command = "riverq migrate-up" + (f" --schema {shlex.quote(schema)}" if schema else "")
    listed = ", ".join(str(number) for number in numbers)
    return f"migration line {line!r} lacks version {listed}: run `{command}`"
