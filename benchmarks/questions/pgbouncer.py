"""What PgBouncer in between costs: session mode, where LISTEN works, and transaction mode, where workers poll."""

from __future__ import annotations

from benchmarks.contenders.registry import MAIN, Contender
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.pooler import find_pgbouncer, running_pgbouncer
from benchmarks.harness.server import RUN_DATABASE
from benchmarks.harness.stage import Stage, work_on


def cells() -> list[Cell]:
    """All of this question's."""
    return [
        Cell(
            question="pgbouncer",
            name=mode,
            title=f"{mode.capitalize()} mode{'' if listens else ', polling'}, 100000 no-op jobs, 1000 workers, tuned",
            measure=measure,
            task={"workers": 1000, "settings": "tuned", "listen": listens, "pgbouncer": not listens, "mode": mode},
            contenders=MAIN,
            content=Content(backlog=100_000),
        )
        for mode, listens in (("session", True), ("transaction", False))
    ]


def measure(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """The same as straight to Postgres; the pooler's CPU is counted to nobody but kept out of "others".

    In session mode everybody prepares statements as usual; in transaction mode nobody can.
    """
    command = find_pgbouncer()
    if command is None:
        raise ContenderUnavailable("pgbouncer is not installed (Debian and Ubuntu: apt-get install pgbouncer)")
    with (
        stage.database(contender, cell.content) as conn,
        running_pgbouncer(command, stage.server.url(RUN_DATABASE), cell.task["mode"]) as pooler,
    ):
        return work_on(stage, contender, cell, conn, through=pooler)
