"""Drives the real River, so that tests can hold riverq against it.

The other half is the program in `tests/interop/go`: one process serves a whole test session, one JSON request a line.
It is built on first use, with Go's own cache making later builds quick, into `$XDG_CACHE_HOME/riverq` where that is set
and `go/bin` otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from threading import Lock
from typing import IO, Any

SOURCE = Path(__file__).parent / "go"


class OracleError(Exception):
    """River, or the oracle itself, refused a request."""


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
    """A running oracle. Requests that were sent run side by side, whichever is waited for first."""

    def __init__(self, binary: Path) -> None:
        self._process = subprocess.Popen(
            [str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ids = count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._writing = Lock()
        self._reading = Lock()

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
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        with self._reading:
            while number not in self._answers:
                line = stdout.readline()
                if not line:
                    raise OracleError(f"the oracle ended, exit code {self._process.wait()}")
                answer = json.loads(line)
                self._answers[answer["id"]] = answer
            answer = self._answers.pop(number)
        if "error" in answer:
            raise OracleError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process; it stops its clients first."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
