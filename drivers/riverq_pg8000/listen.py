"""LISTEN on pg8000, which was not made for it, but can.

Five things are worked around, each met in practice:

1. `notifications` keeps the newest 100 only: ours go to a deque of our own, without a limit.
2. Channel and payload are decoded as ASCII, in the middle of the protocol: the message handler is replaced.
3. Notifications are read only during a statement: when the socket has something, a statement is run.
4. pg8000 reads through a buffer, where `select` cannot see what has already arrived: it is peeked at before sleeping.
5. The peek meets a lost connection as a bare OSError.
"""

from __future__ import annotations

import ssl
import struct
from collections import deque
from typing import Any

from sqlalchemy import Engine

from riverq.driver import AnyEngine, Notification
from riverq.errors import DriverError, UnavailableError

_NOTIFICATION_RESPONSE = b"A"
_PID_SIZE = struct.calcsize("!i")


class Pg8000Wire:
    """A connection out of a sync engine's pool, for the listener's thread."""

    def __init__(self, engine: AnyEngine) -> None:
        if not isinstance(engine, Engine):
            raise DriverError(f"driver pg8000 listens on a sync Engine only, got: {engine!r}")
        self._engine = engine
        self._raw: Any = None
        self._heard: deque[Notification] = deque()

    def open(self) -> None:
        """Take a connection out of the pool for good; the pool may open another in its place."""
        fairy = self._engine.raw_connection()
        raw: Any = fairy.driver_connection  # before detach, which forgets it
        fairy.detach()
        self._raw = raw
        raw.rollback()
        raw.autocommit = True
        raw.message_types[_NOTIFICATION_RESPONSE] = self._notified

    def fileno(self) -> int:
        """The socket's descriptor."""
        return int(self._connection()._usock.fileno())

    def execute(self, statement: str) -> None:
        """Run a statement outside a transaction."""
        cursor = self._connection().cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def query(self, statement: str) -> str | None:
        """The same, and its first value. Without parameters pg8000 sends it as it is, `%` included."""
        cursor = self._connection().cursor()
        try:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None  # it raises where there is no result
        finally:
            cursor.close()
        return None if row is None or row[0] is None else str(row[0])

    def read(self, *, readable: bool) -> None:
        """Take in what arrived; while anything waits in the socket or in pg8000's buffer, a round trip reads it."""
        while readable or self._buffered():
            readable = False
            self.execute("SELECT 1")

    def taken(self) -> list[Notification]:
        """What was heard since the last call."""
        taken = list(self._heard)
        self._heard.clear()
        return taken

    def close(self) -> None:
        """Let the connection go."""
        if self._raw is not None:
            self._raw.close()

    def _connection(self) -> Any:
        if self._raw is None:
            raise UnavailableError("the listener is not connected")
        return self._raw

    def _buffered(self) -> bool:
        """Whether something has arrived that the socket no longer shows, or shows already."""
        raw = self._connection()
        limit = raw._usock.gettimeout()
        raw._usock.setblocking(False)
        try:
            return bool(raw._sock.peek(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            raw._usock.settimeout(limit)

    def _notified(self, data: bytes, _context: object) -> None:
        channel, payload, _ = data[_PID_SIZE:].split(b"\x00", 2)
        self._heard.append(Notification(channel.decode(errors="replace"), payload.decode(errors="replace")))
