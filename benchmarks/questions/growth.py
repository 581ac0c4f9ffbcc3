"""What a table that has grown costs: finished jobs that are kept, a long queue that nobody works here, and jobs of
kinds that the client does not know in front of those that it does.
"""

from __future__ import annotations

from benchmarks.contenders.registry import MAIN, Contender
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.stage import Stage, work, work_on

BACKLOG = 50_000
MILLION = 1_000_000

CONTENTS = {
    "finished-0": ("An otherwise empty table", Content(BACKLOG)),
    "finished-1M": ("1 000 000 finished jobs in the table", Content(BACKLOG, finished=MILLION)),
    "idle-1M": ("1 000 000 available jobs of another queue", Content(BACKLOG, idle=MILLION)),
    "finished-10M": ("10 000 000 finished jobs in the table", Content(BACKLOG, finished=10 * MILLION)),
}


def cells() -> list[Cell]:
    """All of this question's."""
    task = {"workers": 2000, "settings": "tuned"}
    grown = [
        Cell(
            question="growth",
            name=name,
            title=f"{title}, {BACKLOG} no-op jobs, 2000 workers, tuned",
            measure=work,
            task=task,
            contenders=MAIN,
            content=content,
            rounds=1 if "10M" in name else None,
        )
        for name, (title, content) in CONTENTS.items()
    ]
    unknown = Cell(
        question="growth",
        name="unknown-500k",
        title="500 000 older jobs of an unknown kind in front of 5000 known ones, 2000 workers, tuned",
        measure=through_unknown,
        task=task,
        contenders=MAIN,
        content=Content(5000, unknown=MILLION // 2),
        rounds=1,
    )
    return [*grown, unknown]


def through_unknown(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Known jobs done within the cap, and how many attempts went to unknown ones meanwhile."""
    with stage.database(contender, cell.content) as conn:
        result = work_on(stage, contender, cell, conn)
        row = conn.execute(
            "SELECT count(*) FROM river_job WHERE kind = 'unknown' AND (attempt > 0 OR state <> 'available')"
        ).fetchone()
    failed = int(row[0]) if row else 0
    per_second = failed / result["seconds"]
    return {**result, "note": f"{failed} unknown jobs were claimed and failed ({per_second:,.0f}/s)"}
