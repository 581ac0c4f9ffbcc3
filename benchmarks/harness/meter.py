"""Measures one run from outside: CPU of client, Postgres and everybody else, WAL, statements, memory.

Nothing here runs inside what is measured. A run is *disturbed* when others than client, Postgres and harness had a
share of the machine; the harness then repeats it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.harness import proc
from benchmarks.harness.server import Server

FOREIGN_LIMIT = 0.05
"""Share of all cores' time that others may have before a round counts as disturbed. The difference of two clocks is a
little uncertain, and may come out below zero."""

CORES = len(os.sched_getaffinity(0))
"""Those that this process, and so all that it starts, may use."""


@dataclass(frozen=True)
class Usage:
    """What a run of `seconds` took. CPU in seconds; `foreign_share` is of all cores."""

    seconds: float
    client_cpu: float
    postgres_cpu: float
    foreign_share: float
    wal_bytes: int
    statements: int
    memory_bytes: int

    def per_job(self, jobs: int) -> dict[str, float]:
        """The figures of a report: microseconds, bytes and statements a job; memory stays as it is."""
        count = max(jobs, 1)  # a run without a job still has its memory and its cores
        return {
            "client_cpu_us": self.client_cpu / count * 1e6,
            "postgres_cpu_us": self.postgres_cpu / count * 1e6,
            "wal_bytes": self.wal_bytes / count,
            "statements": self.statements / count,
            "memory_mb": self.memory_bytes / 1e6,
            "foreign_share": self.foreign_share,
            "client_cores": self.client_cpu / self.seconds,
            "postgres_cores": self.postgres_cpu / self.seconds,
        }

    @property
    def disturbed(self) -> bool:
        """Whether somebody else was at work."""
        return self.foreign_share > FOREIGN_LIMIT


@dataclass(frozen=True)
class _Snapshot:
    at: float
    machine: float
    client: float
    postgres: float
    harness: float
    wal: int
    statements: int


class Meter:
    """Two snapshots and their difference. `more` are processes that count to nobody (a pooler in between)."""

    def __init__(self, server: Server, database: str, clients: Sequence[int], more: Sequence[int] = ()) -> None:
        self._server = server
        self._database = database
        self._clients = clients
        self._more = more
        self._began: _Snapshot | None = None

    def start(self) -> None:
        """Take the first snapshot; its cost lies before the clock's start."""
        self._server.forget_statements()
        self._began = replace(self._snapshot(0.0, proc.machine_busy_seconds()), at=time.monotonic())

    def stop(self) -> Usage:
        """Take the second one; the clock stops first."""
        now = self._snapshot(time.monotonic(), proc.machine_busy_seconds())
        began = self._began
        assert began is not None
        seconds = now.at - began.at
        client, postgres = now.client - began.client, now.postgres - began.postgres
        foreign = (now.machine - began.machine) - client - postgres - (now.harness - began.harness)
        return Usage(
            seconds=seconds,
            client_cpu=client,
            postgres_cpu=postgres,
            foreign_share=foreign / (seconds * CORES),
            wal_bytes=now.wal - began.wal,
            statements=now.statements - began.statements,
            memory_bytes=proc.peak_memory_bytes(self._clients),
        )

    def _snapshot(self, at: float, machine: float) -> _Snapshot:
        times = proc.all_times()
        return _Snapshot(
            at=at,
            machine=machine,
            client=proc.tree_cpu_seconds(self._clients, times),
            postgres=proc.tree_cpu_seconds([self._server.postmaster_pid], times),
            harness=times[os.getpid()].own + sum(times[pid].own for pid in self._more if pid in times),
            wal=self._server.wal_position(),
            statements=self._server.statements(self._database),
        )
