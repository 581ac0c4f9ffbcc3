"""Whether a worker lives, is ready and leads, answered over HTTP by a thread of its own.

The thread is not the event loop's, so that a blocked loop is told of instead of being asked. `/live`, `/ready` and
`/leader` answer 200 or 503; `/` and `/health` answer 200 with every figure. Each connection is one request; a client
that is slow is given up after a while, and the one that waits longest goes when too many wait, so that nobody can keep
a probe from its answer.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from riverq.cli.values import plain
from riverq.errors import RiverqError

PROBES = ("live", "ready", "leader")
PATHS = ("/", "/health", *(f"/{name}" for name in PROBES))
PATIENCE = 5.0
"""Seconds that a client may take for each part of its request."""

MOST_CONNECTIONS = 32
MOST_UNREAD = 65536


@dataclass(frozen=True, slots=True)
class Health:
    """The three answers, why one of them is no (in the order live, ready), and the figures behind them."""

    live: bool
    ready: bool
    leader: bool
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=plain)


class HealthServer:
    """Bound when made, which raises RiverqError where that is not possible; answers until `close`."""

    def __init__(self, address: tuple[str, int], health: Callable[[], Health]) -> None:
        self._server = _bind(address, health)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="riverq_health", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}/"

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _bind(address: tuple[str, int], health: Callable[[], Health]) -> _Server:
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return _Server(found[0][0], found[0][4], health)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        why = getattr(error, "strerror", None) or error
        raise RiverqError(f"cannot answer --health at {host}:{port}: {why} (choose another address)") from error


class _Server(socketserver.ThreadingTCPServer):
    """Not http.server's, which asks the name service for its own name when it binds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: int, address: Any, health: Callable[[], Health]) -> None:
        self.address_family = family
        self.health = health
        self._open: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread; if too many are open, the oldest goes."""
        with self._lock:
            oldest = next(iter(self._open.values())) if len(self._open) >= MOST_CONNECTIONS else None
            if oldest is not None:
                self._open.pop(id(oldest))
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[id(request)] = request
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The request is over."""
        with self._lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in PATHS:
            self._answer(404, {"error": f"there is no {path}", "paths": PATHS})
            return
        health = self.server.health()
        name = path[1:]
        if name in PROBES:
            good = bool(getattr(health, name))
            self._answer(200 if good else 503, {name: good} | ({} if good or not health.why else {"why": health.why}))
        else:
            self._answer(200, asdict(health))

    do_HEAD = do_GET  # noqa: N815  # http.server's name for it

    def __getattr__(self, name: str) -> Any:
        """Every other method is known and refused."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdigit():
            self.rfile.read(min(int(length), MOST_UNREAD))  # else the connection is reset before this is read
        self._answer(405, {"error": "only GET and HEAD are answered"}, Allow="GET, HEAD")

    def version_string(self) -> str:
        """What the answers say they come from."""
        return "riverq"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class has to complain of, as JSON too."""
        self._answer(code, {"error": message or "the request cannot be read"})

    def log_message(self, *_args: Any) -> None:
        """Probes come every few seconds; they are not logged."""

    def _answer(self, code: int, content: dict[str, Any], **headers: str) -> None:
        body = (json.dumps(content, default=plain) + "\n").encode()
        self.close_connection = True
        self.send_response(code)
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "Connection": "close"} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(body)
