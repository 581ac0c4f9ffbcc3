"""Each record becomes one line of JSON, whatever it holds."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from riverq.cli.json_logs import JsonFormatter


class Hostile:
    """Cannot be shown in any way."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class HostileDict(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no")


def formatted(message: object = "hello", *args: object, **extra: object) -> dict[str, Any]:
    record = logging.LogRecord("riverq", logging.WARNING, __file__, 1, message, args, None)
    vars(record).update(extra)
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


def test_a_plain_line() -> None:
    found = formatted("%s: Did something (num_jobs=%d)", "JobCleaner", 3)
    assert found.pop("time").endswith("Z")
    assert found == {"level": "warning", "logger": "riverq", "message": "JobCleaner: Did something (num_jobs=3)"}


def test_the_time_is_utc_to_the_microsecond() -> None:
    assert formatted(created=0.25)["time"] == "1970-01-01T00:00:00.250000Z"


def test_extra_fields_stand_beside_the_rest_and_never_replace_it() -> None:
    found = formatted(job_id=7, level="mine", queue=None, tags=("a", {"b"}))
    assert found["job_id"] == 7
    assert found["queue"] is None
    assert found["tags"] == ["a", ["b"]]
    assert (found["level"], found["level_"]) == ("warning", "mine")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Hostile(), "<Hostile>"),
        (HostileDict(), "{}"),
        ("\ud800", "?"),
        (b"\xff", "b'\\xff'"),
        ({1: {Hostile(): "x"}}, {"1": {"<Hostile>": "x"}}),
        (2**70, 2**70),
    ],
)
def test_odd_values_are_shown(value: object, shown: object) -> None:
    assert formatted(odd=value)["odd"] == shown


def test_what_holds_itself_ends_somewhere() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "[" in json.dumps(formatted(odd=endless)["odd"])


@pytest.mark.parametrize("args", [("x",), (1, 2, 3), (Hostile(), 2)])
def test_arguments_that_do_not_fit_are_shown(args: tuple[object, ...]) -> None:
    assert formatted("%d and %d", *args)["message"].startswith("%d and %d ")


def test_an_exception_is_text_of_several_lines_in_one_line() -> None:
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        found = formatted(exc_info=sys.exc_info())
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("RuntimeError: a\nb")
