"""After each test: no task, no thread and no database connection is left that was not there before.

What is already on its way out gets a moment to go. Connections are those of this process's test database; the ones
named SESSION_APPLICATION belong to session fixtures.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from tests.fix_database import SESSION_APPLICATION
from tests.fix_pgbouncer import Pooler

PATIENCE_SECONDS = 20.0

_CONNECTIONS = """
    SELECT pid, application_name, state, left(query, 80) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND application_name <> %s
"""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Async tests get the task check first, so that it runs after every other fixture of theirs has ended."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
        item.fixturenames.insert(0, "_no_task_left")


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        assert not left, f"tasks left running: {sorted(map(repr, left))}"


def _counts(thread: threading.Thread) -> bool:
    """asyncio's own executor threads end with the loop, which outlives the test's fixtures."""
    is_loops = thread.name.startswith("asyncio_")
    return thread.is_alive() and not is_loops and (not thread.daemon or thread.name.startswith("riverq"))


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    new = [thread for thread in threading.enumerate() if thread not in before and _counts(thread)]
    deadline = time.monotonic() + PATIENCE_SECONDS
    for thread in new:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = sorted(thread.name for thread in new if thread.is_alive())
    assert not left, f"threads left running: {left}"


@pytest.fixture(scope="session")
def connection_watch(database_url: str) -> Iterator[psycopg.Connection]:
    """The connection through which the leak check looks at the others."""
    with psycopg.connect(database_url, autocommit=True, application_name=SESSION_APPLICATION) as connection:
        yield connection


def _connections(watch: psycopg.Connection) -> dict[int, str]:
    rows = watch.execute(_CONNECTIONS, (SESSION_APPLICATION,)).fetchall()
    return {int(pid): f"{application or 'unnamed'} ({state}: {query})" for pid, application, state, query in rows}


@pytest.fixture(autouse=True)
def _no_connection_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only for tests that use the database: the others are not to start one."""
    if "database_url" not in request.fixturenames:
        yield
        return
    watch: psycopg.Connection = request.getfixturevalue("connection_watch")
    pooler: Pooler | None = request.getfixturevalue("pooler")

    def connections() -> dict[Any, str]:
        # Behind a pooler the server's connections are the pooler's, which keeps them.
        return _connections(watch) if pooler is None else pooler.clients(but=SESSION_APPLICATION)

    before = connections()
    yield
    deadline = time.monotonic() + PATIENCE_SECONDS
    late = False
    while left := {key: text for key, text in connections().items() if key not in before}:
        if late:
            pytest.fail(f"connections left open: {sorted(left.values())}")
        time.sleep(0.01)
        late = time.monotonic() > deadline  # before the look: what was seen before a stall may be gone after it
