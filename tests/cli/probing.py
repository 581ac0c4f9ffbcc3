"""Asking a process of a test how it is, over HTTP, as an orchestrator does."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.cli.conftest import WorkerProcess

PATIENCE = 60.0
"""Seconds; they only bound a failure."""


class Prober:
    """Knows the URL that a process has printed."""

    def __init__(self, process: WorkerProcess) -> None:
        self.url = process.line("riverq ").rpartition(" health at ")[2]
        assert self.url, process.passed

    def ask(self, path: str = "") -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
                status, content = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            status, content = error.code, json.load(error)
        assert isinstance(content, dict)
        return status, content

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask()[1]["figures"]
        return found

    def workers(self) -> list[dict[str, Any]]:
        """Those of a supervisor."""
        found: list[dict[str, Any]] = self.figures()["workers"]
        return found

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for everything until it is so."""
        deadline = time.monotonic() + PATIENCE
        while True:
            _, found = self.ask()
            if condition(found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
