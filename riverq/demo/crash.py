"""A worker of the demo dies half-way, and the demo says how long its jobs waited to run again.

It is stopped first (SIGSTOP), so that the demo can see in the table that it has jobs running; then it is killed
(SIGKILL). Nothing tells the others. The survivor finds out: the dead worker's heartbeat stops, and the lock that its
connection held is gone.
"""

from __future__ import annotations

import time
from datetime import timedelta

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from riverq.demo.jobs import SCHEMA
from riverq.demo.worker import WorkerProcess
from riverq.job import JobState
from riverq.query.tables import Tables

SETTLE = 0.2
"""Seconds for the statements that were under way when the worker was stopped."""


class Crash:
    """Kills `victim` as soon as it is seen with jobs running, and watches those jobs. Call `go_on` again and again."""

    def __init__(self, engine: Engine, victim: WorkerProcess) -> None:
        self._engine = engine
        self._victim = victim
        self._killed_at: float | None = None
        self._orphans: list[int] = []
        self._recovered: timedelta | None = None

    def go_on(self) -> None:
        """Take the next step that is due."""
        if self._killed_at is None:
            self._try_to_kill()
        elif self._recovered is None and not self._still_running():
            self._recovered = timedelta(seconds=time.monotonic() - self._killed_at)

    def sentence(self) -> str:
        """What happened."""
        if self._killed_at is None:
            return f"demo: {self._victim.name} was never seen with a job running, and was not killed"
        number = f"{len(self._orphans)} job{'' if len(self._orphans) == 1 else 's'}"
        died = f"demo: {self._victim.name} killed half-way with {number} running"
        if self._recovered is None:
            return f"{died}, not back yet"
        return f"{died}; back after {self._recovered.total_seconds():.1f} s"

    def _try_to_kill(self) -> None:
        self._victim.check()
        self._victim.pause()
        time.sleep(SETTLE)
        self._orphans = self._running()
        if self._orphans:
            self._victim.kill()
            self._killed_at = time.monotonic()
        else:
            self._victim.resume()

    def _running(self) -> list[int]:
        job = Tables(SCHEMA).job
        last = job.c.attempted_by[func.cardinality(job.c.attempted_by)]
        mine = last == f"demo_{self._victim.name}"
        with Session(self._engine) as session:
            return list(session.scalars(select(job.c.id).where(job.c.state == JobState.RUNNING.value, mine)))

    def _still_running(self) -> bool:
        return not set(self._orphans).isdisjoint(self._running())
