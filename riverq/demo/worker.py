"""One `riverq worker` of the demo, as a child process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from typing import IO, Self

from riverq.errors import RiverqError


class WorkerProcess:
    """One `riverq worker` as a child process; its output goes to a file that is shown if it fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__, read before
        command = [
            sys.executable,
            "-m",
            "riverq",
            "worker",
            f"riverq.demo.jobs:{name}_client",
            "--log-level",
            "warning",
        ]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def check(self) -> None:
        """Raises RiverqError, with what it printed last, if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise RiverqError(f"the {self.name} worker ended with exit code {code}: {self._last_lines()}")

    def pause(self) -> None:
        """Stop it where it stands."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to say anything, as a crash does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, and wait. Raises RiverqError if it does not end cleanly."""
        self._process.terminate()
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            raise RiverqError(f"the {self.name} worker stopped with exit code {code}: {self._last_lines()}")

    def _last_lines(self) -> str:
        self._log.seek(0)
        return " / ".join(self._log.read().strip().splitlines()[-5:]) or "it printed nothing"
