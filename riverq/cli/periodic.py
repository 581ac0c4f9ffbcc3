"""`riverq periodic list [module:attribute]`: the durable rows, and with a client what it has registered.

With a client, its own database is asked. The next time of a job that is not durable is what its
schedule says from now on: the leader of the fleet counts from when it began to lead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from riverq.cli.call import add_database, answer, ask
from riverq.cli.values import plain, shown, table
from riverq.cli.worker import load_target, make_client
from riverq.cron import CronSchedule
from riverq.errors import ConfigError, SchemaError
from riverq.periodic import PeriodicJob
from riverq.query.periodic_job import PeriodicRow, periodic_job_list
from riverq.query.schema import table_exists
from riverq.schedule import Every, Never, Schedule

ACTIONS = ("list",)


@dataclass(frozen=True)
class _Line:
    """One job: what is registered (None: by no client that was asked), and what is kept."""

    id: str | None
    registered: bool | None
    durable: bool
    schedule: str | None
    next_run_at: datetime | None
    updated_at: datetime | None


def add_parser(commands: Any) -> None:
    """Register `riverq periodic` and its action."""
    actions = commands.add_parser("periodic", help="list periodic jobs").add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list durable periodic jobs, and those of a client")
    listing.add_argument("client", metavar="MODULE:ATTRIBUTE", nargs="?", help="a client, or a function that makes one")
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_database(listing)
    listing.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> int:
    registered: Sequence[tuple[PeriodicJob, datetime | None]] = ()
    if args.client is None:
        rows = ask(args, lambda client: client._control(None, _rows))
        if rows is None:
            raise SchemaError("riverq's own tables are missing, so there are no durable jobs (run: riverq migrate-up)")
    else:
        rows, registered = asyncio.run(_of_client(args))
    lines = _lines(rows or [], registered, with_client=args.client is not None)
    if args.json:
        print(json.dumps([vars(line) for line in lines], default=plain, indent=2, ensure_ascii=False))
    elif not lines:
        print(
            "no periodic jobs" if args.client else "no durable periodic jobs (with MODULE:ATTRIBUTE: all of a client)"
        )
    else:
        print(table(("ID", "NEXT RUN", "DURABLE", "SCHEDULE", "MOVED"), [_cells(line) for line in lines]))
    if rows is None and not args.json:
        print("(riverq's own tables are missing, so nothing is durable; run: riverq migrate-up)")
    return 0


async def _of_client(args: argparse.Namespace) -> tuple[list[PeriodicRow] | None, Any]:
    if args.database_url is not None or args.schema is not None:
        raise ConfigError(
            "a client has its own database, got --database-url or --schema beside it (leave either of them out)"
        )
    client = await make_client(load_target(args.client), args.client)
    registered = client.periodic_jobs.next_run_times()
    return await answer(client, lambda client: client._control(None, _rows)), registered


def _rows(conn: Connection, schema: str) -> list[PeriodicRow] | None:
    """None where there is no such table."""
    return periodic_job_list(conn, schema) if table_exists(conn, schema, "riverq_periodic_job") else None


def _lines(
    rows: Sequence[PeriodicRow],
    registered: Sequence[tuple[PeriodicJob, datetime | None]],
    *,
    with_client: bool,
) -> list[_Line]:
    """The client's jobs in its order, each with its row; then the rows that it does not know."""
    kept = {row.id: row for row in rows}
    lines = []
    for job, next_run in registered:
        row = kept.pop(job.id, None) if job.durable and job.id is not None else None
        at = next_run if row is None else row.next_run_at
        moved = None if row is None else row.updated_at
        lines.append(_Line(job.id, True, job.durable, _words(job.schedule), at, moved))
    others = False if with_client else None
    lines += [_Line(row.id, others, True, None, row.next_run_at, row.updated_at) for row in kept.values()]
    return lines


def _words(schedule: Schedule) -> str:
    """As it was written, where it is one of ours."""
    if isinstance(schedule, CronSchedule):
        return schedule.spec
    if isinstance(schedule, Every):
        return f"every {schedule.interval}"
    return "never" if isinstance(schedule, Never) else str(schedule)


def _cells(line: _Line) -> tuple[Any, ...]:
    schedule = "(not registered by this client)" if line.registered is False else line.schedule
    overdue = line.next_run_at is not None and line.next_run_at < datetime.now(UTC)
    next_run = f"{shown(line.next_run_at)}{' (due)' if overdue else ''}" if line.next_run_at else "never"
    return line.id, next_run, "yes" if line.durable else "no", schedule, line.updated_at
