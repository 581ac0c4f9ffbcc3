"""How many jobs one client works per second: no-op jobs from a backlog, jobs of 10 ms, and while inserting.

"tuned" is what Go River's own benchmark sets (cooldown 2 ms, polling 20 ms) and each peer's best documented settings;
"default" is what somebody gets who only says how many jobs may run at once.
"""

from __future__ import annotations

from benchmarks.contenders.registry import ADAPTERS, PATIENT, PEERS, REFERENCE
from benchmarks.harness.cell import Cell, Content
from benchmarks.harness.stage import work

BACKLOG = 100_000
EVERYBODY = (*ADAPTERS, *PEERS)

SLOWER = {
    "riverq-psycopg-sync": 40_000,
    "riverq-pg8000": 40_000,
    "pgqueuer": 60_000,
    "chancy": 40_000,
    "oban": 20_000,
    "saq": 5_000,
    "procrastinate": 4_000,
}
"""Backlogs that some work in five to twenty seconds, as the others work theirs."""

BY_DEFAULT = SLOWER | {"pgqueuer": 20_000, "chancy": 10_000, "oban": 10_000}
ASLEEP = SLOWER | {"pgqueuer": 20_000, "chancy": 10_000, "oban": 10_000}
"""And those for default settings, and for jobs that take 10 ms."""


def cells() -> list[Cell]:
    """All of this question's."""
    return [*_noop(), *_sleeping(), _insert_and_work()]


def _noop() -> list[Cell]:
    return [
        Cell(
            question="throughput",
            name=f"noop-{workers}-{settings}",
            title=f"No-op jobs from a backlog, {workers} workers, {settings} settings",
            measure=work,
            task={"workers": workers, "settings": settings},
            contenders=(*EVERYBODY, PATIENT) if workers == 100 else EVERYBODY,
            content=Content(backlog=BACKLOG),
            backlogs=(SLOWER if settings == "tuned" else BY_DEFAULT) | _patient(workers, settings),
        )
        for settings in ("tuned", "default")
        for workers in (100, 2000)
    ]


def _patient(workers: int, settings: str) -> dict[str, int]:
    """Who keeps a cooldown of 100 ms claims at most ten times a second."""
    return dict.fromkeys((REFERENCE, PATIENT), 15_000) if (workers, settings) == (100, "default") else {}


def _sleeping() -> list[Cell]:
    return [
        Cell(
            question="throughput",
            name=f"sleep-{workers}",
            title=f"Jobs that take 10 ms, {workers} workers, tuned settings (at most {workers * 100} jobs/s)",
            measure=work,
            task={"workers": workers, "settings": "tuned", "job": "sleep", "sleep_ms": 10},
            contenders=EVERYBODY,
            content=Content(backlog=backlog),
            backlogs=ASLEEP,
        )
        for workers, backlog in ((32, 30_000), (128, BACKLOG))
    ]


def _insert_and_work() -> Cell:
    return Cell(
        question="throughput",
        name="insert-and-work",
        title="One process inserts (batches of 1000) and works at once, 1000 workers, tuned settings",
        measure=work,
        task={"workers": 1000, "settings": "tuned", "insert": BACKLOG},
        contenders=EVERYBODY,
        backlogs=SLOWER,
    )
