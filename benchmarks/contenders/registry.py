"""Everybody who is measured, how to start them, and what their tables say.

`rounds` is how often a cell is repeated for them. A contender that this machine cannot run raises
ContenderUnavailable with the reason, which the report repeats.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contenders import go_river, venvs

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"

REFERENCE = "go"
"""The contender that ratios are taken to."""


@dataclass(frozen=True)
class Tables:
    """What a contender's tables say about the jobs named "bench"."""

    finished: str
    remaining: str
    ended: str | None


RIVER = Tables(
    finished="SELECT count(*) FROM river_job WHERE kind = 'bench' AND state = 'completed'",
    remaining=(
        "SELECT EXISTS (SELECT FROM river_job WHERE kind = 'bench'"
        " AND state IN ('available', 'pending', 'retryable', 'running', 'scheduled'))"
    ),
    ended=(
        "SELECT (args ->> 'number')::bigint, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        " FROM river_job WHERE kind = 'bench' AND state = 'completed'"
    ),
)


@dataclass(frozen=True)
class Contender:
    """One of those who are measured. `family` is whose tables it uses; `filler` makes and fills them."""

    name: str
    family: str
    rounds: int
    command: Callable[[], list[str]]
    tables: Tables
    notes: Mapping[str, str]
    version: Callable[[], str]
    extra: Mapping[str, Any] = field(default_factory=dict)


def _here(module: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-m", f"benchmarks.contenders.{module}"]


def _installed(package: str) -> Callable[[], str]:
    from importlib.metadata import version

    return lambda: version(package)


def _riverq(name: str, driver: str, rounds: int, how: str, *, eager: bool = True) -> Contender:
    tuned = "fetch_cooldown 2 ms and fetch_poll_interval 20 ms as in River's own bench command"
    if how.startswith("AsyncClient"):  # a sync Client makes its loop itself, in a thread of its own
        tuned += ", uvloop"
    unequal = (
        "fetch_eager is on, as by default: it claims again without the cooldown while claims come back full, which Go "
        "River never does; a plain success writes and returns less than Go River's statement; the application's pool "
        "has up to 15 connections (SQLAlchemy's default), the queue itself up to 4"
    )
    if not eager:
        unequal = "as riverq-asyncpg, but with fetch_eager=False: it keeps the cooldown as Go River does"
    return Contender(
        name=name,
        family="river",
        rounds=rounds,
        command=_here("riverq_child"),
        tables=RIVER,
        notes={"tuned": f"{how}; {tuned}", "default": f"{how}; all defaults", "unequal": unequal},
        version=_installed("riverq"),
        extra={"driver": driver, "eager": eager},
    )


def _go() -> Contender:
    return Contender(
        name=REFERENCE,
        family="river",
        rounds=3,
        command=lambda: [str(go_river.build(CACHE))],
        tables=RIVER,
        notes=go_river.SETTINGS_NOTE,
        version=go_river.version,
    )


def _peer(name: str, *, python: Callable[[Path], Path], family: str | None = None) -> Contender:
    module = import_module(f"benchmarks.contenders.{name}_child")
    tables = RIVER if family == "river" else Tables(module.FINISHED_SQL, module.REMAINING_SQL, module.ENDED_SQL)
    return Contender(
        name=name,
        family=family or name,
        rounds=1,
        command=lambda: [str(python(ROOT)), "-m", f"benchmarks.contenders.{name}_child"],
        tables=tables,
        notes=module.NOTES,
        version=lambda: _pinned(name),
    )


def _pinned(name: str) -> str:
    for file in ("requirements-peers.txt", "requirements-oban.txt"):
        path = ROOT / "benchmarks" / file
        for line in path.read_text().splitlines() if path.exists() else ():
            package, _, version = line.partition("==")
            if package.partition("[")[0] == name:
                return version.strip()
    return "?"


MAIN = ("riverq-asyncpg", "riverq-psycopg", REFERENCE)
"""Three rounds each; the only ones asked about growth and scale."""

ADAPTERS = (*MAIN, "riverq-psycopg-sync", "riverq-pg8000")
PEERS = ("pgqueuer", "procrastinate", "chancy", "saq", "oban")
INSERTERS = ("riverqueue",)
PATIENT = "riverq-asyncpg-patient"
"""riverq with `fetch_eager=False`, where that is what makes the difference to Go River."""


def contenders() -> dict[str, Contender]:
    """All of them, by name."""
    everybody = [
        _riverq("riverq-asyncpg", "asyncpg", 3, "AsyncClient, async def workers"),
        _riverq("riverq-psycopg", "psycopg", 3, "AsyncClient, async def workers"),
        _go(),
        _riverq("riverq-psycopg-sync", "psycopg-sync", 1, "Client, def workers (a thread each)"),
        _riverq("riverq-pg8000", "pg8000", 1, "Client, def workers (a thread each)"),
        _riverq(PATIENT, "asyncpg", 1, "AsyncClient, async def workers", eager=False),
        *(_peer(name, python=venvs.oban if name == "oban" else venvs.peers) for name in PEERS),
        _peer("riverqueue", python=venvs.peers, family="river"),
    ]
    return {contender.name: contender for contender in everybody}
