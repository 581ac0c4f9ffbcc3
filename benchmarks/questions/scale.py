"""What more processes on the same database bring. On a machine whose cores are shared by clients and Postgres the
answer is bounded by Postgres; it shows what competition for the same rows costs.
"""

from __future__ import annotations

from benchmarks.contenders.registry import MAIN
from benchmarks.harness.cell import Cell, Content
from benchmarks.harness.stage import work


def cells() -> list[Cell]:
    """All of this question's."""
    return [
        Cell(
            question="scale",
            name=f"processes-{count}",
            title=f"{count} process{'es' if count > 1 else ''}, 1000 workers each, 100000 no-op jobs, tuned settings",
            measure=work,
            task={"workers": 1000, "settings": "tuned", "processes": count},
            contenders=MAIN,
            content=Content(backlog=100_000),
        )
        for count in (1, 2, 4)
    ]
