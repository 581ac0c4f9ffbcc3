"""Which versions a request means. Pure: what is recorded comes in, versions in the order they are to run come out.

Versions that the database records and this riverq does not know are never touched: a newer client put them there.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from riverq.errors import ConfigError, MigrationError
from riverq.migrate.results import Direction
from riverq.versions import LINES, MAIN, Version

EVERYTHING = (0, -1)
"""The targets that remove every version on the way down."""

Recorded = Mapping[str, Collection[int]]


def lines_up(line: str | None, *, names_versions: bool) -> list[str]:
    """The lines that a request upwards, a status or a validation means, main first.

    Without a line both, unless the request counts or names versions: a number belongs to one line, and that is main.
    """
    if line is not None:
        return [check_line(line)]
    return [MAIN] if names_versions else list(LINES)


def check_line(line: str) -> str:
    """Return a known line's name. Raises ConfigError with the nearest name otherwise."""
    if line in LINES:
        return line
    near = difflib.get_close_matches(line, LINES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known lines: {', '.join(LINES)}"
    raise ConfigError(f"unknown migration line: {line!r} ({hint})")


def plan_up(line: str, recorded: Collection[int], target: int | None, max_steps: int | None) -> list[Version]:
    """Known and missing versions, up to and including the target. A target that is already applied means nothing to do.

    Raises ConfigError on an unknown target or a `max_steps` below 1.
    """
    if target is not None:
        check_known(line, target)
        if target in recorded:
            return []
    versions = [
        version
        for version in LINES[line]
        if version.number not in recorded and (target is None or version.number <= target)
    ]
    return versions[: _check_steps(max_steps)]


def plan_down(line: str, recorded: Collection[int], target: int | None, max_steps: int | None) -> list[Version]:
    """Known and applied versions above the target, highest first; one step unless a target or a number is given.

    Raises ConfigError on an unknown target or a `max_steps` below 1, MigrationError on a target that is not applied.
    """
    if target is None:
        target, max_steps = 0, 1 if max_steps is None else max_steps
    elif target not in EVERYTHING:
        check_known(line, target)
        if target not in recorded:
            raise MigrationError(
                f"cannot migrate line {line!r} down to version {target}: it is not applied "
                f"(applied: {_listed(recorded) or 'none'})"
            )
    versions = [v for v in reversed(LINES[line]) if v.number in recorded and v.number > target]
    return versions[: _check_steps(max_steps)]


def plan_named(
    line: str, direction: Direction, versions: Iterable[int] | None, exclude: Collection[int] = ()
) -> list[Version]:
    """The named versions of a line in the order in which they must run. None names all.

    Raises ConfigError on an unknown version.
    """
    named = {version.number for version in LINES[line]} if versions is None else set(versions)
    for number in sorted(named | set(exclude)):
        check_known(line, number)
    chosen = [version for version in LINES[line] if version.number in named - set(exclude)]
    return chosen if direction == "up" else chosen[::-1]


def check_known(line: str, number: int) -> int:
    """Return a known version's number. Raises ConfigError otherwise."""
    known = [version.number for version in LINES[line]]
    if number not in known:
        nearest = min(known, key=lambda candidate: abs(candidate - number))
        raise ConfigError(
            f"unknown version of migration line {line!r}: {number} (known: {_listed(known)}; nearest: {nearest})"
        )
    return number


def _check_steps(max_steps: int | None) -> int | None:
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"expected max_steps to be at least 1, got: {max_steps}")
    return max_steps


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
