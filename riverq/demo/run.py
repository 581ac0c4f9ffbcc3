"""`riverq demo`: index the standard library with two worker processes, then prove from the tables that all is there.

The order: find or start a Postgres, make a schema of the demo's own, migrate it, start the two workers, insert, kill
one of them half-way with jobs running, wait until its jobs are available again and all are done, stop the other, count,
print. With `--database-url` the schema `riverq_demo` is made there and dropped at the end.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema, DropSchema

from riverq import migrate
from riverq.client import Client
from riverq.config import Config
from riverq.demo.crash import Crash
from riverq.demo.jobs import SCHEMA, Base, IndexFile, SourceFile, Summarise, make_engine
from riverq.demo.postgres import ThrowawayPostgres
from riverq.demo.show import Progress, Tally, print_results
from riverq.demo.worker import WorkerProcess
from riverq.driver import load_driver
from riverq.driver.failures import translate
from riverq.insert_opts import InsertItem

BATCH = 100
DELAYED = 25
"""Every so-manieth file's job is scheduled a little ahead, so that the leader's scheduler has work."""

WORKERS = ("asyncpg", "psycopg")
TIME_LIMIT = 300.0


def run(database_url: URL | None, *, limit: int | None = None) -> int:
    """The whole demo; returns 0 if everything adds up."""
    with contextlib.ExitStack() as stack:
        if database_url is None:
            print("demo: starting a Postgres of its own …", flush=True)
            url = stack.enter_context(ThrowawayPostgres(password=True)).url()
        else:
            url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
        os.environ["DATABASE_URL"] = url
        engine = cast("Engine", make_engine("psycopg", asynchronous=False))
        stack.callback(engine.dispose)
        stack.enter_context(_schema(engine))
        return _index(engine, stdlib_files()[:limit])


def stdlib_files() -> list[Path]:
    """Every `.py` file of the running Python's standard library, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)


@contextlib.contextmanager
def _schema(engine: Engine) -> Iterator[None]:
    try:
        with engine.begin() as conn:
            conn.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))
            conn.execute(CreateSchema(SCHEMA))
    except SQLAlchemyError as error:
        raise translate(error, load_driver(engine)) from error
    try:
        migrate.up(engine, schema=SCHEMA)
        Base.metadata.create_all(engine)
        yield
    finally:
        with contextlib.suppress(SQLAlchemyError), engine.begin() as conn:
            conn.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))


def _index(engine: Engine, files: Sequence[Path]) -> int:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        survivor, victim = (stack.enter_context(WorkerProcess(name)) for name in WORKERS)
        crash = Crash(engine, victim)
        print(f"demo: indexing {len(files)} files of {sysconfig.get_path('stdlib')}", flush=True)
        inserted = Inserted(0, 0)
        with Progress(len(files)) as progress:
            for inserted in insert_jobs(engine, files):
                progress.update(engine, inserted.jobs)
            while not progress.finished(engine, inserted.jobs):
                if progress.completed >= inserted.jobs // 2:
                    crash.go_on()
                survivor.check()
                if time.monotonic() - began > TIME_LIMIT:
                    break
                time.sleep(0.02)
        survivor.stop()
    tally = Tally.read(engine, files=len(files), inserted=inserted.jobs, duplicates=inserted.duplicates)
    print_results(engine, timedelta(seconds=time.monotonic() - began))
    print(crash.sentence())
    print(tally.sentence())
    return 0 if tally.adds_up else 1


@dataclass(frozen=True)
class Inserted:
    """How many jobs were inserted so far, and how many were there already."""

    jobs: int
    duplicates: int


def insert_jobs(engine: Engine, files: Sequence[Path]) -> Iterator[Inserted]:
    """Insert the application's rows and their jobs, batch by batch, each batch in one ORM transaction."""
    client = Client(engine, Config(schema=SCHEMA))
    root = Path(sysconfig.get_path("stdlib"))
    jobs = 0
    for start in range(0, len(files), BATCH):
        with Session(engine) as session, session.begin():
            rows = [_row(path, root) for path in files[start : start + BATCH]]
            session.add_all(rows)
            session.flush()
            results = client.insert_many([_item(row, root) for row in rows], session=session)
        jobs += len(results)
        yield Inserted(jobs, 0)
    summary = Summarise(str(root))
    twice = [client.insert(summary, delay=timedelta(seconds=2)), client.insert(summary)]
    duplicates = sum(result.unique_skipped_as_duplicate for result in twice)
    yield Inserted(jobs + len(twice) - duplicates, duplicates)


def _row(path: Path, root: Path) -> SourceFile:
    relative = path.relative_to(root)
    package = relative.parts[0] if len(relative.parts) > 1 else "(top level)"
    return SourceFile(path=str(relative), package=package)


def _item(row: SourceFile, root: Path) -> InsertItem:
    args = IndexFile(row.id, str(root / row.path))
    return InsertItem(args, delay=timedelta(seconds=1)) if row.id % DELAYED == 0 else InsertItem(args)
