"""`riverq bench`: what riverq does on your database with your adapter, and what keeps it from doing more.

Works in a schema that it makes and drops itself, also after Ctrl-C, SIGTERM or SIGHUP, and when nobody reads what it
says any more. A second signal is answered with patience, a third with leaving the schema behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL

from riverq.cli.bench_progress import progress_on, say
from riverq.cli.database import database_url, make_engine
from riverq.cli.signals import handling
from riverq.driver import load_driver_class
from riverq.errors import ConfigError, RiverqError

if TYPE_CHECKING:
    from riverq.bench.place import Place

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASYNC_SUFFIX = "_async"
"""SQLAlchemy's name for the async face of psycopg is `psycopg_async`."""

SHOW_CURSOR = b"\x1b[?25h"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 24 * 3600.0


def add_parser(commands: Any) -> None:
    """Register `riverq bench`."""
    parser = commands.add_parser("bench", help="measure riverq on your database, and say what limits it")
    parser.add_argument("--database-url", metavar="URL", help="Postgres URL; DATABASE_URL by default")
    parser.add_argument("--schema", help="make and drop this schema, riverq_bench…; riverq_bench_<random> by default")
    parser.add_argument(
        "--duration", type=_duration, metavar="TIME", help="how long about, as 30s or 1m (default: 10s)"
    )
    parser.add_argument("-n", "--num-total-jobs", type=int, metavar="JOBS", help="work a backlog of so many jobs")
    parser.add_argument("--workers", type=int, metavar="N", help="how many jobs run at once (default: 2000)")
    parser.add_argument(
        "--default-settings", action="store_true", help="a client's own waits, not those of Go River's bench"
    )
    parser.add_argument("--async", action="store_true", dest="asynchronous", help="AsyncClient where there are both")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0 when everything was measured, 128 and the signal's number after a signal."""
    from riverq.bench.plan import DEFAULT_WORKERS, Plan

    plan = Plan(
        seconds=args.duration,
        jobs=args.num_total_jobs,
        workers=DEFAULT_WORKERS if args.workers is None else args.workers,
        tuned=not args.default_settings,
        schema=args.schema or "",
    )
    url = database_url(args)
    name = url.drivername.partition("+")[2]
    url = url.set(drivername=url.drivername.removesuffix(ASYNC_SUFFIX))
    asynchronous = args.asynchronous or name.endswith(ASYNC_SUFFIX)
    capabilities = load_driver_class(url.drivername.partition("+")[2]).capabilities
    if asynchronous and not capabilities.async_:
        raise ConfigError(f"{name} has no async face (leave --async out, or use psycopg or asyncpg)")
    # What matters is told in the result or in the error; lines in between would tear the bar.
    logging.basicConfig(level=logging.WARNING if args.debug else logging.CRITICAL, stream=sys.stderr)
    return asyncio.run(_bench(url, plan, asynchronous=asynchronous or not capabilities.sync, as_json=args.json))


async def _bench(url: URL, plan: Any, *, asynchronous: bool, as_json: bool) -> int:
    from riverq.bench.place import Fate, Place
    from riverq.bench.plan import Target
    from riverq.bench.report import Report
    from riverq.bench.run import measure
    from riverq.bench.verdict import Evidence, judge

    target = Target(
        lambda name: make_engine(url, application_name=name, asynchronous=asynchronous), asynchronous=asynchronous
    )
    place = Place(plan.schema, plan.mark)
    figures = None
    with Interrupts(place).handled() as interrupts, progress_on(sys.stderr, quiet=as_json) as progress:
        try:
            figures = await measure(target, plan, progress, place)
        except (asyncio.CancelledError, RiverqError) as error:
            if interrupts.first is None:
                raise
            if isinstance(error, RiverqError):
                say(f"riverq: {error}", sys.stderr)
    if figures is None or interrupts.first is not None:
        say(f"riverq: interrupted; {place.sentence}", sys.stderr)
        return 128 + (interrupts.first or signal.SIGINT)
    if place.fate is not Fate.DROPPED:
        say(f"riverq: {place.sentence}", sys.stderr)
    report = Report(_where(url), plan, figures, judge(Evidence.of(figures)))
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        print(report.text(min(100, shutil.get_terminal_size().columns)))
    return 0


def _where(url: URL) -> str:
    host = url.host or url.query.get("host") or "the local socket"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or url.username or ''}"


class Interrupts:
    """The first signal cancels the task, which drops its schema; the third leaves without."""

    def __init__(self, place: Place) -> None:
        self.first: int | None = None
        self._place = place
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    @contextmanager
    def handled(self) -> Iterator[Interrupts]:
        """Handle the signals here while the block runs; those that are ignored (as by nohup) stay so."""
        mine = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        with handling(mine, self._handle):
            yield self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 2:
            with suppress(OSError):
                os.write(2, f"riverq: ended at once; {self._place.sentence}\n".encode())
                if os.isatty(2):
                    os.write(2, SHOW_CURSOR)
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._act, number, self._count)

    def _act(self, number: int, count: int) -> None:
        if count == 1 and self._task is not None:
            self.first = number
            self._task.cancel()
        elif count == 2:
            say("riverq: still ending (once more ends at once)", sys.stderr)


def _duration(text: str) -> float:
    """`30s`, `500ms`, `1m30s`, or seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        parts = [(text, "s")]
    elif not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 500ms or 1m30s, got: {text!r}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"expected a time of more than 0 and at most a day, got: {text!r}")
    return seconds
