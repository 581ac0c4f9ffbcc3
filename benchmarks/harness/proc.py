"""What /proc knows: the CPU time of a tree of processes, of the whole machine, and the memory of a process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # idle, and iowait, which is idleness too


@dataclass(frozen=True)
class ProcessTimes:
    """One line of /proc/<pid>/stat: whose child it is and what CPU it and its collected children had, in seconds."""

    pid: int
    parent: int
    own: float
    collected: float


def machine_busy_seconds() -> float:
    """CPU time that anybody had, all cores together, time stolen by the host included; only differences mean something.

    It is what was not idle. The kernel measures idle time, but only samples who is at work: for a run of many short
    bursts the sum of user and system time came out a tenth too small.
    """
    line, *others = Path("/proc/stat").read_text().splitlines()
    cores = sum(re.match(r"cpu\d", other) is not None for other in others)
    values = [int(value) for value in line.split()[1:]]
    return time.clock_gettime(time.CLOCK_BOOTTIME) * cores - sum(values[index] for index in _IDLE) * TICK


def read_times(pid: int) -> ProcessTimes | None:
    """The times of one process, or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    user, system, child_user, child_system = (int(value) for value in fields[11:15])
    return ProcessTimes(pid, int(fields[1]), (user + system) * TICK, (child_user + child_system) * TICK)


def all_times() -> dict[int, ProcessTimes]:
    """The times of every process there is."""
    found = (read_times(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return {times.pid: times for times in found if times is not None}


def tree_cpu_seconds(roots: Iterable[int], snapshot: dict[int, ProcessTimes]) -> float:
    """CPU time of `roots` and all below them, with those that ended and were collected."""
    return sum(snapshot[pid].own + snapshot[pid].collected for pid in tree(roots, snapshot))


def tree(roots: Iterable[int], snapshot: dict[int, ProcessTimes]) -> set[int]:
    """`roots` (those that live) and everything below them."""
    members = {pid for pid in roots if pid in snapshot}
    grew = True
    while grew:
        below = {pid for pid, times in snapshot.items() if times.parent in members}
        grew = not below <= members
        members |= below
    return members


def peak_memory_bytes(pids: Iterable[int]) -> int:
    """The highest resident memory that each had so far, summed."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    return total
