"""A PgBouncer that is watched: when it ends it comes back on its port, as systemd would have it, and why is recorded.

Cancel requests end PgBouncer 1.18 to 1.20 in two ways: when the server sends anything at all on a connection whose
cancel request is still on its way (issue 822; a notification to a LISTEN that some client left there is enough), and
when the client closes the request's own connection before the answer (issue 801), as asyncpg may. asyncpg and psycopg
send cancel requests whenever a task is cancelled in the middle of a statement, so any test that does that may meet it,
and none is to blame. Debian 12 has 1.18. Every other end is somebody's fault, of the tests' as likely as of ours.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from riverq.demo.postgres import unprivileged_account

START_SECONDS = 20.0
PAUSE_SECONDS = 0.1
"""Before it is started again; systemd waits as long."""
PATIENCE_SECONDS = 2.0
"""For the end of a process that does not answer any more."""
TAIL_LINES = 40

_BUGS = (
    (
        re.compile(r" FATAL @src/server\.c:\d+ in function server_proto\(\): server_proto: server in bad state: 11$"),
        ((1, 18), (1, 21)),
    ),
    (
        re.compile(r" FATAL @src/objects\.c:\d+ in function disconnect_client\(\): bad client state: 0$"),
        ((1, 18), (1, 21)),
    ),
)
"""From this version on, and up to but not including that one."""
_VERSION = re.compile(r" process up: PgBouncer (\d+)\.(\d+)")


@dataclass(frozen=True)
class Death:
    """One end of a PgBouncer that nobody ordered. `log` is what it wrote in this life of its."""

    code: int
    log: str

    @property
    def is_known(self) -> bool:
        """Whether it was one of the bugs, by the last line that it wrote, in a version that has it."""
        found = _VERSION.search(self.log)
        if found is None:
            return False
        version = (int(found[1]), int(found[2]))
        last = self.log.splitlines()[-1]
        return any(first <= version < mended and line.search(last) for line, (first, mended) in _BUGS)

    def __str__(self) -> str:
        if self.is_known:
            return "PgBouncer died of a bug that it has, when a statement was cancelled"
        tail = "\n".join(self.log.splitlines()[-TAIL_LINES:])
        return f"PgBouncer ended (exit code {self.code}), not of the bug that is known. Its log:\n{tail}"


DEATHS: list[Death] = []
"""All of this process, in their order."""

_RUNNING: set[PgBouncer] = set()


def settle(*, after_failure: bool) -> None:
    """Wait for those that are being started again. After a failure also for one whose end nobody has noticed yet."""
    for each in list(_RUNNING):
        each.settle(after_failure=after_failure)


class PgBouncer:
    """The process with one configuration file, which names `url` as what clients connect to."""

    def __init__(self, command: str, folder: Path, url: str) -> None:
        self.url = url
        self.log = folder / "log"
        self._command = [command, str(folder / "pgbouncer.ini")]
        self._folder = folder
        self._lock = threading.RLock()
        self._born_at = 0
        self._has_given_up = False
        self._stopped = False
        self._watcher = threading.Thread(target=self._watch, name="tests_pgbouncer", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Fails the test where it does not come up."""
        if not self._come_up():
            self._end_process()
            pytest.fail(f"PgBouncer did not start: {self._life()[-1000:]}")
        _RUNNING.add(self)
        self._watcher.start()

    def stop(self) -> None:
        with self._lock:
            _RUNNING.discard(self)
            self._stopped = True
            if not self._has_given_up and not self._answers() and self._ends_by_itself():
                self._bury()  # the watcher has not had its turn yet, and will find that there is nothing to do
            self._end_process()
        self._watcher.join()

    def settle(self, *, after_failure: bool) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with self._lock:
                lives = self._process.poll() is None
                if self._has_given_up or (lives and (not after_failure or self._answers())):
                    return
            time.sleep(0.01)

    # -- the watcher

    def _watch(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                if self._stopped:
                    return
                self._bury()
                time.sleep(PAUSE_SECONDS)
                if not self._come_up():
                    self._has_given_up = True
                    self._end_process()
                    DEATHS.append(Death(self._process.returncode, f"{self._life()}\nIt could not be started again."))
                    return

    def _bury(self) -> None:
        DEATHS.append(Death(self._process.returncode, self._life()))

    def _life(self) -> str:
        return self.log.read_bytes()[self._born_at :].decode(errors="replace")

    def _come_up(self) -> bool:
        self._born_at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **unprivileged_account().popen_options(),
            )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        """Asked of its console, which needs no connection to the server."""
        console = sa.make_url(self.url).set(database="pgbouncer").render_as_string(hide_password=False)
        try:
            psycopg.connect(console, autocommit=True, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _ends_by_itself(self) -> bool:
        """What ends closes its sockets first, so its clients know before its parent does."""
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _end_process(self) -> None:
        self._process.kill()
        self._process.wait()
