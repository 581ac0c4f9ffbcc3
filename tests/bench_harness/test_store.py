from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.store import Record, Store
from tests.bench_harness.made_up import NOOP, records


def test_a_round_that_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    [record] = records(NOOP, "go", 1000.0)
    Store(tmp_path).write(record)
    later = Store(tmp_path)
    assert later.records() == [record]
    assert later.has(NOOP, "go", 1, "f")


def test_other_rounds_cells_and_contenders_are_still_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(records(NOOP, "go", 1000.0)[0])
    assert not store.has(NOOP, "go", 2, "f")
    assert not store.has(NOOP, "saq", 1, "f")
    assert not store.has(replace(NOOP, name="noop-100-tuned"), "go", 1, "f")
    assert not store.has(replace(NOOP, question="growth"), "go", 1, "f")


def test_a_round_of_another_machine_version_or_definition_is_still_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(records(NOOP, "go", 1000.0)[0])
    assert not store.has(NOOP, "go", 1, "g")


def test_what_failed_is_tried_again_and_what_cannot_be_done_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(Record(NOOP.question, NOOP.name, "go", 1, None, "f", failed="ChildFailed: ended early"))
    store.write(Record(NOOP.question, NOOP.name, "saq", 1, None, "f", unsupported="no bulk insert"))
    store.write(Record(NOOP.question, NOOP.name, "oban", 1, None, "f", unsupported="no Python 3.12", unavailable=True))
    assert not store.has(NOOP, "go", 1, "f")
    assert store.has(NOOP, "saq", 1, "f")
    assert not store.has(NOOP, "oban", 1, "f"), "it may have been installed meanwhile"


def test_a_second_try_takes_the_place_of_the_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(Record(NOOP.question, NOOP.name, "go", 1, None, failed="ChildFailed: ended early"))
    [again] = records(NOOP, "go", 1000.0)
    store.write(again)
    assert store.records() == [again]


def test_a_file_that_was_cut_off_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies between the writing and the renaming."""
    store = Store(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.write(records(NOOP, "go", 1000.0)[0])
    assert list(tmp_path.rglob("*go*")), "nothing was written at all, so nothing is shown"
    assert Store(tmp_path).records() == []
    assert not Store(tmp_path).has(NOOP, "go", 1, "f")


def test_a_new_run_begins_with_nothing_and_keeps_the_last_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    [record] = records(NOOP, "go", 1000.0)
    for _ in range(2):
        store.write(record)
        store.write_facts({"minutes": 90})
        (store.logs / "go.log").write_text("it said something")
        store.set_aside()
        assert (store.records(), store.facts(), list(store.logs.iterdir())) == ([], {}, [])
    before = Store(tmp_path / "run-before")
    assert (before.records(), before.facts()) == ([record], {"minutes": 90})
    store.set_aside()
    assert before.records() == [record], "a run without a round does not take its place"


def test_facts_are_kept_beside_the_rounds(tmp_path: Path) -> None:
    assert Store(tmp_path).facts() == {}
    Store(tmp_path).write_facts({"minutes": 3.5})
    assert Store(tmp_path).facts() == {"minutes": 3.5}
    assert json.loads((tmp_path / "run.json").read_text()) == {"minutes": 3.5}
    assert Store(tmp_path).records() == []
