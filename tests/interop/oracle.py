"""Drives the real River, so that tests can hold riverq against it.

The other half is the program in `tests/interop/go`: one process serves a whole test session, one JSON request a line.
It is built on first use, with Go's own cache making later builds quick, into `$XDG_CACHE_HOME/riverq` where that is set
and `go/bin` otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from itertools import count
from pathlib import Path
from threading import Condition, Lock
from typing import IO, Any

SOURCE = Path(__file__).parent / "go"


class OracleError(Exception):
    """River, or the oracle itself, refused a request.

    `kind` is `not_found`, `running` or `conflict` where it is one of these, else empty.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def find_go() -> str | None:
    """The Go command: of the PATH, of Go's usual place, or the one that RIVERQ_GO names."""
    usual = Path("/usr/local/go/bin/go")
    named = os.environ.get("RIVERQ_GO")
    return shutil.which("go") or (str(usual) if usual.exists() else None) or (shutil.which(named) if named else None)


def build(go: str) -> Path:
    """Build the program, and say what Go said if that fails."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) / "riverq" if cache else SOURCE / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "riverq-oracle"
    # -trimpath and no VCS stamp: the same bytes wherever the checkout lies. Built aside and moved, because several
    # test processes may build at once.
    fresh = folder / f"riverq-oracle.{os.getpid()}"
    built = subprocess.run(
        [go, "build", "-trimpath", "-buildvcs=false", "-o", str(fresh), "."],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise OracleError(f"could not build the oracle in {SOURCE}: {built.stderr.strip()}")
    fresh.replace(binary)
    return binary


class Oracle:
    """A running oracle, or a peer in a process of its own. Requests run side by side, whichever is waited for first."""

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ids = count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._writing = Lock()
        self._answered = Condition()
        self._somebody_reads = False

    def call(self, op: str, /, **params: Any) -> Any:
        """Ask for one operation of `tests/interop/go/main.go` and wait for its result.

        Raises:
            OracleError: with River's own message.
        """
        number = self.send(op, **params)
        return self.receive(number)

    def send(self, op: str, /, **params: Any) -> int:
        """Start an operation without waiting; `receive` takes the number this returns."""
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        with self._writing:
            number = next(self._ids)
            stdin.write(json.dumps({"id": number, "op": op, **params}) + "\n")
            stdin.flush()
        return number

    def receive(self, number: int) -> Any:
        """Wait for the answer to a request that was sent."""
        with self._answered:
            while number not in self._answers:
                if self._somebody_reads:
                    self._answered.wait()
                else:
                    self._read()
            answer = self._answers.pop(number)
        if "error" in answer:
            raise OracleError(answer["error"], answer.get("error_kind", ""))
        return answer["result"]

    def _read(self) -> None:
        """Read one answer, whoever's it is; the others may send, and look for theirs, meanwhile."""
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        self._somebody_reads = True
        self._answered.release()
        try:
            line = stdout.readline()
        finally:
            self._answered.acquire()
            self._somebody_reads = False
            self._answered.notify_all()
        if not line:
            raise OracleError(f"the oracle ended, exit code {self._process.wait()}")
        answer = json.loads(line)
        self._answers[answer["id"]] = answer

    # -- what may be done to the process itself

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def suspend(self) -> None:
        """SIGSTOP: it stands still, with its connections and locks, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process; it stops its clients first. One that was killed is only cleared away."""
        self.resume()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
