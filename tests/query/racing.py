"""Forcing two transactions to meet: one is held open by the test, the other runs until it waits for the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tests.query.arrange import Table

T = TypeVar("T")

_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@contextmanager
def waiting(table: Table, fn: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `fn` in a thread; the body begins when it waits for a lock, and is to let go of it."""
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(fn)
        while not table.sql(_WAITING):
            assert not result.done(), f"it did not wait: {result.exception() or result.result()!r}"
        yield result
