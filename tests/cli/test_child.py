"""What a supervisor makes of a worker's reports, and of their absence."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from riverq.cli.child import STALE, STALE_READY, Bell, Slot
from riverq.cli.health import Health
from riverq.cli.stopping import SOFT

GOOD: dict[str, Any] = {"live": True, "ready": True, "leader": True, "why": "", "figures": {"written": 3}}


class Kept:
    """A slot whose worker runs `code`; everything it says rings the bell."""

    def __init__(self, *command: str) -> None:
        self.said: list[str] = []
        self.level = 0
        self.bell = Bell()
        self.slot = Slot(1, list(command), self.bell, self._say)
        self._keeping = asyncio.create_task(self.slot.keep(lambda: self.level))

    async def end(self) -> None:
        self.level = SOFT
        self.bell.ring()
        await self._keeping

    async def has_said(self, ending: str) -> None:
        """Until the last line ends so."""
        await self.bell.until(lambda: bool(self.said) and self.said[-1].endswith(ending))

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.bell.ring()


def kept(code: str) -> Kept:
    return Kept(sys.executable, "-c", code)


async def reported(report: dict[str, Any] | None, age: float) -> Health:
    """What is told of a worker whose last word is so old."""
    each = kept("import time; time.sleep(60)")
    await each.bell.until(lambda: each.slot.pid is not None)
    each.slot._report, each.slot._seen = report, time.monotonic() - age
    found = each.slot.health()
    each.level = SOFT
    each.slot.kill()
    await each.end()
    return found


@pytest.mark.parametrize(
    ("report", "age", "live", "ready", "why"),
    [
        (None, 0, True, False, "starting"),
        (None, STALE + 1, False, False, "starting for 31 s"),
        (GOOD, 0, True, True, ""),
        (GOOD, STALE_READY + 1, True, False, "silent for 11 s"),
        (GOOD, STALE + 1, False, False, "silent for 31 s"),
        (GOOD | {"ready": False, "why": "starting"}, 0, True, False, "starting"),
        (GOOD | {"live": False, "ready": False, "why": "blocked"}, 0, False, False, "blocked"),
    ],
)
async def test_what_it_said_counts_while_it_is_fresh(
    report: dict[str, Any] | None, age: float, live: bool, ready: bool, why: str
) -> None:
    found = await reported(report, age)
    assert (found.live, found.ready, found.why) == (live, ready, why)


async def test_a_report_that_is_no_json_is_dropped_and_the_next_one_read() -> None:
    report = json.dumps(GOOD)
    each = kept(
        "import os, socket\n"
        "own = socket.socket(fileno=int(os.environ['RIVERQ_SUPERVISOR'].split(':')[0]))\n"
        f"own.sendall(b'half\\n' + {report!r}.encode()[:20])\n"
        f"own.sendall({report!r}.encode()[20:] + b'\\n')\n"
        "own.recv(1)\n"
    )
    await each.bell.until(lambda: each.slot.is_ready)
    assert each.slot.health() == Health(True, True, True, "", {"written": 3})
    each.level = SOFT
    each.slot.order(SOFT)
    assert not each.slot.is_ready
    await each.end()
    assert each.slot.last_code == 0


async def test_waits_double_until_a_replacement_is_wanted() -> None:
    each = kept("import sys; sys.exit(3)")
    for number, wait in enumerate(("1", "2", "4", "8", "16", "30", "30"), 1):
        await each.has_said(f"in {wait} s")
        assert "failed to start (exit code 3" in each.said[-1]
        assert each.slot.starts == number
        each.said.clear()
        each.slot.replace()
        each.slot._failures = number  # which `replace` forgets
    await each.end()
    assert each.slot.last_code == 3


async def test_an_end_after_a_long_life_is_the_first_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverq.cli.child.LONG_ALIVE", 0.0)
    each = kept("pass")
    await each.has_said("in 1 s")
    each.said.clear()
    each.slot._failures = 7
    each.slot._replacing = True
    each.bell.ring()
    await each.has_said("in 1 s")
    await each.end()


async def test_a_command_that_cannot_be_started_is_said_and_tried_again(tmp_path: Path) -> None:
    each = Kept(str(tmp_path / "missing"))
    await each.bell.until(lambda: len(each.said) == 2)
    assert each.said[0] == "worker 1 cannot be started: No such file or directory"
    await each.end()
    assert each.slot.last_code == 1


async def test_an_order_to_a_worker_that_reads_nothing_does_not_block() -> None:
    each = Slot(1, [], Bell(), print)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        each._socket = ours
        with suppress(BlockingIOError):
            while ours.send(b"x" * 65536):
                pass
        each.order(SOFT)


async def test_a_worker_that_dies_with_an_order_unread_is_only_gone() -> None:
    each = Slot(1, [], Bell(), print)
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        ours.send(b"1")
        theirs.close()  # which Linux tells the other side as a reset
        await each._read(ours)
