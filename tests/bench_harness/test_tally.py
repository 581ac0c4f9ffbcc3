from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.cell import Cell
from benchmarks.harness.store import Record, Store
from benchmarks.harness.tally import Rounds, absent, collect, noise, summed_up
from tests.bench_harness.made_up import LATENCY, NOOP, records


def _rounds(name: str, *rates: float, cell: Cell = NOOP) -> Rounds:
    return Rounds(cell, name, records(cell, name, *rates))


def _cannot(cell: Cell, name: str, reason: str) -> Record:
    return Record(cell.question, cell.name, name, 1, None, unsupported=reason)


def test_ratios_are_taken_within_rounds() -> None:
    """The machine was twice as quick in round 2, for both. Over the medians the ratio would be 150 / 100."""
    ratios = _rounds("riverq-asyncpg", 110.0, 300.0, 150.0).ratios(_rounds("go", 100.0, 200.0, 100.0))
    assert ratios == pytest.approx([1.1, 1.5, 1.5])


def test_only_rounds_that_both_have_make_a_ratio() -> None:
    go = _rounds("go", 100.0, 200.0, 400.0)
    assert _rounds("saq", 50.0).ratios(go) == [0.5]
    second_only = Rounds(NOOP, "saq", [replace(records(NOOP, "saq", 50.0)[0], round=2)])
    assert second_only.ratios(go) == [0.25]
    first_failed = Rounds(NOOP, "go", [replace(go.records[0], figures=None, failed="x"), go.records[1]])
    assert _rounds("saq", 50.0).ratios(first_failed) == []


def test_there_is_no_ratio_to_nobody_or_to_nothing() -> None:
    saq = _rounds("saq", 50.0)
    assert saq.ratios(None) == []
    assert saq.ratios(_rounds("go", 0.0)) == []


def test_a_figure_that_a_round_does_not_have_is_left_out() -> None:
    [first, second] = records(NOOP, "saq", 10.0, 20.0, end_p50=None)
    assert first.figures is not None
    first.figures["end_p50"] = 3.0
    rounds = Rounds(NOOP, "saq", [first, second])
    assert (rounds.values("end_p50"), rounds.median("end_p50"), rounds.median("unheard_of")) == ([3.0], 3.0, None)


def test_the_spread_is_a_share_of_the_median() -> None:
    assert _rounds("go", 90.0, 100.0, 120.0).spread == pytest.approx(0.3)


def test_noise_counts_those_with_three_rounds_by_unit() -> None:
    collected = {
        "a": {"go": _rounds("go", 90.0, 100.0, 120.0), "riverq-asyncpg": _rounds("riverq-asyncpg", 99.0, 100.0, 100.0)},
        "b": {"saq": _rounds("saq", 1.0, 100.0), "go": _rounds("go", 100.0, 110.0, 100.0)},
        "c": {"go": _rounds("go", 1.0, 2.0, 3.0, cell=LATENCY)},
    }
    spreads = noise(collected)["spreads"]
    assert spreads["jobs/s"] == {
        "series": 3,
        "median": pytest.approx(0.1),
        "max": pytest.approx(0.3),
        "max_of": "go in throughput/noop-2000-tuned",
    }
    assert (spreads["ms"]["series"], spreads["ms"]["max"]) == (1, 1.0)


def test_noise_counts_repeated_and_still_disturbed_rounds() -> None:
    [calm, late, loud] = records(NOOP, "go", 1.0, 1.0, 1.0)
    made = [calm, replace(late, attempts=2), replace(loud, attempts=3, disturbed=True), _cannot(NOOP, "go", "no")]
    found = noise({"a": {"go": Rounds(NOOP, "go", made)}})
    assert (found["rounds"], found["repeated"], found["disturbed"]) == (3, 2, 1)


def test_noise_of_nothing_is_nothing() -> None:
    assert noise({}) == {"spreads": {}, "rounds": 0, "repeated": 0, "disturbed": 0}


def test_contenders_stand_in_the_cells_order_and_rounds_in_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = replace(NOOP, name="another")
    made = [*records(NOOP, "saq", 1.0), *records(NOOP, "go", *map(float, range(1, 12))), *records(other, "go", 1.0)]
    for record in (*made, *records(replace(NOOP, name="no longer asked"), "go", 1.0)):
        store.write(record)
    found = collect(store, [other, NOOP, replace(NOOP, name="not run")])
    assert list(found) == [other.key, NOOP.key]
    assert list(found[NOOP.key]) == ["go", "saq"]
    assert [record.round for record in found[NOOP.key]["go"].records] == list(range(1, 12))


def test_who_cannot_run_at_all_is_told_apart_from_who_cannot_do_one_thing() -> None:
    collected = {
        cell.key: {
            "oban": Rounds(cell, "oban", [_cannot(cell, "oban", "no Python 3.12")]),
            "saq": Rounds(
                cell, "saq", [_cannot(cell, "saq", "no COPY")] if cell is NOOP else records(cell, "saq", 1.0)
            ),
            "chancy": Rounds(cell, "chancy", [_cannot(cell, "chancy", f"no {cell.name}")]),
        }
        for cell in (NOOP, LATENCY)
    }
    assert absent(collected) == {"oban": "no Python 3.12"}
    assert absent({"a": {"oban": Rounds(NOOP, "oban", [_cannot(NOOP, "oban", "no")])}}) == {}


def test_a_summary_has_every_round_and_what_it_comes_to() -> None:
    found = summed_up(_rounds("saq", 50.123456, 60.0, 40.0), _rounds("go", 100.0, 100.0, 50.0))
    assert found["rounds"] == {1: 50.123, 2: 60.0, 3: 40.0}
    assert (found["median"], found["min"], found["max"]) == (50.123, 40.0, 60.0)
    assert found["ratio"] == {"median": 0.6, "min": 0.50123, "max": 0.8}
    assert found["figures"]["postgres_cpu_us"] == 32.6
    assert "rate" not in found["figures"]
    assert not {"capped", "disturbed", "unsupported", "failed"} & set(found)
    json.dumps(found)


def test_a_summary_has_what_went_wrong() -> None:
    [good, bad] = records(NOOP, "saq", 1.0, 2.0, capped=True)
    bad = replace(bad, figures=None, failed="ChildFailed: in /srv/anna/x.py")
    found = summed_up(Rounds(NOOP, "saq", [replace(good, disturbed=True), bad]), None)
    assert (found["capped"], found["disturbed"], found["failed"]) == (True, [1], {2: "ChildFailed: in …/x.py"})
    assert summed_up(Rounds(NOOP, "saq", [_cannot(NOOP, "saq", "no COPY")]), None) == {"unsupported": "no COPY"}


def test_a_summary_knows_rounds_without_their_main_figure() -> None:
    [record] = records(LATENCY, "saq", 1.0)
    assert record.figures is not None
    record.figures["start_p50"] = None
    assert "median" not in summed_up(Rounds(LATENCY, "saq", [record]), None)
