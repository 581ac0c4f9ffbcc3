from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.harness import meter, proc
from benchmarks.harness.meter import FOREIGN_LIMIT, Meter, Usage
from benchmarks.harness.proc import ProcessTimes
from benchmarks.harness.server import Server

POSTMASTER, BACKEND, CLIENT, POOLER = 100, 101, 200, 300


@dataclass
class World:
    """A machine of two cores at one moment, and a server in it."""

    now: float = 50.0
    machine: float = 1000.0
    own: dict[int, float] = field(default_factory=dict)
    wal: int = 7_000
    calls: int = 11
    forgot: int = 0
    postmaster_pid: int = POSTMASTER

    def times(self) -> dict[int, ProcessTimes]:
        parents = {POSTMASTER: 1, BACKEND: POSTMASTER, CLIENT: os.getpid(), POOLER: os.getpid(), os.getpid(): 1}
        return {pid: ProcessTimes(pid, parent, self.own.get(pid, 1.0), 0.0) for pid, parent in parents.items()}

    def wal_position(self) -> int:
        return self.wal

    def statements(self, database: str) -> int:
        return self.calls

    def forget_statements(self) -> None:
        self.forgot += 1

    def pass_by(self, seconds: float, machine: float, **own: float) -> None:
        """CPU seconds that were used meanwhile, by everybody and by those named."""
        self.now += seconds
        self.machine += machine
        pids = {
            "postmaster": POSTMASTER,
            "backend": BACKEND,
            "client": CLIENT,
            "pooler": POOLER,
            "harness": os.getpid(),
        }
        self.own = {pid: 1.0 + own.get(name, 0.0) for name, pid in pids.items()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(proc, "machine_busy_seconds", lambda: world.machine)
    monkeypatch.setattr(proc, "all_times", world.times)
    monkeypatch.setattr(proc, "peak_memory_bytes", lambda pids: 1_000_000 * len(list(pids)))
    monkeypatch.setattr(meter, "CORES", 2)
    return world


def _meter(world: World, more: tuple[int, ...] = ()) -> Meter:
    return Meter(cast(Server, world), "bench_run", [CLIENT], more)


def test_cpu_is_told_apart_by_who_had_it(world: World) -> None:
    found = _meter(world)
    found.start()
    world.pass_by(10.0, machine=15.0, client=4.0, postmaster=0.5, backend=6.5, harness=1.0)
    world.wal += 5_000
    world.calls += 30
    usage = found.stop()
    assert (usage.seconds, usage.client_cpu, usage.postgres_cpu) == (10.0, 4.0, 7.0)
    assert usage.foreign_share == pytest.approx((15.0 - 4.0 - 7.0 - 1.0) / (10.0 * 2))
    assert (usage.wal_bytes, usage.statements, usage.memory_bytes) == (5_000, 30, 1_000_000)
    assert world.forgot == 1


def test_a_pooler_counts_to_nobody(world: World) -> None:
    found = _meter(world, (POOLER,))
    found.start()
    world.pass_by(10.0, machine=12.0, client=4.0, backend=4.0, pooler=3.0, harness=1.0)
    usage = found.stop()
    assert (usage.client_cpu, usage.postgres_cpu, usage.foreign_share) == (4.0, 4.0, 0.0)


def test_a_pooler_that_is_gone_is_no_error(world: World) -> None:
    found = _meter(world, (999,))
    found.start()
    world.pass_by(10.0, machine=10.0, client=10.0)
    assert found.stop().foreign_share == 0.0


def test_clocks_of_different_kinds_may_make_the_share_negative(world: World) -> None:
    """It is told as it is: hidden, it would look as if nobody else could be measured."""
    found = _meter(world)
    found.start()
    world.pass_by(1.0, machine=0.98, client=1.0)
    usage = found.stop()
    assert usage.foreign_share == pytest.approx(-0.02 / 2)
    assert not usage.disturbed


def _usage(foreign_share: float = 0.0) -> Usage:
    return Usage(
        seconds=2.0,
        client_cpu=1.0,
        postgres_cpu=3.0,
        foreign_share=foreign_share,
        wal_bytes=2_000,
        statements=10,
        memory_bytes=68_000_000,
    )


def test_figures_are_per_job_and_memory_is_not() -> None:
    assert _usage(0.01).per_job(1_000) == {
        "client_cpu_us": 1000.0,
        "postgres_cpu_us": 3000.0,
        "wal_bytes": 2.0,
        "statements": 0.01,
        "memory_mb": 68.0,
        "foreign_share": 0.01,
        "client_cores": 0.5,
        "postgres_cores": 1.5,
    }


def test_a_run_without_a_job_has_figures() -> None:
    assert _usage().per_job(0)["wal_bytes"] == 2_000


def test_a_run_is_disturbed_from_the_limit_on() -> None:
    assert not _usage(FOREIGN_LIMIT).disturbed
    assert _usage(FOREIGN_LIMIT + 0.001).disturbed
