"""River UI itself: its own command, built from the module that `go/go.mod` names and `go/go.sum` seals.

There is no program of ours in between: `go/` names the command as a tool and holds nothing else. The module brings the
built pages with it. The binary goes to `$XDG_CACHE_HOME/riverq` where that is set, and to `.cache/riverq` of the
repository otherwise.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "go"
CACHE = Path(__file__).parents[3] / ".cache"
PACKAGE = "riverqueue.com/riverui/cmd/riverui"
PATIENCE_SECONDS = 20.0
ATTEMPTS = 5


class RiverUIError(Exception):
    """River UI could not be built or started."""


class Refused(Exception):
    """It answered with an error: `status`, and what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


def build(go: str) -> Path:
    """Build it, and say what Go said if that fails."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or CACHE) / "riverq"
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "riverui"
    fresh = folder / f"riverui.{os.getpid()}"  # built aside and moved: several test processes may build at once
    built = subprocess.run(
        [go, "build", "-trimpath", "-buildvcs=false", "-o", str(fresh), PACKAGE],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise RiverUIError(f"could not build River UI in {SOURCE}: {built.stderr.strip()}")
    fresh.replace(binary)
    return binary


class RiverUI:
    """A River UI that serves one schema at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """GET one of its API's endpoints: `get("/states")`. Raises Refused."""
        return self._ask(urllib.request.Request(f"{self.url}/api{path}"))

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Any other method, with a JSON body. Raises Refused."""
        data = json.dumps(body).encode() if body is not None else b""
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"{self.url}/api{path}", data=data, headers=headers, method=method))

    @staticmethod
    def _ask(request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")) from error


@contextmanager
def serving(binary: Path, database_url: str, schema: str, log: Path) -> Iterator[RiverUI]:
    """Run it on a free port of the loopback until the block ends.

    It takes a port, and cannot say which one it found: another process may take the free one first, so a start that
    fails for that is tried again.
    """
    for _ in range(ATTEMPTS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"DATABASE_URL": database_url, "RIVER_HOST": "127.0.0.1", "PORT": str(port), "RIVER_LOG_LEVEL": "warn"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(binary), f"-schema={schema}"], stdout=output, stderr=output, env={**os.environ, **place}
            )
        try:
            if _answers(ui := RiverUI(f"http://127.0.0.1:{port}"), process):
                yield ui
                return
        finally:
            process.terminate()
            process.wait()
    raise RiverUIError(f"River UI did not start; its log ends: {log.read_text(errors='replace')[-1500:]}")


def _answers(ui: RiverUI, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it says that it is well; False if it ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ui.get("/health-checks/complete")
        except (Refused, OSError):
            time.sleep(0.02)
        else:
            return process.poll() is None
    return False
