from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.contenders.registry import Contender
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness import run
from benchmarks.harness.cell import Cell, Content, Figures
from benchmarks.harness.process import ChildFailed, ChildUnsupported
from benchmarks.harness.run import REPETITIONS, Turn, fingerprint, take, turns
from benchmarks.harness.server import Server
from benchmarks.harness.stage import CountMismatch, Stage
from benchmarks.harness.store import Record, Store
from tests.bench_harness.made_up import NOOP, contender, figures, records

STAGE = Stage(cast(Server, None), {}, Path(), "here")
A, B, C, ONCE = (contender(name, rounds) for name, rounds in (("a", 3), ("b", 3), ("c", 3), ("once", 1)))
CELL = replace(NOOP, contenders=("a", "b", "c", "once"))
OTHER = replace(CELL, name="other", contenders=("a", "b"))

Answer = Figures | Exception


def _order(found: list[Turn]) -> list[str]:
    return [f"{turn.cell.name[:1]}{turn.round}{turn.contender.name}" for turn in found]


def _measured(*answers: Answer) -> tuple[Cell, Callable[[], int]]:
    """A cell that answers so, one after the other, and how often it was asked."""
    left: Iterator[Answer] = iter(answers)
    asked = []

    def measure(stage: Stage, contender: Contender, cell: Cell) -> Figures:
        asked.append(contender.name)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return replace(CELL, measure=measure), lambda: len(asked)


def test_contenders_take_turns_within_a_round_and_the_order_rotates() -> None:
    found = _order(turns([CELL], [A, B, C], None))
    assert found == ["n1a", "n1b", "n1c", "n2b", "n2c", "n2a", "n3c", "n3a", "n3b"]


def test_a_contender_of_one_round_is_in_the_first_only() -> None:
    found = _order(turns([CELL], [A, B, ONCE], None))
    assert found[:3] == ["n1a", "n1b", "n1once"]
    assert sorted(found[3:]) == ["n2a", "n2b", "n3a", "n3b"]


def test_a_cell_is_finished_before_the_next_begins() -> None:
    assert _order(turns([CELL, OTHER], [A], 2)) == ["n1a", "n2a", "o1a", "o2a"]


def test_only_a_cells_own_contenders_take_part() -> None:
    assert _order(turns([OTHER], [A, C], 1)) == ["o1a"]
    assert turns([OTHER], [C], None) == []


def test_cells_and_the_command_line_limit_the_rounds() -> None:
    assert len(turns([CELL], [A, B], 1)) == 2
    assert len(turns([replace(CELL, rounds=1)], [A, B], None)) == 2
    assert len(turns([replace(CELL, rounds=1)], [A, B], 5)) == 2


def _disturbed(rate: int, *, share: float) -> dict[str, Any]:
    return {"rate": rate, "foreign_share": share, "disturbed": True}


def test_an_undisturbed_round_is_taken_once() -> None:
    cell, asked = _measured({**figures(1000.0), "disturbed": False})
    turn = Turn(cell, A, 2)
    mark = fingerprint(turn, "here")
    assert take(STAGE, turn) == Record(cell.question, cell.name, "a", 2, figures(1000.0), mark)
    assert asked() == 1


def test_a_disturbed_round_is_repeated_until_it_is_not() -> None:
    cell, asked = _measured(_disturbed(1, share=0.2), {**_disturbed(2, share=0.01), "disturbed": False})
    record = take(STAGE, Turn(cell, A, 1))
    assert (record.figures, record.attempts, record.disturbed) == ({"rate": 2, "foreign_share": 0.01}, 2, False)
    assert asked() == 2


def test_a_round_that_stays_disturbed_is_kept_and_marked() -> None:
    """At most REPETITIONS more attempts; a further answer would be used otherwise."""
    cell, asked = _measured(*(_disturbed(at, share=abs(at - 1) / 10 + 0.1) for at in range(REPETITIONS + 3)))
    record = take(STAGE, Turn(cell, A, 1))
    assert (asked(), record.attempts, record.disturbed) == (REPETITIONS + 1, REPETITIONS + 1, True)
    assert record.figures == {"rate": 1, "foreign_share": 0.1}, "the least disturbed one stands"


