from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import proc
from benchmarks.harness.proc import ProcessTimes


def _snapshot(*processes: tuple[int, int, float, float]) -> dict[int, ProcessTimes]:
    return {pid: ProcessTimes(pid, parent, own, collected) for pid, parent, own, collected in processes}


FAMILY = _snapshot(
    (1, 0, 100.0, 1000.0),
    (10, 1, 1.0, 0.5),
    (13, 12, 8.0, 0.0),  # before its parent
    (12, 10, 4.0, 0.25),
    (11, 10, 2.0, 0.0),
    (20, 1, 16.0, 0.0),
)


def test_a_tree_is_its_root_and_everything_below() -> None:
    assert proc.tree([10], FAMILY) == {10, 11, 12, 13}
    assert proc.tree([12, 20], FAMILY) == {12, 13, 20}


def test_a_root_that_is_gone_has_no_tree() -> None:
    assert proc.tree([99], FAMILY) == set()
    assert proc.tree([99, 11], FAMILY) == {11}


def test_a_tree_had_the_time_of_all_its_members_and_of_those_that_ended() -> None:
    assert proc.tree_cpu_seconds([10], FAMILY) == 1.0 + 0.5 + 8.0 + 4.0 + 0.25 + 2.0


def test_a_root_within_another_ones_tree_counts_once() -> None:
    assert proc.tree_cpu_seconds([10, 12], FAMILY) == proc.tree_cpu_seconds([10], FAMILY)


def test_a_process_that_ends_meanwhile_keeps_counting() -> None:
    """Its parent collects what it had; the difference of two snapshots misses nothing."""
    later = _snapshot((10, 1, 1.5, 0.5 + 5.0), (12, 10, 4.0, 0.25), (13, 12, 8.0, 0.0))  # 11 ended with 5.0 in all
    assert proc.tree_cpu_seconds([10], later) - proc.tree_cpu_seconds([10], FAMILY) == 0.5 + (5.0 - 2.0)


def test_a_process_is_read_whatever_its_name_holds(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to(Path(sys.executable).resolve())
    with subprocess.Popen([odd, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        times = proc.read_times(process.pid)
        process.kill()
    assert times is not None
    assert (times.pid, times.parent) == (process.pid, os.getpid())


def test_a_process_that_is_gone_has_no_times() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()
    assert proc.read_times(process.pid) is None
    assert proc.peak_memory_bytes([process.pid]) == 0


def test_this_process_is_among_all_and_has_memory() -> None:
    assert proc.all_times()[os.getpid()].parent == os.getppid()
    assert proc.peak_memory_bytes([os.getpid()]) > 1_000_000


def test_what_is_not_idle_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.

    Two cores for ten seconds, one second of it at work, which the kernel's samples have missed.
    """
    moments = [(100.0, 4000, 50_000), (110.0, 4000 + 1500, 50_000 + 400)]

    def busy(now: float, idle: int, waiting: int) -> float:
        text = f"cpu  7 0 0 {idle} {waiting} 0 0 0 0 0\ncpu0 0 0\ncpu1 0 0\nctxt 5\ncpus 9\n"
        monkeypatch.setattr(Path, "read_text", lambda path: text)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: now)
        return proc.machine_busy_seconds()

    before, after = (busy(*moment) for moment in moments)
    assert after - before == pytest.approx(2 * 10.0 - 1900 * proc.TICK)
