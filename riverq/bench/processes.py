"""The CPU that was used: by the server's processes where they run on this machine, and by everybody on our cores.

A process id that the server names may be anybody's here: the server may be on another machine, in a container, or at
the end of a tunnel. So a process counts only if it is a Postgres and began when the server says it did.

Our cores are those that this process may run on, or fewer where its control group (version 2) has a limit. A limit of a
group further up is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

from riverq.query.measure import Backend

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
SAME_START = 5.0
"""Seconds by which two clocks' ideas of one process's start may differ: the kernel knows its own start in seconds."""

_US = 1_000_000


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


# -- our cores


def cores(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """How many cores this process may use."""
    limit = _limit(proc, groups)
    return len(_allowed()) if limit is None else limit[0]


def busy_seconds(proc: Path = PROC, groups: Path = GROUPS) -> float | None:
    """The CPU that everybody used of these cores so far, all together; None where it cannot be read.

    Where a control group has a limit, everybody is who is in that group. Elsewhere what the hypervisor gave to others
    counts as used.
    """
    try:
        limit = _limit(proc, groups)
        if limit is not None:
            fields = (limit[1] / "cpu.stat").read_text(encoding="utf-8").split()
            return int(fields[fields.index("usage_usec") + 1]) / _US
        lines = (proc / "stat").read_text(encoding="utf-8").splitlines()
        names = {f"cpu{number}" for number in _allowed()}
        return sum(_busy(fields) for name, *fields in map(str.split, lines) if name in names) / _ticks()
    except (OSError, ValueError):
        return None


def _busy(fields: list[str]) -> int:
    user, nice, system, _idle, _iowait, *others = (int(field) for field in fields[:8])
    return user + nice + system + sum(others)


def _allowed() -> Collection[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _limit(proc: Path, groups: Path) -> tuple[float, Path] | None:
    """The cores that our control group grants, and its folder; None where that is not less than all we may run on."""
    try:
        names = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        folder = groups / next(name.removeprefix("0::/") for name in names if name.startswith("0::/"))
        granted, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        limit = int(granted) / int(period)
    except (OSError, ValueError, StopIteration):  # ValueError: it is "max"
        return None
    return (limit, folder) if limit < len(_allowed()) else None
