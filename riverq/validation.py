"""Checks whose message is built from the name, the bound and the value, so that the three cannot disagree.

One grammar for every option of every class: `expected <name> to be <what>, got: <value>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import timedelta

from riverq.errors import ConfigError


def fail(name: str, expected: str, got: object, way_out: str = "") -> ConfigError:
    """The error for `name`; callers raise it."""
    hint = f" ({way_out})" if way_out else ""
    return ConfigError(f"expected {name} {expected}, got: {got!r}{hint}")


def integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """`value` is an int (no bool) within the bounds, both included."""
    span = f"of at least {low}" if high is None else f"from {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        raise fail(name, f"to be an integer {span}", value)


def duration(name: str, value: object, low: timedelta = timedelta(0)) -> None:
    """`value` is a timedelta of at least `low`."""
    if not isinstance(value, timedelta):
        raise fail(name, "to be a timedelta", value, "durations carry their unit: timedelta(seconds=…)")
    if value < low:
        raise fail(name, f"to be at least {low.total_seconds():g} s", value)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest known name, or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def known_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses an unknown option with the nearest name."""
    names = frozenset(known)
    for name in given:
        if name not in names:
            raise ConfigError(f"unknown {what} {name!r} ({nearest(name, names)})")
