"""How far the bench is: a bar on a terminal that has rich, else a line per phase; always on stderr.

The bar is drawn when the bench says how far it is, at most a few times a second, and by no thread of its own: drawing
costs CPU in the process that is being measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from riverq.bench.plan import Phase, Progress

REDRAW = 0.25


@contextmanager
def progress_on(stream: TextIO, *, quiet: bool) -> Iterator[Progress]:
    """Where progress is shown. `quiet` shows none where nobody watches a terminal."""
    if not stream.isatty():
        yield _Nothing() if quiet else _Lines(stream)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield _Lines(stream)
        return
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        TextColumn("{task.fields[jobs]}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(file=stream), auto_refresh=False, transient=True)
    with bar:
        yield _Bar(bar)


class _Nothing:
    def begin(self, phase: Phase) -> None:
        pass

    def advance(self, share: float, jobs: int) -> None:
        pass


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, phase: Phase) -> None:
        print(f"bench: {phase.value}", file=self._stream, flush=True)

    def advance(self, share: float, jobs: int) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None
        self._drawn = 0.0

    def begin(self, phase: Phase) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(phase.value, total=1.0, jobs="")
        self._bar.refresh()

    def advance(self, share: float, jobs: int) -> None:
        if perf_counter() - self._drawn < REDRAW:
            return
        self._drawn = perf_counter()
        text = f"{jobs:,}".replace(",", " ")
        self._bar.update(self._task, completed=share, jobs=text, refresh=True)
