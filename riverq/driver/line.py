"""Breaks the connection of a call that hangs on another thread, when nobody waits for the call any more.

A thread that waits for an answer which the network has swallowed waits for ever, and the slot that it works in is gone
with it. Nothing in a blocking adapter's interface ends that; shutting its socket down does, from any thread. The call
holds the line while it has the connection and lets go before the connection returns to its pool, so a connection that
somebody else uses by then is never hit. The handle is a duplicate, because an adapter may close its own at any time.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress


class Line:
    """One call's connection, from `hold` to `let_go`; `cut` may come before, in between or after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False

    def hold(self, fd: int | None) -> None:
        """The call has the connection whose socket is `fd`; None where the adapter cannot say."""
        with self._lock:
            if fd is not None:
                self._socket = socket.socket(fileno=os.dup(fd))
                self._shut_if_cut()

    def let_go(self) -> None:
        """The call is through with the connection."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def cut(self) -> None:
        """Break the connection now, or as soon as it is held."""
        with self._lock:
            self._is_cut = True
            self._shut_if_cut()

    def _shut_if_cut(self) -> None:
        if self._is_cut and self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
