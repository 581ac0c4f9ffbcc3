"""One place of a supervisor: the process that fills it, what is known of it, and its successor when it ends.

Everything happens in the supervisor's event loop; `health()` is read from other threads, and reads single values only.
The process is waited for by the loop's child watcher, so none is left a zombie; its socket ends with it, and what is
half-written of a report is dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from riverq.cli.health import Health
from riverq.cli.stopping import SOFT
from riverq.cli.tether import VARIABLE

WRONG_CALL = 2
"""The exit code of a worker that was called wrongly. With `may_refuse` it is not started again after it."""

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
LONG_ALIVE = 60.0
"""Seconds of life after which an end is the first of its kind again."""

STALE = 30.0
"""Seconds without a report after which a worker is not live; those of a worker that is being replaced are spared."""

STALE_READY = 10.0
LONGEST_REPORT = 1 << 22


class Bell:
    """Rings when anything has changed; whoever waits for something looks again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until it holds."""
        while not condition():
            await self._event.wait()


class Slot:
    """One of N workers: `keep` fills it again and again, until the level says that no more are started."""

    def __init__(self, number: int, command: list[str], bell: Bell, say: Callable[[str], None]) -> None:
        self.number = number
        self.starts = 0
        self.ends = 0
        self.last_code: int | None = None
        self.may_refuse = False
        self.refused = False
        self._command = command
        self._bell = bell
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._ordered = 0
        self._replacing = False
        self._failures = 0
        self._was_ready = False
        self._report: dict[str, Any] | None = None
        self._seen = time.monotonic()

    # -- what is known

    @property
    def pid(self) -> int | None:
        """The process's id, None between two processes."""
        process = self._process
        return None if process is None else process.pid

    @property
    def restarts(self) -> int:
        """How many processes have followed the first one here."""
        return max(0, self.starts - 1)

    @property
    def is_ready(self) -> bool:
        """Whether it said so lately, and was not told to stop since."""
        return self.health().ready

    def health(self) -> Health:
        """What it last said; not live when that is too long ago."""
        report, process, age = self._report, self._process, time.monotonic() - self._seen
        live = age < STALE
        if report is None or process is None:
            why = "starting" if process is not None else "not running"
            return Health(live, False, False, why if live else f"{why} for {age:.0f} s")
        if not live:
            return Health(False, False, False, f"silent for {age:.0f} s", report["figures"])
        ready = bool(report["ready"]) and age < STALE_READY and self._ordered < SOFT
        why = str(report["why"]) or ("" if ready else "stopping" if self._ordered else f"silent for {age:.0f} s")
        return Health(bool(report["live"]), ready, bool(report["leader"]), why, report["figures"])

    # -- what it is told

    def order(self, level: int) -> None:
        """Tell the process to go at least so far in stopping."""
        if self._socket is not None and level > self._ordered:
            self._ordered = level
            with suppress(OSError):  # it has ended, or reads nothing any more
                self._socket.send(str(level).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def replace(self) -> None:
        """Stop the process softly and start another at once."""
        self._replacing = True
        self._failures = 0
        self.order(SOFT)
        self._bell.ring()

    def kill(self) -> None:
        """SIGKILL, also to one that is stopped."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    # -- its life

    async def keep(self, level: Callable[[], int]) -> None:
        """Run one process after another; none is started any more once `level()` is SOFT or more."""
        while True:
            begun = time.monotonic()
            try:
                await self._run_one(level)
            except OSError as error:  # no process, no socket or no memory to be had
                self.last_code = 1
                self._say(f"worker {self.number} cannot be started: {error.strerror or error}")
            self._judge(time.monotonic() - begun)
            self._bell.ring()
            if not self._replacing and not self.refused:
                await self._pause(level)
            if self.refused or level() >= SOFT:
                return
            self._replacing = False

    async def _run_one(self, level: Callable[[], int]) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=os.environ | {VARIABLE: f"{theirs.fileno()}:{self.number}"},
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            self._process, self._socket, self._ordered, self._seen = process, ours, 0, time.monotonic()
            self._was_ready = False
            self.starts += 1
            self._say(f"worker {self.number} is process {process.pid}")
            self._bell.ring()
            self.order(level())  # what was ordered while it was being made
            reading = asyncio.create_task(self._read(ours))
            try:
                self.last_code = await process.wait()
            finally:
                reading.cancel()
                self._process = self._socket = self._report = None
                self._seen = time.monotonic()

    async def _read(self, ours: socket.socket) -> None:
        loop, kept = asyncio.get_running_loop(), b""
        with suppress(ConnectionResetError):  # it was killed with an order unread
            while data := await loop.sock_recv(ours, 65536):
                *lines, kept = (kept + data).split(b"\n")
                kept = kept if len(kept) < LONGEST_REPORT else b""
                for line in lines:
                    self._take(line)
                self._bell.ring()

    def _take(self, line: bytes) -> None:
        with suppress(ValueError):
            self._report = json.loads(line)
            self._seen = time.monotonic()
            self._was_ready = self._was_ready or bool(self._report and self._report["ready"])

    def _judge(self, lived: float) -> None:
        """Count the failures in a row, and see whether it was called wrongly."""
        self.ends += 1
        self.refused = self.may_refuse and self.last_code == WRONG_CALL and not self._was_ready
        if self._ordered:
            self._failures = 0
        else:
            self._failures = 1 if lived >= LONG_ALIVE else self._failures + 1

    async def _pause(self, level: Callable[[], int]) -> None:
        """Wait before the next start, unless somebody wants it, or the end, now."""
        wait = min(FIRST_WAIT * 2 ** (self._failures - 1), LONGEST_WAIT) if self._failures else 0.0
        if level() >= SOFT:
            return
        again = f", {self._failures} times in a row" if self._failures > 1 else ""
        verb = "ended" if self._was_ready else "failed to start"
        self._say(f"worker {self.number} {verb} ({_how(self.last_code)}{again}); starting another in {wait:g} s")
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._bell.until(lambda: self._replacing or level() >= SOFT)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
