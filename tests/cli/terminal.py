"""A supervisor on a terminal of its own, where Ctrl-C can be typed and which can hang up."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

from tests.cli.conftest import ROOT
from tests.cli.probing import PATIENCE


class Terminal:
    """A supervisor of one worker that leads the terminal's session."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._screen, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _TAKE_TERMINAL,
                "worker",
                "tests.cli.app:async_client",
                "--processes",
                "1",
                "--log-level",
                "warning",
            ],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._shown = b""

    def until(self, words: str) -> None:
        while words.encode() not in self._shown:
            self._shown += os.read(self._screen, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def hang_up(self) -> None:
        os.close(self._screen)
        self._screen = -1

    def end(self) -> int:
        reader = threading.Thread(target=self._read_on)
        reader.start()
        code = self._process.wait(PATIENCE)
        reader.join()
        return code

    def _read_on(self) -> None:
        try:
            while self._screen >= 0 and os.read(self._screen, 65536):
                pass
        except OSError:  # so Linux says that the other side is closed
            pass

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._screen >= 0:
            os.close(self._screen)


_TAKE_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from riverq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
