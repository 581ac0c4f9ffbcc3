"""How far the bench is: a bar on a terminal that has rich, else a line per phase; always on stderr.

The bar is drawn when the bench says how far it is, at most a few times a second, and by no thread of its own: drawing
costs CPU in the process that is being measured. What cannot be shown never stops the bench, which has a schema to drop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

from riverq.bench.text import spaced

if TYPE_CHECKING:
    from riverq.bench.plan import Phase, Progress

REDRAW = 0.25


@contextmanager
def unread(stream: TextIO) -> Iterator[None]:
    """Go on where nobody reads `stream` any more, as after `| head` or when its terminal was closed.

    From then on it leads nowhere, because what is left in its buffer would fail again, and with it the interpreter's
    end.
    """
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, stream: TextIO) -> None:
    """Print a line, if anybody reads it."""
    with unread(stream):
        print(f"{text}\n", end="", file=stream, flush=True)  # in one piece, where others write to the same terminal


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
    task = bar.add_task("connecting", total=1.0, jobs="")
    with unread(stream):
        bar.start()
    try:
        yield _Bar(stream, bar, task)
    finally:
        with unread(stream):
            bar.stop()


class _Nothing:
    def begin(self, phase: Phase) -> None:
        pass

    def advance(self, share: float, jobs: int) -> None:
        pass


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, phase: Phase) -> None:
        say(f"bench: {phase.value}", self._stream)

    def advance(self, share: float, jobs: int) -> None:
        pass


class _Bar:
    def __init__(self, stream: TextIO, bar: Any, task: Any) -> None:
        self._stream = stream
        self._bar = bar
        self._task = task
        self._drawn = 0.0

    def begin(self, phase: Phase) -> None:
        with unread(self._stream):
            self._bar.reset(self._task, description=phase.value, jobs="")

    def advance(self, share: float, jobs: int) -> None:
        if perf_counter() - self._drawn < REDRAW:
            return
        self._drawn = perf_counter()
        with unread(self._stream):
            self._bar.update(self._task, completed=share, jobs=spaced(jobs), refresh=True)
