"""What options accept, and how cells are shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.cli.values import address, count, duration, moment, plain, positive_duration, table


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (duration, "30", timedelta(seconds=30)),
        (duration, "0", timedelta(0)),
        (duration, "1.5", timedelta(seconds=1.5)),
        (duration, "500ms", timedelta(milliseconds=500)),
        (duration, "1h30m", timedelta(minutes=90)),
        (duration, "2d", timedelta(days=2)),
        (positive_duration, "1ms", timedelta(milliseconds=1)),
        (moment, "2026-11-21T18:00:00Z", datetime(2026, 11, 21, 18, tzinfo=UTC)),
        (moment, "2026-11-21 18:00+02:00", datetime(2026, 11, 21, 16, tzinfo=UTC)),
        (count, "7", 7),
        (address, "8080", ("127.0.0.1", 8080)),
        (address, ":8080", ("127.0.0.1", 8080)),
        (address, "0.0.0.0:0", ("0.0.0.0", 0)),
        (address, "localhost:80", ("localhost", 80)),
        (address, "[::1]:8080", ("::1", 8080)),
    ],
)
def test_what_is_accepted(read: Callable[[str], Any], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (duration, ["", "s", "-1s", "1 h", "1h30", "1x", "soon", "nan", "inf", "1e400h", "9999999999999d"]),
        (positive_duration, ["0", "0s"]),
        (moment, ["", "tomorrow", "2026-11-21T18:00:00", "18:00", "9999-12-31T23:59:59-14:00"]),
        (count, ["0", "-1", "1.0", "x", "²", ""]),
        (address, ["", ":", "host", "host:", "host:x", "host:65536", "::1:80", "::1", ":-1", "h :1", "h:８０"]),
    ],
)
def test_what_is_refused(read: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=r"^expected .*, got: "):
            read(text)


def test_a_table_is_as_wide_as_its_cells_and_shows_no_control_characters() -> None:
    rows = [("a", None), ("longer", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), ("\x1b[2J", "x")]
    assert table(("N", "TIME"), rows).splitlines() == [
        "N        TIME",
        "a        -",
        "longer   2026-01-02 03:04:05Z",
        "\\x1b[2J  x",
    ]


def test_json_has_times_in_rfc_3339_and_durations_in_seconds() -> None:
    assert plain(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00Z"
    assert plain(timedelta(milliseconds=1500)) == 1.5
    assert plain(ValueError("x")) == "x"
