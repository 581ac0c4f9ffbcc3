from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.harness.cell import Content
from tests.bench_harness.made_up import LATENCY, NOOP, contender


def test_a_contender_with_a_backlog_of_its_own_gets_it() -> None:
    cell = replace(NOOP, content=Content(backlog=100_000, finished=7))
    assert cell.content_for("go") is cell.content
    assert cell.content_for("saq") == Content(backlog=20_000, finished=7)
    assert (cell.jobs_for("go"), cell.jobs_for("saq")) == (100_000, 20_000)


def test_nobody_gets_a_backlog_where_the_run_inserts_the_jobs_itself() -> None:
    cell = replace(NOOP, content=Content(), task={"insert": 50_000})
    assert cell.content_for("saq") == Content()
    assert (cell.jobs_for("go"), cell.jobs_for("saq")) == (50_000, 20_000)


def test_different_contents_have_different_templates() -> None:
    contents = [
        Content(),
        *(Content(**{part: 5}) for part in ("backlog", "finished", "idle", "unknown")),
        Content(5, 5),
    ]
    names = {content.template_name(family) for content in contents for family in ("river", "saq")}
    assert len(names) == 2 * len(contents)


@pytest.mark.parametrize(
    ("of_cell", "of_contender", "asked", "rounds"),
    [(None, 3, None, 3), (1, 3, None, 1), (5, 3, None, 3), (None, 3, 2, 2), (None, 1, 2, 1), (1, 3, 2, 1)],
)
def test_the_smallest_number_of_rounds_counts(
    of_cell: int | None, of_contender: int, asked: int | None, rounds: int
) -> None:
    assert replace(LATENCY, rounds=of_cell).rounds_for(contender("go", of_contender), asked) == rounds
