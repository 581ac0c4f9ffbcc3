"""How many jobs per second one caller inserts, one call after the other: singly in the queue's own transaction, singly
in the application's (which also writes a row of its own), a thousand in one call, and a thousand by COPY.
"""

from __future__ import annotations

from benchmarks.contenders.registry import ADAPTERS, INSERTERS, PEERS, Contender
from benchmarks.harness.cell import Cell, Figures
from benchmarks.harness.meter import Meter
from benchmarks.harness.server import RUN_DATABASE
from benchmarks.harness.stage import CountMismatch, Stage, figures

SECONDS = 3.0
BATCH = 1000

TITLES = {
    "single": "Single inserts, each in a transaction of the queue's own",
    "single_tx": "Single inserts in the application's transaction, beside a row of its own",
    "batch": f"Batches of {BATCH}, one transaction each",
    "copy": f"COPY, {BATCH} jobs each",
}


def cells() -> list[Cell]:
    """All of this question's."""
    return [
        Cell(
            question="insert",
            name=mode,
            title=title,
            measure=measure,
            task={"mode": mode, "batch": BATCH, "seconds": SECONDS, "settings": "tuned"},
            contenders=(*ADAPTERS, *INSERTERS, *PEERS),
        )
        for mode, title in TITLES.items()
    ]


def measure(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Insert for some seconds; River's table must then hold as many as the contender says."""
    task = {"task": "insert", **cell.task}
    with stage.database(contender, cell.content) as conn, stage.children(contender, task) as [child]:
        meter = Meter(stage.server, RUN_DATABASE, [child.pid])
        meter.start()
        child.go()
        result = child.expect("result", SECONDS + 30)
        usage, count = meter.stop(), int(result["count"])
        if contender.family == "river":
            row = conn.execute("SELECT count(*) FROM river_job").fetchone()
            if row != (count,):
                raise CountMismatch(f"{contender.name}: says {count} inserts, the table holds {row}")
        return figures(usage, count)
