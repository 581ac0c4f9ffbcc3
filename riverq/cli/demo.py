"""`riverq demo`: see riverq work on real input, on a Postgres of its own or on yours."""

from __future__ import annotations

import argparse
from typing import Any

from riverq.cli.database import read_url
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
    return run_demo(read_url(args.database_url) if args.database_url is not None else None, limit=args.files)
