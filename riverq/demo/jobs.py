"""The demo's application: a table of its own, two kinds of job, and the clients that work them.

It shows what riverq is for. `IndexFile` is enqueued in the transaction that adds the file's row, and it is completed in
the transaction that stores the file's figures: a crash anywhere leaves either all of it or none of it.
"""

from __future__ import annotations

import ast
import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

from sqlalchemy import URL, Engine, ForeignKey, MetaData, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from riverq.client import AsyncClient, Client
from riverq.config import Config, QueueConfig
from riverq.driver import Driver, load_driver_class
from riverq.errors import JobSnooze
from riverq.job import Job
from riverq.job_args import job_args
from riverq.registry import Workers
from riverq.unique import UniqueOpts

SCHEMA = "riverq_demo"
QUEUE = "index"
GRACE = timedelta(seconds=6)
"""How long a worker may be silent before its jobs go to others: the least that riverq allows, not its 30 s."""
FAILS_ONCE = 70
"""Every so-manieth file's job fails at its first attempt."""


class Base(DeclarativeBase):
    """The application's tables, in the demo's schema."""

    metadata = MetaData(schema=SCHEMA)


class SourceFile(Base):
    """A file of the standard library; the figures are empty until its job has run."""

    __tablename__ = "source_file"

    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(unique=True)
    package: Mapped[str]
    lines: Mapped[int | None]
    functions: Mapped[int | None]
    imports: Mapped[int | None]
    worked_by: Mapped[str | None]


class Summary(Base):
    """What the unique job counted at the end; at most one row, or a job ran twice."""

    __tablename__ = "summary"

    id: Mapped[int] = mapped_column(primary_key=True)
    files: Mapped[int]
    largest_id: Mapped[int] = mapped_column(ForeignKey(SourceFile.id))


@job_args("demo_index_file", queue=QUEUE)
@dataclass
class IndexFile:
    """Count the lines, functions and imports of one file."""

    file_id: int
    path: str


@job_args("demo_summarise", queue=QUEUE, unique_opts=UniqueOpts(by_args=True))
@dataclass
class Summarise:
    """Wait for all files, then find the largest. Unique: inserting it twice makes one job."""

    root: str


@dataclass(frozen=True)
class Figures:
    """What the demo counts in a file."""

    lines: int
    functions: int
    imports: int


def parse(source: bytes) -> ast.Module:
    """Parse `source`, again where CPython 3.11 got confused by its other threads (it says so with a SystemError)."""
    for _ in range(10):
        with contextlib.suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def count(path: str) -> Figures:
    """Read and parse the file at `path`; a file that is no valid Python counts its lines only."""
    source = Path(path).read_bytes()
    lines = source.count(b"\n")
    try:
        nodes = list(ast.walk(parse(source)))
    except (SyntaxError, ValueError):
        return Figures(lines, 0, 0)
    functions = sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)
    return Figures(lines, functions, sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes))


def check_first_attempt(job: Job[IndexFile]) -> None:
    """Some jobs fail once, so that the demo shows a retry."""
    if job.args.file_id % FAILS_ONCE == 0 and job.row.attempt == 1:
        raise OSError(f"the disk was busy when {job.args.path} was first read (the demo pretends)")


def store(row: SourceFile, figures: Figures, worker: str) -> None:
    """Put what was counted into the application's row."""
    row.lines, row.functions, row.imports = figures.lines, figures.functions, figures.imports
    row.worked_by = worker


def psycopg_client() -> Client:
    """The first worker process: sync psycopg, `def` workers in threads."""
    engine = cast("Engine", make_engine("psycopg", asynchronous=False))
    workers = Workers()

    @workers.work(timeout=timedelta(seconds=30))
    def index_file(job: Job[IndexFile]) -> None:
        check_first_attempt(job)
        figures = count(job.args.path)
        with Session(engine) as session, session.begin():
            store(session.get_one(SourceFile, job.args.file_id), figures, "psycopg")
            job.complete(session=session)

    @workers.work
    def summarise(job: Job[Summarise]) -> None:
        with Session(engine) as session, session.begin():
            if session.scalar(select(func.count()).where(SourceFile.lines.is_(None))):
                raise JobSnooze(timedelta(seconds=1))
            session.add(_summary(list(session.scalars(select(SourceFile)))))
            job.complete(session=session)

    return Client(engine, _config(workers, "demo_psycopg", max_workers=4))


def asyncpg_client() -> AsyncClient:
    """The second worker process: asyncpg, `async def` workers in the event loop."""
    engine = cast("AsyncEngine", make_engine("asyncpg", asynchronous=True))
    workers = Workers()

    @workers.work(timeout=timedelta(seconds=30))
    async def index_file(job: Job[IndexFile]) -> None:
        check_first_attempt(job)
        figures = count(job.args.path)
        async with AsyncSession(engine) as session, session.begin():
            store(await session.get_one(SourceFile, job.args.file_id), figures, "asyncpg")
            await job.complete(session=session)

    @workers.work
    async def summarise(job: Job[Summarise]) -> None:
        async with AsyncSession(engine) as session, session.begin():
            if await session.scalar(select(func.count()).where(SourceFile.lines.is_(None))):
                raise JobSnooze(timedelta(seconds=1))
            session.add(_summary(list(await session.scalars(select(SourceFile)))))
            await job.complete(session=session)

    return AsyncClient(engine, _config(workers, "demo_asyncpg", max_workers=8))


def make_engine(name: str, *, asynchronous: bool) -> Engine | AsyncEngine:
    """An engine of the driver `name` for the database in `DATABASE_URL`."""
    url: URL = make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{name}")
    if name == "asyncpg":  # libpq's options are not its own, but for the one that decides whether it can connect
        sslmode = url.query.get("sslmode")
        url = url.set(query={"ssl": sslmode} if sslmode else {})
    driver: type[Driver] = load_driver_class(name)
    return driver.make_engine(url, asynchronous=asynchronous, application_name=f"riverq_demo_{name}")


def _config(workers: Workers, client_id: str, *, max_workers: int) -> Config:
    return Config(
        client_grace=GRACE,
        client_id=client_id,
        queues={QUEUE: QueueConfig(max_workers=max_workers)},
        schema=SCHEMA,
        soft_stop_timeout=timedelta(seconds=5),
        workers=workers,
    )


def _summary(files: list[SourceFile]) -> Summary:
    largest = max(files, key=lambda row: row.lines or 0)
    return Summary(files=len(files), largest_id=largest.id)
