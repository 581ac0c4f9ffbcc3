"""What the demo shows: a progress bar while it runs, and at the end figures that are read from the database."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from riverq.demo.jobs import SCHEMA, SourceFile, Summary
from riverq.job import JobState
from riverq.query.tables import Tables

REFRESH = 0.2


class Progress:
    """A bar over the jobs that are completed, as the table says."""

    def __init__(self, files: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("jobs completed", total=files + 1)
        self._seen = 0.0
        self.completed = 0
        """Jobs, as of the last look."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, engine: Engine, inserted: int) -> None:
        """Look again, if the last look is a while ago."""
        if time.monotonic() - self._seen < REFRESH:
            return
        self.completed = _count_state(engine, JobState.COMPLETED)
        self._bar.update(self._task, completed=self.completed, description=f"{inserted} inserted, completed")
        self._seen = time.monotonic()

    def finished(self, engine: Engine, inserted: int) -> bool:
        """Whether every inserted job is completed."""
        self.update(engine, inserted)
        return self.completed >= inserted


@dataclass(frozen=True)
class Tally:
    """The demo's result, counted in the tables when the workers have stopped."""

    files: int
    inserted: int
    duplicates: int
    completed: int
    retried: int
    indexed: int
    summaries: int

    @classmethod
    def read(cls, engine: Engine, *, files: int, inserted: int, duplicates: int) -> Tally:
        """Count now."""
        job = Tables(SCHEMA).job
        with Session(engine) as session:
            was_rescued = job.c.metadata.has_key("river:rescue_count")
            had_errors = func.cardinality(job.c.errors) > 0
            failed_before = select(func.count()).select_from(job).where(had_errors, ~was_rescued)
            return cls(
                files=files,
                inserted=inserted,
                duplicates=duplicates,
                completed=_count_state(engine, JobState.COMPLETED),
                retried=session.scalar(failed_before) or 0,
                indexed=session.scalar(select(func.count()).where(SourceFile.lines.is_not(None))) or 0,
                summaries=session.scalar(select(func.count()).select_from(Summary)) or 0,
            )

    @property
    def lost(self) -> int:
        """Jobs not completed, or files without figures, whichever is more."""
        return max(self.inserted - self.completed, self.files - self.indexed)

    @property
    def adds_up(self) -> bool:
        """Whether every file is indexed, every job completed, and the unique job there once."""
        return self.lost == 0 and self.inserted == self.files + 1 and self.duplicates == 1 and self.summaries == 1

    def sentence(self) -> str:
        """The last line of the demo."""
        duplicates = f"{self.duplicates} duplicate{'' if self.duplicates == 1 else 's'} skipped"
        return (
            f"demo: {_spaced(self.files)} files, {_spaced(self.completed)} jobs completed, {duplicates}, "
            f"{_spaced(self.retried)} retried, {_spaced(self.lost)} lost"
        )


def print_results(engine: Engine, took: timedelta) -> None:
    """The largest packages of the standard library, from the application's table."""
    lines = func.sum(SourceFile.lines)
    columns = (func.count(), lines, func.sum(SourceFile.functions), func.sum(SourceFile.imports))
    table = Table()
    table.add_column("package")
    for title in ("files", "lines", "functions", "imports"):
        table.add_column(title, justify="right")
    with Session(engine) as session:
        by_package = select(SourceFile.package, *columns).group_by(SourceFile.package).order_by(lines.desc()).limit(8)
        for package, *figures in session.execute(by_package):
            table.add_row(package, *(_spaced(figure or 0) for figure in figures))
        table.add_section()
        table.add_row("everything", *(_spaced(figure or 0) for figure in session.execute(select(*columns)).one()))
        by_worker = (
            select(SourceFile.worked_by, func.count()).group_by(SourceFile.worked_by).order_by(SourceFile.worked_by)
        )
        shares = ", ".join(f"{_spaced(number)} by {name}" for name, number in session.execute(by_worker) if name)
    console = Console()
    console.print(f"the standard library's largest packages, indexed in {took.total_seconds():.1f} s")
    console.print(table)
    console.print(f"files indexed: {shares}")


def _count_state(engine: Engine, state: JobState) -> int:
    tables = Tables(SCHEMA)
    with Session(engine) as session:
        of_state = select(func.count()).select_from(tables.job).where(tables.job.c.state == tables.state(state))
        return session.scalar(of_state) or 0


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
