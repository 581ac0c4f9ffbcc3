"""The harness's half of the protocol: one child process, its lines read by a thread."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY_SECONDS = 60.0
STOP_SECONDS = 12.0
"""A little more than the ten that a contender may take."""


class ChildFailed(Exception):
    """A contender broke down; the message is its own, and the end of its stderr."""


class ChildUnsupported(Exception):
    """A contender says that it has no such way of doing it."""


class ChildProcess:
    """One contender at one task. `executed` is what it has told so far."""

    def __init__(self, command: Sequence[str], task: Mapping[str, Any], log: Path, root: Path) -> None:
        self._log = log
        self.executed = 0
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._kept: list[dict[str, Any]] = []
        self.progressed = threading.Event()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=root,
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._say(task)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: whatever it started goes with it
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more does not matter
                if pipe is not None:
                    pipe.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ready(self) -> None:
        """Wait until it has loaded everything."""
        self.expect("ready", READY_SECONDS)

    def go(self) -> None:
        """Start its clock."""
        self._say({"do": "go"})

    def stop(self) -> int:
        """Let it end; returns how many jobs it has executed, -1 if it takes too long and must be killed."""
        self._say({"do": "stop"})
        try:
            stopped = self.expect("stopped", STOP_SECONDS)
        except TimeoutError:
            return -1
        return int(stopped["executed"])

    def check(self) -> None:
        """Raise if it broke down; what else it said is kept for `expect`."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            self._kept.append(self._raise_for(event))

    def expect(self, name: str, seconds: float) -> dict[str, Any]:
        """Wait for the event `name`. Raises ChildFailed, ChildUnsupported, TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            event = self._next(deadline)
            if event is None:
                raise TimeoutError(f"no {name!r} within {seconds:g} s")
            if event["event"] == name:
                return event

    def _next(self, deadline: float) -> dict[str, Any] | None:
        if self._kept:
            return self._kept.pop(0)
        try:
            event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        return self._raise_for(event)

    def _raise_for(self, event: dict[str, Any] | None) -> dict[str, Any]:
        if event is None:
            raise ChildFailed(f"ended early (exit code {self._exit_code()}): {self._log_tail()}")
        if event["event"] == "error":
            raise ChildFailed(f"{event['message']}: {self._log_tail()}")
        if event["event"] == "unsupported":
            raise ChildUnsupported(event["message"])
        return event

    def _exit_code(self) -> int | str:
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "none, it has only closed its output"

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"is gone: {self._log_tail()}") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                event = json.loads(line)
                if event["event"] == "progress":
                    self.executed = max(self.executed, event["count"])
                    self.progressed.set()
                else:
                    self._events.put(event)
        except (ValueError, KeyError, TypeError) as error:  # also: the pipe was closed under us
            self._events.put({"event": "error", "message": f"not a line of the protocol: {error!r}"})
        finally:
            self._events.put(None)

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-4:]) or "it said nothing"
