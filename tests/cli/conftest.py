"""Workers and supervisors as processes, for the tests of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

import riverq
from tests.cli.benching import schemas

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """A worker under test; lines are read one at a time so that the test waits for what was said."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.passed: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "riverq", "worker", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, beginning: str) -> str:
        """The next line that begins so; those before it are in `passed`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.passed.append(line.strip())
            if line.startswith(beginning):
                return line.strip()
        assert self._process.stderr is not None
        raise AssertionError(f"the worker ended without saying {beginning!r}: {self._process.stderr.read()}")

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def end(self, timeout: float = 30) -> tuple[int, str, str]:
        out, err = self._process.communicate(timeout=timeout)
        return self._process.returncode, out, err

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(database_url: str, schema: str) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def start(*arguments: str, **environment: str) -> WorkerProcess:
        base = {"DATABASE_URL": database_url, "TEST_SCHEMA": schema, "PYTHONWARNINGS": "default"}
        started.append(WorkerProcess(list(arguments), base | environment))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def inserter(engine: sa.Engine, schema: str) -> riverq.Client:
    return riverq.Client(engine, riverq.Config(schema=schema))


@pytest.fixture
def onlooker(database_url: str) -> Iterator[psycopg.Connection]:
    """Looks at the server beside a bench, and at the end for schemas that one left."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn
        assert schemas(conn) == []
