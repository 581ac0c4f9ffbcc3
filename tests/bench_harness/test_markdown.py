from __future__ import annotations

import pytest

from benchmarks.harness import markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (34_315.2, "34 300"),
        (999.6, "1 000"),
        (1_234_567.0, "1 230 000"),
        (120.0, "120"),
        (14.44, "14.4"),
        (1.0, "1.00"),
        (0.00213, "0.00213"),
        (-0.5, "-0.500"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_a_number_has_three_digits_that_count(value: float, text: str) -> None:
    assert markdown.number(value).replace(markdown.SPACE, " ") == text


@pytest.mark.parametrize(("value", "text"), [(1.031, "1.03"), (0.1, "0.10"), (0.0312, "0.031"), (12.3, "12")])
def test_a_ratio_has_two_decimals_where_they_say_something(value: float, text: str) -> None:
    assert markdown.ratio(value) == text


def test_a_range_is_shown_where_there_is_one() -> None:
    assert markdown.with_range([3.0, 1.0, 2.0], markdown.number) == "2.00 (1.00–3.00)"
    assert markdown.with_range([3.0], markdown.number) == "3.00"
    assert markdown.with_range([], markdown.number) == "–"


def test_shares_are_percentages() -> None:
    assert markdown.share(0.0214) == f"2.1{markdown.SPACE}%"
    assert markdown.share(0.05, 0) == f"5{markdown.SPACE}%"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("`go build` failed in /srv/anna/riverq/go: no net", "`go build` failed in …/go: no net"),
        ('File "/srv/anna/x.py", line 3', 'File "…/x.py", line 3'),
        ("postgresql://bench@127.0.0.1:5432/bench_run refused", "postgresql://bench@127.0.0.1:5432/bench_run refused"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("3 jobs/s and/or none, in /proc", "3 jobs/s and/or none, in /proc"),
    ],
)
def test_messages_lose_the_folders_of_a_machine(said: str, shown: str) -> None:
    assert markdown.without_paths(said) == shown


def test_a_pipe_in_a_cell_does_not_end_it() -> None:
    assert markdown.table(["a", "b"], [["x|y", "1"]]) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]


def test_anything_that_a_measurement_notes_has_a_form() -> None:
    shown = [markdown.anything(value) for value in (True, False, 12_345, 1.5, None, "words")]
    assert shown == ["yes", "no", f"12{markdown.SPACE}345", "1.50", "–", "words"]


def test_a_paragraph_keeps_long_words_whole() -> None:
    word = "x" * (markdown.WIDTH + 10)
    assert markdown.paragraph(f"- a {word} b", "  ") == ["- a", f"  {word}", "  b"]
