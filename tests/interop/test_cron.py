"""The times of cron expressions, and which are refused, against robfig/cron itself.

What `tests/test_cron.py` and `tests/test_cron_refused.py` expect was worked out by hand; here it is held against the
library that River's users parse with, and so are random expressions in zones whose clocks change.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from riverq.cron import cron
from riverq.errors import ConfigError
from tests import test_cron, test_cron_refused
from tests.interop.oracle import Oracle

FRIDAY = test_cron.FRIDAY
ENDLESS_IN_GO = {"Pacific/Apia"}
"""Where a day was left out, robfig/cron searches for ever."""
ZONES = [
    "UTC",
    "Africa/Cairo",
    "America/Asuncion",
    "America/Havana",
    "America/New_York",
    "America/Nuuk",
    "America/Sao_Paulo",
    "Asia/Amman",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Europe/Berlin",
]
FIELDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
ALPHABET = ["*", "?", "-", "/", ",", "1", "5", "0", "7", "mon", "JAN", "+", "60"]


class Case(NamedTuple):
    """An expression, and from when on how many runs of it."""

    spec: str
    zone: str = "UTC"
    after: datetime = FRIDAY
    number: int = 4


def compare(oracle: Oracle, cases: list[Case]) -> int:
    """Both sides must say the same of each; returns how many were accepted."""
    asked = [{**case._asdict(), "after": case.after.isoformat()} for case in cases]
    theirs = oracle.call("cron", cases=asked)
    differ = [
        f"{case}: {found} in Go, {ours(case)} here"
        for case, found in zip(cases, theirs, strict=True)
        if found != ours(case)
    ]
    assert not differ, "\n".join(differ[:10])
    return sum(found is not None for found in theirs)


def ours(case: Case) -> list[str] | None:
    try:
        schedule = cron(case.spec)
    except ConfigError:
        return None
    found: list[str] = []
    at = case.after.astimezone(ZoneInfo(case.zone))
    for _ in range(case.number):
        following = schedule.next(at)
        if following is None:
            return [*found, "never"]
        at = following
        found.append(at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    return found


def test_the_expressions_worked_out_by_hand(oracle: Oracle) -> None:
    cases = [Case(spec) for spec, _ in test_cron.FIELDS]
    assert compare(oracle, cases) == len(cases) >= 80


def test_clock_changes_worked_out_by_hand(oracle: Oracle) -> None:
    changes = [each for each in test_cron.CHANGES if each[0] not in ENDLESS_IN_GO]
    cases = [Case(spec, zone, test_cron.written_out(after)) for zone, spec, after, _ in changes]
    assert compare(oracle, cases) == len(cases)


def test_what_is_refused_here_is_refused_there(oracle: Oracle) -> None:
    [mark] = test_cron_refused.test_refuses.pytestmark  # type: ignore[attr-defined]  # pytest puts it there
    cases = [Case(spec) for spec, _ in mark.args[1]]
    assert compare(oracle, cases) == 0


def test_random_expressions_in_zones_with_clock_changes(oracle: Oracle) -> None:
    rng = random.Random(1)

    def one(low: int, high: int) -> str:
        a, b = sorted(rng.choices(range(low, high + 1), k=2))
        shapes = ["*", "*", "*", "?", f"*/{rng.randint(1, 9)}", f"{a}", f"{a}-{b}", f"{a}/{rng.randint(1, 9)}"]
        return rng.choice([*shapes, f"{a},{b}", f"{a}-{b}/2"])

    cases = []
    for _ in range(1000):
        spec = " ".join(one(*bounds) for bounds in FIELDS)
        after = datetime(2015, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(13 * 365 * 86_400))
        cases.append(Case(spec, rng.choice(ZONES), after))
    assert compare(oracle, cases) == len(cases)


def test_random_texts_are_accepted_and_refused_alike(oracle: Oracle) -> None:
    rng = random.Random(2)
    cases = []
    for _ in range(1000):
        words = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 4))) for _ in FIELDS]
        cases.append(Case(" ".join(word if rng.random() < 0.4 else "*" for word in words), number=2))
    accepted = compare(oracle, cases)
    assert 50 < accepted < 950
