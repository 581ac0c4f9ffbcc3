"""A supervised worker's end of the socket to its supervisor: reports go up, orders come down, the end is heard.

Orders are one digit each, a level of `riverq.cli.stopping`. The supervisor holds the only other end, so the end of the
stream is its death, SIGKILL included: the worker then stops softly, as nobody would restart it, forward signals to it,
or answer for it. A supervisor that is stopped (SIGSTOP) blocks the reporting thread, nothing else.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from riverq.cli.health import Health
from riverq.cli.stopping import SOFT

VARIABLE = "RIVERQ_SUPERVISOR"
"""`FD:NUMBER`: the socket, and which of the supervisor's workers this is. Not inherited any further."""

GONE = "the supervisor is gone"


class Tether:
    """Made once, before anything that takes time; `attach` says who follows the orders."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.number = number
        self._connection = connection
        self._lock = threading.Lock()
        self._level = 0
        self._follow: Callable[[int], None] | None = None
        self._say: Callable[[str], None] = print
        threading.Thread(target=self._read, name="riverq_tether", daemon=True).start()

    @classmethod
    def from_environment(cls) -> Tether | None:
        """None where there is no supervisor."""
        given = os.environ.pop(VARIABLE, None)
        if given is None:
            return None
        fd, _, number = given.partition(":")
        os.set_inheritable(int(fd), False)
        return cls(socket.socket(fileno=int(fd)), int(number))

    def attach(self, follow: Callable[[int], None], say: Callable[[str], None]) -> None:
        """Hand on every order, also the one that came before."""
        with self._lock:
            self._follow, self._say = follow, say
            level = self._level
        if level:
            follow(level)

    def report(self, health: Health) -> None:
        """Tell the supervisor, if there still is one."""
        with suppress(OSError):
            self._connection.sendall(health.as_json().encode() + b"\n")

    def _read(self) -> None:
        while True:
            try:
                orders = self._connection.recv(64)
            except OSError:
                orders = b""
            if not orders:
                break
            self._obey(max(int(chr(order)) for order in orders))
        self._say(f"{GONE}; stopping")
        self._obey(SOFT)

    def _obey(self, level: int) -> None:
        with self._lock:
            self._level = max(self._level, level)
            follow = self._follow
        if follow is not None:
            with suppress(RuntimeError):  # the loop is closed: the process is at its end
                follow(level)
