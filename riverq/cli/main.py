"""Finds the command and turns what goes wrong into one sentence and an exit code.

0 is success, 1 that the command failed, 2 that it was called wrongly. Nobody sees a traceback for something that they
can mend themselves; `--debug` shows it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import dropwhile
from typing import NoReturn

from riverq.cli import bench, demo, leader, migrate, periodic, queues, worker
from riverq.errors import ConfigError, RiverqError
from riverq.validation import nearest

COMMANDS = (
    "migrate-up",
    "migrate-down",
    "migrate-list",
    "migrate-get",
    "validate",
    "worker",
    "queues",
    "leader",
    "periodic",
    "bench",
    "demo",
    "version",
)

ACTIONS = {"queues": queues.ACTIONS, "leader": leader.ACTIONS, "periodic": periodic.ACTIONS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = make_parser()
    given = sys.argv[1:] if argv is None else argv
    _check_command(parser, given)
    args = parser.parse_args(given)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except RiverqError as error:
        if args.debug:
            raise
        print(f"riverq: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except TypeError as error:
        if args.debug:
            raise
        print(f"riverq: unexpected {type(error).__name__}: {error} (riverq --debug … shows where)", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter complains about the pipe once more
        return 1


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(2, f"riverq: {message} (see {self.prog} --help)\n")


def _check_command(parser: argparse.ArgumentParser, given: Sequence[str]) -> None:
    """argparse lists all commands for one that is misspelt; this names the nearest."""
    words = list(dropwhile(lambda argument: argument.startswith("-"), given))
    if words and words[0] not in COMMANDS:
        parser.error(f"unknown command {words[0]!r}: {nearest(words[0], COMMANDS)}")
    known = ACTIONS.get(words[0], ()) if words else ()
    if known and len(words) > 1 and not words[1].startswith("-") and words[1] not in known:
        parser.error(f"unknown action {words[1]!r} of {words[0]}: {nearest(words[1], known)}")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line, also for the documentation's test."""
    parser = Parser(prog="riverq", description="River, the Postgres job queue, for Python.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=f"riverq {version('riverq')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    migrate.add_parsers(commands)
    worker.add_parser(commands)
    queues.add_parser(commands)
    leader.add_parser(commands)
    periodic.add_parser(commands)
    bench.add_parser(commands)
    demo.add_parser(commands)
    show = commands.add_parser("version", help="print the version")
    show.set_defaults(run=_version)
    return parser


def _version(_args: argparse.Namespace) -> int:
    print(f"riverq {version('riverq')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
