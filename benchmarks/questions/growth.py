"""What a table that has grown costs: finished jobs that are kept, a long queue that nobody works here, and jobs of
kinds that the client does not know in front of those that it does.
"""

from __future__ import annotations

from benchmarks.contenders.registry import MAIN, Contender
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.stage import Connection, Stage, work, work_on

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
        unit="attempts/s",
        rounds=1,
    )
    return [*grown, unknown]


def through_unknown(stage: Stage, contender: Contender, cell: Cell) -> Figures:
    """Attempts within the cap, nearly all of which fail for want of a worker; the note says how many jobs were known.

    Nobody filters by kind here. Go River can (FetchOnlyKnownKinds), and would then pass the unknown ones by.
    """
    with stage.database(contender, cell.content) as conn:
        return work_on(stage, contender, cell, conn, count=_attempts)


def _attempts(conn: Connection, known: int) -> tuple[int, str]:
    row = conn.execute("SELECT count(*) FROM river_job WHERE kind = 'unknown' AND attempt > 0").fetchone()
    unknown = int(row[0]) if row else 0
    return known + unknown, f"{known} known jobs were worked, {unknown} unknown ones claimed and failed"
