"""`riverq queues list|pause|resume|update`: what queues there are, what waits in them, and which may begin jobs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection

from riverq.cli.call import add_database, ask
from riverq.cli.values import moment, plain, positive_duration, shown, table
from riverq.errors import ConfigError
from riverq.query.job_count import JobCounts, job_count_by_queue
from riverq.query.queue import queue_list, queue_pause_ends
from riverq.query.schema import table_exists
from riverq.queue import Queue

ALL = "*"
MOST = 10_000
ACTIONS = ("list", "pause", "resume", "update")


def add_parser(commands: Any) -> None:
    """Register `riverq queues` and its actions."""
    actions = commands.add_parser("queues", help="list, pause, resume and describe queues").add_subparsers(
        metavar="ACTION", required=True
    )
    listing = actions.add_parser("list", help="list every queue that some client has worked")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    pause = actions.add_parser("pause", help="let no client begin a job of a queue")
    pause.add_argument("name", metavar="NAME", help="a queue, or '*' for all")
    end = pause.add_mutually_exclusive_group()
    end.add_argument("--for", type=positive_duration, dest="lasting", metavar="TIME", help="as 30s, 1h30m")
    end.add_argument("--until", type=moment, metavar="TIME", help="with its zone, as 2026-11-21T18:00:00Z")
    pause.set_defaults(run=_pause)

    resume = actions.add_parser("resume", help="end a pause")
    resume.add_argument("name", metavar="NAME", help="a queue, or '*' for all")
    resume.set_defaults(run=_resume)

    update = actions.add_parser("update", help="replace a queue's metadata")
    update.add_argument("name", metavar="NAME", help="a queue")
    update.add_argument("--metadata", type=_object, metavar="JSON", required=True, help="an object, as '{\"a\": 1}'")
    update.set_defaults(run=_update)
    for each in (listing, pause, resume, update):
        add_database(each)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got: {text!r}")
    return found


class _Overview(NamedTuple):
    """The queues, the ends of their pauses, and the jobs of every queue, also of one that has no row."""

    queues: list[Queue]
    ends: dict[str, datetime]
    counts: dict[str, JobCounts]


def _list(args: argparse.Namespace) -> int:
    queues, ends, counts = ask(args, lambda client: client._control(None, _overview))
    if args.json:
        listed = [
            asdict(each) | {"paused_until": ends.get(each.name)} | counts.get(each.name, JobCounts())._asdict()
            for each in queues
        ]
        print(json.dumps(listed, default=plain, indent=2, ensure_ascii=False))
        return 0
    if queues:
        head = ("NAME", "AVAILABLE", "RUNNING", "PAUSED SINCE", "UNTIL", "UPDATED", "METADATA")
        print(table(head, [_cells(each, ends, counts.get(each.name, JobCounts())) for each in queues]))
    else:
        print("no queues yet (a queue appears when a client first works it)")
    if len(queues) == MOST:
        print(f"(the first {MOST})")
        return 0
    for name in sorted(counts.keys() - {each.name for each in queues}):
        print(f"(no client has worked queue {name!r}; jobs available there: {counts[name].available})")
    return 0


def _cells(queue: Queue, ends: dict[str, datetime], counts: JobCounts) -> tuple[Any, ...]:
    return queue.name, *counts, queue.paused_at, ends.get(queue.name), queue.updated_at, _shown_metadata(queue)


def _overview(conn: Connection, schema: str) -> _Overview:
    ends = queue_pause_ends(conn, schema) if table_exists(conn, schema, "riverq_queue") else {}
    return _Overview(queue_list(conn, schema, limit=MOST), ends, job_count_by_queue(conn, schema))


def _shown_metadata(queue: Queue) -> str:
    return json.dumps(queue.metadata, ensure_ascii=False)


def _pause(args: argparse.Namespace) -> int:
    lasting: timedelta | None = args.lasting
    until = args.until if lasting is None else lasting
    if args.until is not None and args.until <= datetime.now(UTC):
        raise ConfigError(f"expected --until to be a time to come, got: {shown(args.until)} (to end a pause: resume)")
    ask(args, lambda client: client.queue_pause(args.name, until))
    end = "" if until is None else f" for {lasting}" if lasting is not None else f" until {shown(until)}"
    print(f"{_named(args.name, 'paused')}{end}; jobs that run go on")
    return 0


def _resume(args: argparse.Namespace) -> int:
    ask(args, lambda client: client.queue_resume(args.name))
    print(_named(args.name, "resumed"))
    return 0


def _update(args: argparse.Namespace) -> int:
    if args.name == ALL:
        raise ConfigError("metadata is set queue by queue, got: '*' (riverq queues list names them)")
    queue: Queue = ask(args, lambda client: client.queue_update(args.name, metadata=args.metadata))
    print(f"queue {queue.name!r} updated; its metadata is now {json.dumps(queue.metadata, ensure_ascii=False)}")
    return 0


def _named(name: str, verb: str) -> str:
    return f"all queues {verb}" if name == ALL else f"queue {name!r} {verb}"
