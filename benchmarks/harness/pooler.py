"""A PgBouncer in front of the run's database, at its default settings but for the pool mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from riverq.demo.postgres import free_port, short_temp_dir, unprivileged_account

START_SECONDS = 20.0


def find_pgbouncer() -> str | None:
    """The command: of the PATH, or where Debian puts it."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer: the way through it, and its process's number."""

    url: str
    pid: int


@contextmanager
def running_pgbouncer(command: str, url: str, pool_mode: str) -> Iterator[Pooler]:
    """PgBouncer in front of the database of `url`, for as long as the block runs."""
    target = make_url(url)
    port = free_port("127.0.0.1")
    account = unprivileged_account()
    folder = Path(tempfile.mkdtemp(prefix="riverq-pgbouncer-", dir=short_temp_dir()))
    account.take(folder)
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{target.database} = host={target.host} port={target.port} user={target.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {pool_mode}\n"
    )
    (folder / "pgbouncer.ini").chmod(0o644)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, str(folder / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            **account.popen_options(),
        )
    try:
        through = target.set(port=port).render_as_string(hide_password=False)
        _wait_until_up(through, process, folder / "log")
        yield Pooler(through, process.pid)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer did not start: {log.read_text(errors='replace')[-500:]}") from None
            time.sleep(0.05)
