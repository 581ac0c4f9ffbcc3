"""Cells, contenders and records that nobody measured, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.contenders.registry import RIVER, Contender
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.stage import Stage
from benchmarks.harness.store import Record

Measure = Callable[[Stage, Contender, Cell], Figures]


def unmeasured(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Nobody may ask."""
    raise AssertionError(f"{cell.key} of {contender.name} is not to be measured here")


NOOP = Cell(
    question="throughput",
    name="noop-2000-tuned",
    title="No-op jobs",
    measure=unmeasured,
    task={"workers": 2000, "settings": "tuned"},
    contenders=("riverq-asyncpg", "riverq-psycopg", "go", "saq"),
    content=Content(backlog=100_000),
    backlogs={"saq": 20_000},
)
LATENCY = replace(
    NOOP,
    question="latency",
    name="50-tuned",
    title="50 inserts a second",
    task={"rate": 50, "seconds": 8},
    content=Content(),
    backlogs={},
    main="start_p50",
    unit="ms",
    higher_is_better=False,
)


def contender(name: str, rounds: int = 3, **notes: str) -> Contender:
    """One that cannot be started."""
    return Contender(
        name=name,
        family="river",
        rounds=rounds,
        command=lambda: ["false"],
        tables=RIVER,
        notes=notes,
        version=lambda: f"1.{len(name)}",
    )


def everybody() -> dict[str, Contender]:
    """Those of NOOP, with notes."""
    return {
        "riverq-asyncpg": contender("riverq-asyncpg", tuned="quick", default="calm"),
        "riverq-psycopg": contender("riverq-psycopg"),
        "go": contender("go", tuned="River's bench settings"),
        "saq": contender("saq", 1, tuned="pool of 8", unequal="no bulk insert"),
    }


def figures(rate: float, **more: Any) -> Figures:
    """As of a run of `work`."""
    return {
        "jobs": 100_000,
        "seconds": 100_000 / rate,
        "rate": rate,
        "client_cpu_us": 14.4,
        "postgres_cpu_us": 32.6,
        "wal_bytes": 2145.4,
        "statements": 0.00213,
        "memory_mb": 67.9,
        "client_cores": 0.55,
        "postgres_cores": 1.3,
        "foreign_share": 0.021,
        **more,
    }


def records(cell: Cell, name: str, *rates: float, **more: Any) -> list[Record]:
    """Rounds 1, 2, … with these rates."""
    return [
        Record(cell.question, cell.name, name, number, {**figures(1000.0), **more, cell.main: rate}, "f")
        for number, rate in enumerate(rates, 1)
    ]