def test_a_repetition_that_fails_is_a_failure() -> None:
    """A job lost in the second attempt is not made good by the first."""
    cell, asked = _measured(_disturbed(1, share=0.2), CountMismatch("2 jobs, 1 run"))
    record = take(STAGE, Turn(cell, A, 1))
    assert (record.failed, record.figures, record.attempts) == ("CountMismatch: 2 jobs, 1 run", None, 2)
    assert asked() == 2


@pytest.mark.parametrize("error", [ChildUnsupported("no COPY"), ContenderUnavailable("no Go")])
def test_what_cannot_be_done_is_recorded_with_its_reason(error: Exception) -> None:
    cell, asked = _measured(error)
    record = take(STAGE, Turn(cell, A, 1))
    assert (record.figures, record.unsupported, record.failed) == (None, str(error), None)
    assert asked() == 1


@pytest.mark.parametrize(
    "error", [ChildFailed("ended early"), CountMismatch("2 jobs, 3 runs"), TimeoutError("no 'x'"), KeyError("rate")]
)
def test_a_failure_is_recorded_and_not_repeated(error: Exception) -> None:
    cell, asked = _measured(error)
    record = take(STAGE, Turn(cell, A, 1))
    assert (record.figures, record.unsupported) == (None, None)
    assert record.failed == f"{type(error).__name__}: {error}"
    assert asked() == 1


def test_only_what_this_machine_lacks_is_tried_again() -> None:
    lacking, refusing = _measured(ContenderUnavailable("no Go"))[0], _measured(ChildUnsupported("no COPY"))[0]
    assert take(STAGE, Turn(lacking, A, 1)).unavailable
    assert not take(STAGE, Turn(refusing, A, 1)).unavailable


def test_a_figure_belongs_to_its_place_contender_and_definition() -> None:
    turn = Turn(CELL, A, 1)
    mark = fingerprint(turn, "here")
    assert mark == fingerprint(Turn(CELL, A, 2), "here"), "all rounds of a cell are of one kind"
    assert mark != fingerprint(turn, "there")
    assert mark != fingerprint(Turn(CELL, B, 1), "here")
    assert mark != fingerprint(Turn(CELL, replace(A, version=lambda: "2"), 1), "here")
    assert mark != fingerprint(Turn(replace(CELL, task={**CELL.task, "workers": 3}), A, 1), "here")
    assert mark != fingerprint(Turn(replace(CELL, backlogs={"a": 5}), A, 1), "here")
    assert mark != fingerprint(Turn(replace(CELL, content=Content(backlog=7)), A, 1), "here")


def test_a_continued_run_measures_what_is_missing_or_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    cell, asked = _measured(figures(5.0), figures(6.0))
    there = records(cell, "a", 1000.0)[0]
    store.write(replace(there, fingerprint=fingerprint(Turn(cell, A, 1), STAGE.place)))
    store.write(Record(cell.question, cell.name, "b", 1, None, failed="ChildFailed: ended early"))
    run.run(STAGE, store, turns([cell], [A, B, C], 1))
    assert asked() == 2
    assert {record.contender: record.figures and record.figures["rate"] for record in store.records()} == {
        "a": 1000.0,
        "b": 5.0,
        "c": 6.0,
    }
    assert "1 of 3 rounds are there already" in capsys.readouterr().out
    run.run(STAGE, store, turns([cell], [A, B, C], 1))
    assert asked() == 2


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record("q", "c", "a", 1, {"rate": 34_315.0, "foreign_share": 0.02}), ["34,315 jobs/s", "others 2.0%"]),
        (Record("q", "c", "a", 1, {"rate": 1.0}, attempts=3, disturbed=True), ["attempt 3, still disturbed"]),
        (Record("q", "c", "a", 1, None, unsupported="no COPY"), ["cannot: no COPY"]),
        (Record("q", "c", "a", 1, None, failed="ChildFailed: x"), ["FAILED: ChildFailed: x"]),
    ],
)
def test_progress_says_what_came_of_a_turn(record: Record, words: list[str]) -> None:
    line = run.describe(Turn(CELL, A, 1), record)
    assert all(word in line for word in words), line
