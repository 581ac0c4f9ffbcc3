"""Four workers, one on each adapter, for two minutes of faults; and one death at the default grace."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

import riverq
from tests.faults import proof
from tests.faults.app import Task
from tests.faults.fleet import Fleet, Member, running_fleet
from tests.faults.record import Record
from tests.fix_database import ADAPTERS

JOBS = 5_000
GRACE = 6.0
MINUTES = 2.0
PAUSE = 20.0
"""Seconds of SIGSTOP: longer than the leader's lease and the grace, shorter than ten graces."""
PATIENCE = 180.0


class Script:
    """The faults, in order, at their seconds. Nobody's backends are terminated while a process is stopped."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._began = time.monotonic()
        self._paused: Member | None = None
        self.steps: list[tuple[float, Callable[[], None]]] = [
            (10, lambda: self._kill(self._follower())),
            (16, lambda: self._pause(self._follower())),
            (16 + PAUSE, self._resume),
            (40, lambda: self._kill(self._fleet.leader())),
            (50, self._cut_everybody),
            (58, lambda: self._pause(self._fleet.leader())),
            (58 + PAUSE, self._resume),
            (84, lambda: self._restart(self._follower())),
            (90, self._cut_everybody),
            (94, lambda: self._kill(self._follower())),
            (100, lambda: self._kill(self._follower())),
            (106, lambda: self._restart(self._fleet.leader())),
            (112, self._cut_everybody),
        ]

    def play(self) -> Iterator[float]:
        """Do each step when its time has come; between them the caller gets the seconds that have passed."""
        for at, step in self.steps:
            while (passed := time.monotonic() - self._began) < at:
                yield passed
            step()
        while (passed := time.monotonic() - self._began) < MINUTES * 60:
            yield passed

    def _follower(self) -> Member:
        """The oldest that does not lead and is not stopped."""
        leader = self._fleet.leader().client_id
        return next(m for m in self._fleet.living() if m.client_id != leader and not m.is_paused)

    def _kill(self, member: Member) -> None:
        self._fleet.kill(member)
        self._fleet.start(member.adapter)

    def _restart(self, member: Member) -> None:
        self._fleet.stop(member)
        self._fleet.start(member.adapter)

    def _pause(self, member: Member) -> None:
        self._fleet.pause(member)
        self._paused = member

    def _resume(self) -> None:
        assert self._paused is not None
        self._fleet.resume(self._paused)

    def _cut_everybody(self) -> None:
        assert self._fleet.cut(self._fleet.living()) > 0


def wait_until_done(record: Record, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while set(states := record.states()) != {"completed"}:
        assert time.monotonic() < deadline, f"not everything came to its end: {states}"
        time.sleep(0.5)


def some_jobs(rng: random.Random, first: int, count: int) -> list[riverq.InsertItem]:
    """Mostly short, some long, some for later, some that fail once."""
    items = []
    for number in range(first, first + count):
        seconds = rng.choice([0.01, 0.1, 0.3, 1.0]) if rng.random() < 0.97 else rng.uniform(5, 12)
        task = Task(number, seconds, fails_first=rng.random() < 0.05)
        delay = timedelta(seconds=rng.uniform(1, 15)) if rng.random() < 0.2 else None
        items.append(riverq.InsertItem(task, delay=delay))
    return items


def test_nothing_is_lost_doubled_or_falsely_rescued_in_two_minutes_of_faults(
    database_url: str, scratch_schema: str, record: Record, engine: sa.Engine, tmp_path: Path
) -> None:
    rng = random.Random(20261121)
    inserting = riverq.Client(engine, riverq.Config(schema=scratch_schema))
    fleet = Fleet(database_url, scratch_schema, record, tmp_path, grace=GRACE)
    with running_fleet(fleet):
        for adapter in ADAPTERS:
            fleet.start(adapter)
        inserted = 0
        for passed in Script(fleet).play():
            wanted = min(JOBS, int(JOBS * passed / (MINUTES * 60 - 10)))
            if wanted > inserted:
                inserting.insert_many(some_jobs(rng, inserted, wanted - inserted))
                inserted = wanted
            time.sleep(0.05)
        wait_until_done(record)
        for member in fleet.living():
            fleet.stop(member)
        proof.every_job_ran_and_was_completed_once(record, fleet, JOBS)
        proof.no_two_terms_overlapped_in_effect(record)
        proof.only_the_dead_were_rescued(record, fleet)
        waits = proof.the_dead_ones_jobs_were_back_in_time(record, fleet, timedelta(seconds=GRACE))
    assert waits, "nobody died with a job running, so nothing was shown"
    print(f"{len(waits)} runs of the dead were available again after {min(waits)} to {max(waits)}")


def test_a_killed_workers_jobs_run_again_within_45_seconds_at_the_default_grace(
    database_url: str, scratch_schema: str, record: Record, engine: sa.Engine, tmp_path: Path
) -> None:
    grace = riverq.Config().client_grace
    inserting = riverq.Client(engine, riverq.Config(schema=scratch_schema))
    fleet = Fleet(database_url, scratch_schema, record, tmp_path, grace=grace.total_seconds())
    with running_fleet(fleet):
        fleet.start("asyncpg")
        victim = fleet.start("psycopg")
        time.sleep(2 * grace.total_seconds() + 2)  # the leader must have been sure of its own heartbeats for two graces
        inserting.insert_many([Task(number, 20.0) for number in range(30)])
        deadline = time.monotonic() + 30
        while not (running := record.running_of(victim.client_id)):
            assert time.monotonic() < deadline, "the victim works nothing"
            time.sleep(0.1)
        fleet.kill(victim)
        wait_until_done(record)
        fleet.stop(fleet.living()[0])
        proof.every_job_ran_and_was_completed_once(record, fleet, 30)
        proof.only_the_dead_were_rescued(record, fleet)
        waits = proof.the_dead_ones_jobs_were_back_in_time(record, fleet, grace)
    assert len(waits) >= running
    print(f"{len(waits)} runs were available again after {min(waits)} to {max(waits)}")
