"""The CPU that the server's processes used, where they run on this machine and its /proc can be read.

A process id that the server names may be anybody's here: the server may be on another machine, in a container, or at
the end of a tunnel. So a process counts only if it is a Postgres and began when the server says it did.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from riverq.query.measure import Backend

PROC = Path("/proc")
SAME_START = 5.0
"""Seconds by which two clocks' ideas of one process's start may differ: the kernel knows its own start in seconds."""

_US = 1_000_000


def cores() -> int:
    """How many cores this machine has."""
    return os.cpu_count() or 1


def cpu_seconds(backend: Backend, proc: Path = PROC) -> float | None:
    """What the backend's process used so far; None where it is not a process of this machine."""
    try:
        name, fields = _stat(proc / str(backend.pid) / "stat")
        began = _boot_time(proc) + int(fields[19]) / _ticks()
    except (OSError, ValueError, IndexError):
        return None
    if "postgres" not in name or abs(began - backend.started_us / _US) > SAME_START:
        return None
    return (int(fields[11]) + int(fields[12])) / _ticks()


def _stat(path: Path) -> tuple[str, list[str]]:
    """The name, which may hold brackets and spaces, and the fields behind it."""
    before, _, behind = path.read_text(encoding="utf-8", errors="replace").rpartition(")")
    return before.partition("(")[2], behind.split()


@cache
def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


@cache
def _boot_time(proc: Path) -> int:
    for line in (proc / "stat").read_text(encoding="utf-8").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    raise ValueError("no btime")


def busy_seconds(proc: Path = PROC) -> float | None:
    """The CPU that everybody on this machine used since its start, all cores together; None where it cannot be read.

    In a container that is the whole machine's as well.
    """
    try:
        line = (proc / "stat").read_text(encoding="utf-8").partition("\n")[0]
        user, nice, system, _idle, _iowait, *others = (int(field) for field in line.split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(others)) / _ticks()
