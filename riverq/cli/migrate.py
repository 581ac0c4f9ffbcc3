"""`riverq migrate-up`, `migrate-down`, `migrate-list`, `migrate-get` and `validate`: River's commands, River's options.

Each command's parser sets `run`, a function of the parsed arguments that returns the exit code. Errors are raised as
riverq's own classes and are the caller's to print.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq import migrate
from riverq.driver import load_driver
from riverq.driver.failures import message, translate
from riverq.errors import ConfigError, DatabaseError, RiverqError, SchemaError
from riverq.migrate import Applied, MigrationStatus
from riverq.versions import MAIN

AnyEngine = sa.Engine | AsyncEngine
Connect = Callable[[argparse.Namespace], AnyEngine]
Parsers = Any  # argparse keeps the class of `add_subparsers()` to itself
T = TypeVar("T")


def add_parsers(subparsers: Parsers, connect: Connect | None = None) -> None:
    """Register the five commands. `connect` makes the engine from the arguments; by default from `--database-url`."""
    engine_of = connect or _connect
    _add_up_and_down(subparsers, engine_of)

    listing = subparsers.add_parser("migrate-list", help="list versions and whether they are applied")
    _add_common(listing, database=True)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=lambda args: _list(args, engine_of))

    check = subparsers.add_parser("validate", help="exit with 1 if a version is missing")
    _add_common(check, database=True)
    check.add_argument("--target-version", type=int, metavar="N", help="look at versions up to this one only")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=lambda args: _validate(args, engine_of))

    get = subparsers.add_parser("migrate-get", help="print the SQL of versions; needs no database")
    _add_common(get, database=False)
    which = get.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every version")
    which.add_argument("--version", type=_numbers, action="extend", metavar="N", help="a version; may be repeated")
    get.add_argument("--exclude-version", type=_numbers, action="extend", metavar="N", default=[], help="leave one out")
    direction = get.add_mutually_exclusive_group()
    direction.add_argument("--up", action="store_const", const="up", dest="direction", help="towards newer (default)")
    direction.add_argument("--down", action="store_const", const="down", dest="direction", help="back")
    get.set_defaults(run=_get, direction="up")


def _add_up_and_down(subparsers: Parsers, connect: Connect) -> None:
    for direction, what in (("up", "apply all missing versions"), ("down", "take back one version, or more")):
        parser = subparsers.add_parser(f"migrate-{direction}", help=what)
        _add_common(parser, database=True)
        last = "the last version to apply" if direction == "up" else "the version to arrive at; 0 or -1 removes all"
        parser.add_argument("--target-version", type=int, metavar="N", help=last)
        parser.add_argument("--max-steps", type=int, metavar="N", help="at most so many versions")
        parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
        parser.add_argument("--show-sql", action="store_true", help="print the SQL of each version")
        parser.set_defaults(run=lambda args: _migrate(args, connect), direction=direction)


def _add_common(parser: argparse.ArgumentParser, *, database: bool) -> None:
    if database:
        parser.add_argument("--database-url", metavar="URL", help="Postgres URL; DATABASE_URL by default")
    parser.add_argument("--line", help="main (River's tables) or riverq (what riverq adds)")
    parser.add_argument("--schema", help="the schema of River's tables; by default the search_path decides")


def _numbers(text: str) -> list[int]:
    """`3` or `3,4`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected versions such as 3 or 3,4, got: {text!r}") from None


def _connect(args: argparse.Namespace) -> AnyEngine:
    from riverq.cli.database import engine_from_args

    return engine_from_args(args)


def _migrate(args: argparse.Namespace, connect: Connect) -> int:
    options = {
        "line": args.line,
        "target": args.target_version,
        "max_steps": args.max_steps,
        "schema": args.schema,
        "dry_run": args.dry_run,
    }
    up = args.direction == "up"
    applied = _call(
        connect(args),
        lambda engine: (migrate.up if up else migrate.down)(engine, **options),
        lambda engine: (migrate.up_async if up else migrate.down_async)(engine, **options),
    )
    for each in applied:
        print(_line_of_applied(each, dry_run=args.dry_run))
        if args.show_sql:
            print(migrate.sql(each.direction, line=each.line, versions=[each.version], schema=args.schema))
    if not applied:
        print("no versions to migrate")
    return 0


def _line_of_applied(each: Applied, *, dry_run: bool) -> str:
    verb = "would apply" if dry_run else "applied"
    took = "" if dry_run else f" [{each.duration.total_seconds() * 1000:.1f} ms]"
    line = "" if each.line == MAIN else f"{each.line} "
    return f"{verb} migration {line}{each.version:03} [{each.direction}] {each.name}{took}"


def _list(args: argparse.Namespace, connect: Connect) -> int:
    rows: Sequence[MigrationStatus] = _call(
        connect(args),
        lambda engine: migrate.status(engine, line=args.line, schema=args.schema),
        lambda engine: migrate.status_async(engine, line=args.line, schema=args.schema),
    )
    if args.json:
        print(json.dumps([asdict(row) | {"applied": row.applied} for row in rows], default=_iso, indent=2))
        return 0
    for row in rows:
        line = "" if row.line == MAIN else f"{row.line} "
        name = row.name if row.known else "(of a newer client)"
        print(f"{'*' if row.applied else ' '} {line}{row.version:03} {name}")
    return 0


def _validate(args: argparse.Namespace, connect: Connect) -> int:
    options = {"line": args.line, "target": args.target_version, "schema": args.schema}
    result = _call(
        connect(args),
        lambda engine: migrate.validate(engine, **options),
        lambda engine: migrate.validate_async(engine, **options),
    )
    if args.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        for message in (*result.messages, *result.warnings):
            print(message)
        if result.ok:
            print("all versions are applied" if not result.warnings else "River's tables are up to date")
    return 0 if result.ok else 1


def _get(args: argparse.Namespace) -> int:
    versions = None if args.all else args.version
    print(
        migrate.sql(
            args.direction, line=args.line, versions=versions, exclude=args.exclude_version, schema=args.schema
        ),
        end="",
    )
    return 0


def _call(
    engine: AnyEngine,
    function: Callable[[sa.Engine], T],
    twin: Callable[[AsyncEngine], Coroutine[Any, Any, T]],
) -> T:
    """Call with a sync engine, or await the twin where only an async driver is installed; then close the engine."""
    try:
        if isinstance(engine, AsyncEngine):
            return asyncio.run(_await_and_close(engine, twin))
        try:
            return function(engine)
        finally:
            engine.dispose()
    except RiverqError:
        raise
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ConfigError(
            f"the database URL has an option that {engine.dialect.driver} does not know: {error}"
        ) from error
    except Exception as error:  # asyncpg lets its own errors and the operating system's through
        told = translate(error, load_driver(engine))
        if isinstance(told, SchemaError):  # it would name the command that failed here
            told = DatabaseError(f"a statement failed: {message(error.__cause__ or error)}")
        raise told from error


async def _await_and_close(engine: AsyncEngine, twin: Callable[[AsyncEngine], Coroutine[Any, Any, T]]) -> T:
    try:
        return await twin(engine)
    finally:
        await engine.dispose()


def _iso(value: Any) -> str:
    return str(value.isoformat())
