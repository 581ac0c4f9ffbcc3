"""`riverq demo`: see riverq work on real input, on a Postgres of its own or on yours."""

from __future__ import annotations

import argparse
from typing import Any

from riverq.cli.database import complete
from riverq.errors import ConfigError, RiverqError


def add_parser(commands: Any) -> None:
    """Register `riverq demo`."""
    parser = commands.add_parser("demo", help="index Python's standard library with two workers, and count")
    parser.add_argument(
        "--database-url", metavar="URL", help="use this Postgres (in schema riverq_demo, dropped after)"
    )
    parser.add_argument("--files", type=int, metavar="N", help="only the first N files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0 if every file was indexed and every job completed once."""
    if args.files is not None and args.files < 1:
        raise ConfigError(f"expected --files to be at least 1, got: {args.files}")
    try:
        from riverq.demo.run import run as run_demo
    except ModuleNotFoundError as error:
        raise RiverqError(f"the demo needs {error.name} (pip install 'riverq[demo]')") from error
    return run_demo(_url(args.database_url), limit=args.files)


def _url(text: str | None) -> Any:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if text is None:
        return None
    try:
        return complete(make_url(text))
    except ArgumentError as error:
        raise ConfigError("the database URL cannot be read (postgresql://user:password@host:5432/name)") from error
