"""The probe's server: what each path answers, and that nobody can keep it from answering."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from riverq.cli.health import MOST_CONNECTIONS, Health, HealthServer
from riverq.errors import RiverqError


class Asked:
    """A server whose health the test sets."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.health = Health(live=True, ready=True, leader=False)
        self.server = HealthServer((host, 0), lambda: self.health)

    @property
    def place(self) -> str:
        return self.server.url.removeprefix("http://").rstrip("/")

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(self.place, timeout=30)
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content else None, dict(answer.headers)


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.server.close()


@pytest.mark.parametrize("name", ["live", "ready", "leader"])
@pytest.mark.parametrize("good", [True, False])
def test_each_question_has_its_own_answer(asked: Asked, name: str, good: bool) -> None:
    given: dict[str, Any] = {"live": not good, "ready": not good, "leader": not good} | {name: good}
    asked.health = Health(**given, why="because")
    status, content, headers = asked.ask(f"/{name}?verbose=1")
    assert status == (200 if good else 503)
    assert content == ({name: True} if good else {name: False, "why": "because"})
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/health"])
def test_all_figures_are_told_even_when_all_is_bad(asked: Asked, path: str) -> None:
    asked.health = Health(False, False, False, "blocked", {"trust_left": timedelta(seconds=1.5)})
    status, content, _ = asked.ask(path)
    assert status == 200
    assert content == {
        "live": False,
        "ready": False,
        "leader": False,
        "why": "blocked",
        "figures": {"trust_left": 1.5},
    }


def test_head_has_no_body(asked: Asked) -> None:
    status, content, headers = asked.ask("/leader", "HEAD")
    assert (status, content) == (503, None)
    assert int(headers["Content-Length"]) > 0


def test_other_paths_are_told_which_there_are(asked: Asked) -> None:
    status, content, _ = asked.ask("/metrics")
    assert status == 404
    assert content["paths"] == ["/", "/health", "/live", "/ready", "/leader"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(asked: Asked, method: str) -> None:
    status, _, headers = asked.ask("/live", method, b"x" * 10_000 if method in ("POST", "PUT") else None)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("request_line", [b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000])
def test_what_is_no_request_is_answered_and_forgotten(asked: Asked, request_line: bytes) -> None:
    host, port = asked.place.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_line)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert asked.ask("/live")[0] == 200


def test_clients_that_never_finish_do_not_keep_others_from_their_answer(asked: Asked) -> None:
    host, port = asked.place.split(":")
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS * 2):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            connection.sendall(b"GET /live HTTP/1.1\r\nX-Slow: ")
        assert asked.ask("/live")[0] == 200
        # The server holds no more than so many: the first ones were given up.
        first = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        first.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        assert first.recv(15) == b"HTTP/1.1 200 OK"
        assert len(asked.server._server._open) <= MOST_CONNECTIONS


def test_a_port_in_use_is_one_sentence(asked: Asked) -> None:
    host, port = asked.place.split(":")
    with pytest.raises(RiverqError, match=f"cannot answer --health at {host}:{port}: Address already in use"):
        HealthServer((host, int(port)), lambda: asked.health)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "192.0.2.1"])
def test_a_host_that_is_not_ours_is_one_sentence(host: str) -> None:
    with pytest.raises(RiverqError, match="cannot answer --health at"):
        HealthServer((host, 0), lambda: Health(True, True, True))


def test_ipv6_is_shown_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        asked = Asked("::1")
    except RiverqError:
        pytest.skip("no IPv6 loopback here")
    assert asked.server.url.startswith("http://[::1]:")
    assert asked.ask("/live")[0] == 200
    asked.server.close()
