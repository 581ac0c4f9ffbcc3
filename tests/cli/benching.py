"""`riverq bench` as a process, with or without a terminal, for the tests of it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import psycopg
import sqlalchemy as sa

URLS = {
    "psycopg": "postgresql+psycopg",
    "psycopg_async": "postgresql+psycopg_async",
    "asyncpg": "postgresql+asyncpg",
    "pg8000": "postgresql+pg8000",
}
QUICK = ("-n", "200", "--duration", "30s")


def bench(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "riverq", "bench", "--database-url", url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80", "PYTHONWARNINGS": "default"},
    )


def with_driver(url: str, drivername: str) -> str:
    return sa.make_url(url).set(drivername=drivername).render_as_string(hide_password=False)


def schemas(conn: psycopg.Connection) -> list[str]:
    rows = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'riverq\\_bench%'").fetchall()
    return [str(row[0]) for row in rows]


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the bench ended without saying {words!r}")


def on_terminal(arguments: list[str]) -> tuple[subprocess.Popen[str], int]:
    """The process, and what its terminal shows."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    return process, screen


def read_until(screen: int, words: bytes) -> None:
    shown = b""
    while words not in shown:
        shown += os.read(screen, 65536)


def read_all(screen: int, shown: list[bytes]) -> None:
    """Until the other side is closed, which Linux tells as an error."""
    try:
        while data := os.read(screen, 65536):
            shown.append(data)
    except OSError:
        pass
    os.close(screen)
