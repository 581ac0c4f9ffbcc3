"""What a run was measured on: the machine, its disk, Postgres, and the versions of what took part.

A rate means something beside these alone. Nothing here names the machine or shows one of its paths: the facts are
published with the results.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import go_river
from benchmarks.contenders.unavailable import ContenderUnavailable

if TYPE_CHECKING:
    from benchmarks.harness.server import Server

PACKAGES = ("riverq", "SQLAlchemy", "asyncpg", "psycopg", "pg8000", "uvloop")

SYNC_WRITES = 200
SYNC_BYTES = 8192
"""As Postgres writes its log: whole pages, into a file whose blocks are there already."""

_COMMAND_SECONDS = 60.0


def facts(server: Server) -> dict[str, Any]:
    """Everything, ready for JSON. The disk is the one that `server` has its data on."""
    # The server's folder may belong to another user; the one above it lies on the same disk.
    disk = server.folder.parent
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": cpu_model(_read("/proc/cpuinfo")),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": memory_gb(_read("/proc/meminfo")),
            "kernel": f"{platform.system()} {platform.release()}",
            "virtualisation": virtualisation(),
            "filesystem": filesystem(disk, _read("/proc/self/mounts")),
            "fdatasync_us": round(fdatasync_seconds(disk) * 1e6),
        },
        "postgres": {"version": server.version, "settings": server.settings()},
        "versions": versions(),
    }


def cpu_model(cpuinfo: str) -> str | None:
    """The first processor's name, as /proc/cpuinfo has it; the architecture where it has none."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.machine() or None


def memory_gb(meminfo: str) -> float | None:
    """What /proc/meminfo calls MemTotal, in 10^9 bytes."""
    found = re.search(r"^MemTotal:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e9, 1) if found else None


def virtualisation() -> str | None:
    """What systemd finds, the virtual machine and the container in it ("kvm, docker", "none").

    Without systemd, whether the CPU says that it is a guest.
    """
    if command := shutil.which("systemd-detect-virt"):
        # It answers "none" with exit code 1.
        answers = [_output([command, kind], any_exit_code=True) for kind in ("--vm", "--container")]
        return ", ".join(answer for answer in answers if answer and answer != "none") or "none"
    flags = re.search(r"^flags\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if flags is None:
        return None
    return "virtual machine" if "hypervisor" in flags[1].split() else "none"


def filesystem(folder: Path, mounts: str) -> str | None:
    """The type of the file system that `folder` lies on, by the longest mount point above it."""
    place = folder.resolve()
    best: tuple[int, str] | None = None
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        mounted = Path(point.replace("\\040", " "))
        # `>=`: of two mounted on the same point, the later one covers the other.
        if place.is_relative_to(mounted) and (best is None or len(mounted.parts) >= best[0]):
            best = (len(mounted.parts), kind)
    return best[1] if best else None


def fdatasync_seconds(folder: Path) -> float:
    """The median time that one 8 kB page takes to reach the disk below `folder`."""
    page = b"\1" * SYNC_BYTES
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        number = file.fileno()
        os.pwrite(number, b"\0" * SYNC_BYTES * SYNC_WRITES, 0)
        os.fsync(number)
        for position in range(SYNC_WRITES):
            began = time.perf_counter()
            os.pwrite(number, page, position * SYNC_BYTES)
            os.fdatasync(number)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def versions() -> dict[str, str]:
    """Of Python, Go and what riverq runs on; what is not installed is left out."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "psycopg" in found:
        from psycopg.pq import __impl__

        found["psycopg"] += f" ({__impl__})"
    if (go := _go_version()) is not None:
        found["Go"] = go
    return found


def _go_version() -> str | None:
    """Asked where the contender is built, since go.mod may call for another Go than the one that is installed."""
    try:
        go = go_river.find_go()
    except ContenderUnavailable:
        return None
    answer = _output([go, "env", "GOVERSION"], cwd=go_river.SOURCE)
    return answer.removeprefix("go") if answer else None


def _output(command: list[str], *, cwd: Path | None = None, any_exit_code: bool = False) -> str | None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if any_exit_code or done.returncode == 0 else None


def _read(path: str) -> str:
    """Not every system has these files."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
