"""What a measurement runs on (server, contenders, logs), and the measurements that several questions share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.contenders.registry import ROOT, Contender
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.fill import fill_template
from benchmarks.harness.meter import Meter, Usage
from benchmarks.harness.pooler import Pooler
from benchmarks.harness.process import STOP_SECONDS, ChildFailed, ChildProcess
from benchmarks.harness.quiet import wait_for_quiet
from benchmarks.harness.server import RUN_DATABASE, Server

CAP_SECONDS = 30.0
"""The longest that one contender works at one run; the rate is then that of the jobs done."""

_LOOK_SECONDS = 0.002

Connection = psycopg.Connection[Any]


class CountMismatch(Exception):
    """Jobs were lost or ran twice: no figure of such a run may stand."""


@dataclass(frozen=True)
class Stage:
    """One run's surroundings."""

    server: Server
    contenders: Mapping[str, Contender]
    logs: Path
    place: str = ""
    """The machine and its Postgres, in short: figures of one place are not those of another."""
    beside: dict[str, Figures | Exception] = field(default_factory=dict)
    """What was measured for one contender beside another, until its own turn comes."""
    at_start: Callable[[int], None] = lambda pid: None
    """Called with each measured process's number just before the clock starts; a profiler fastens itself here."""

    def template(self, contender: Contender, content: Content) -> str:
        """The database that is copied for `contender`, made when it is asked for the first time."""
        filler = self.contenders["riverq-asyncpg"] if contender.family == "river" else contender
        name = content.template_name(contender.family)
        log = self.logs / f"fill-{contender.family}.log"
        return self.server.template(
            name, lambda database: fill_template(self.server, database, contender, filler, content, log)
        )

    @contextmanager
    def database(self, contender: Contender, content: Content) -> Iterator[Connection]:
        """A fresh database for one run."""
        with self.server.fresh(self.template(contender, content)) as conn:
            yield conn

    @contextmanager
    def children(self, contender: Contender, task: Mapping[str, Any], count: int = 1) -> Iterator[list[ChildProcess]]:
        """`count` processes of `contender`, loaded and waiting for the clock's start."""
        full = {"url": self.server.url(RUN_DATABASE), **task, **contender.extra}
        log = self.logs / f"{contender.name}.log"
        log.write_bytes(b"")
        with ExitStack() as stack:
            started = [stack.enter_context(ChildProcess(contender.command(), full, log, ROOT)) for _ in range(count)]
            for child in started:
                child.ready()
            wait_for_quiet()
            yield started


def figures(usage: Usage, jobs: int, **more: Any) -> Figures:
    """What is written down of a run."""
    return {
        "jobs": jobs,
        "seconds": usage.seconds,
        "rate": jobs / usage.seconds,
        **usage.per_job(jobs),
        "disturbed": usage.disturbed,
        **more,
    }


def work(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Work a backlog (or what the same process inserts meanwhile): jobs done per second, until the table says so."""
    content = cell.content_for(contender.name)
    with stage.database(contender, content) as conn:
        return work_on(stage, contender, cell, conn)


Count = Callable[[Connection, int], tuple[int, str | None]]


def work_on(
    stage: Stage,
    contender: Contender,
    cell: Cell,
    conn: Connection,
    *,
    through: Pooler | None = None,
    count: Count = lambda _conn, finished: (finished, None),
) -> Figures:
    """The same on a database that is there, straight or through a pooler.

    `count` makes of the finished jobs what the rate counts, and may add a note.
    """
    until = cell.jobs_for(contender.name)
    task = {
        "task": "work",
        "job": "noop",
        **cell.task,
        "until": until,
        "insert": until if cell.task.get("insert") else 0,
    }
    if through is not None:
        task["url"] = through.url
    with stage.children(contender, task, int(cell.task.get("processes", 1))) as children:
        meter = Meter(stage.server, RUN_DATABASE, [child.pid for child in children], [through.pid] if through else [])
        meter.start()
        for child in children:
            stage.at_start(child.pid)
            child.go()
        capped = not _wait(children, until, conn, contender.tables.remaining)
        # Whoever was cut off works on while this is counted: count first, then stop the clock.
        done, note = count(conn, _count(conn, contender.tables.finished)) if capped else (until, None)
        usage = meter.stop()
        executed = [child.stop() for child in children]
    _check(contender, until, sum(executed), _count(conn, contender.tables.finished), capped=capped)
    more = {"note": note} if note else {}
    return figures(usage, done, executed=sum(executed), capped=capped, **more)


def _check(contender: Contender, until: int, executed: int, finished: int, *, capped: bool) -> None:
    """Every job once. Who was cut off may have run jobs whose end it could not write any more."""
    if executed < 0:
        raise ChildFailed(f"{contender.name} did not stop within {STOP_SECONDS:g} s")
    if executed < finished or (not capped and (executed != until or finished != until)):
        raise CountMismatch(f"{contender.name}: {until} jobs, {executed} runs, {finished} finished in the table")


def _wait(children: Sequence[ChildProcess], until: int, conn: Connection, remaining: str) -> bool:
    """Until the children have run everything and the table agrees; False if the cap came first."""
    deadline = time.monotonic() + CAP_SECONDS
    while time.monotonic() < deadline:
        for child in children:
            child.check()
        if sum(child.executed for child in children) >= until:
            if not _exists(conn, remaining):
                return True
            time.sleep(_LOOK_SECONDS)
        elif len(children) == 1:
            children[0].progressed.wait(0.1)
            children[0].progressed.clear()
        else:
            time.sleep(_LOOK_SECONDS * 5)
    return False


def _exists(conn: Connection, query: str) -> bool:
    row = conn.execute(query.encode()).fetchone()
    return bool(row and row[0])


def _count(conn: Connection, query: str) -> int:
    row = conn.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0
