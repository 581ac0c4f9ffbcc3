"""How long a job waits: from just before the insert call to the worker's first line (start), and to the commit that
ends it (end, by Postgres's own commit timestamps), at an even rate of single inserts from the worker's own process.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders.registry import ADAPTERS, MAIN, PEERS, Contender
from benchmarks.harness.cell import Cell, Figures
from benchmarks.harness.meter import Meter
from benchmarks.harness.server import RUN_DATABASE
from benchmarks.harness.stage import CountMismatch, Stage, figures

SECONDS = 8
RATES = (1, 50, 500)
WORKERS = 100
POINTS = (50, 95, 99)


def cells() -> list[Cell]:
    """All of this question's; peers and riverq's sync adapters are asked with tuned settings only."""
    return [
        Cell(
            question="latency",
            name=f"{rate}-{settings}",
            title=f"{rate} inserts/s, {settings} settings",
            measure=measure,
            task={"rate": rate, "seconds": SECONDS if rate > 1 else 15, "workers": WORKERS, "settings": settings},
            contenders=(*ADAPTERS, *PEERS) if settings == "tuned" else MAIN,
            main="start_p50",
            unit="ms",
            higher_is_better=False,
            rounds=None if rate > 1 else 1,
        )
        for settings in ("tuned", "default")
        for rate in RATES
    ]


def measure(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Run it, then read from the database when each job's end was committed."""
    seconds = float(cell.task["seconds"])
    with stage.database(contender, cell.content) as conn:
        with stage.children(contender, {"task": "latency", **cell.task}) as [child]:
            meter = Meter(stage.server, RUN_DATABASE, [child.pid])
            meter.start()
            child.go()
            samples = child.expect("result", seconds + 40)["samples"]
            usage = meter.stop()
            child.stop()
        query = contender.tables.ended
        ended = dict(conn.execute(query.encode()).fetchall()) if query is not None else {}
    expected = int(cell.task["rate"] * seconds)
    if len({number for number, _, _ in samples}) != len(samples) or len(samples) > expected:
        raise CountMismatch(f"{contender.name}: {expected} jobs were inserted, {len(samples)} runs, some of one job")
    late = expected - len(samples)
    note = {"note": f"{late} of {expected} jobs had not started 10 s after the last insert"} if late else {}
    starts = [(started - inserted) * 1e3 for _, inserted, started in samples]
    ends = [(ended[number] - inserted) * 1e3 for number, inserted, _ in samples if number in ended]
    if query is not None and not late and len(ends) != expected:
        raise CountMismatch(f"{contender.name}: {expected} jobs ran, {len(ends)} are finished in the table")
    return figures(usage, len(samples), **percentiles("start", starts), **percentiles("end", ends), **note)


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """The nearest-rank percentiles of interest, None where there is nothing to rank."""
    ranked = sorted(values)
    return {
        f"{name}_p{point}": ranked[max(0, -(-point * len(ranked) // 100) - 1)] if ranked else None for point in POINTS
    }
