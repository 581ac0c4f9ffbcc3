"""The table at the end of `make test-interop`: scenario × direction × adapter, and how each went.

Where RIVERQ_INTEROP=1 asks for it. A scenario is named by `@pytest.mark.scenario("area", "what is shown")`, or else by
the test's own name; direction and adapter are the test's parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fix_database import ADAPTERS

NAME = "interop"
WHATEVER = "–"
SIGNS = {"passed": "ok", "failed": "FAILED", "skipped": "skip"}
WORST_FIRST = ("failed", "skipped", "passed")

Key = tuple[str, str, str]
"""Area, scenario, direction."""
Results = dict[Key, dict[str, list[str]]]


def install(config: pytest.Config) -> None:
    """Print the table at the end of this run."""
    config.pluginmanager.register(_Table(), "riverq_interop_table")


def name_in_reports(items: list[pytest.Item]) -> None:
    """What a test is called in the table goes with its report, to the controller of xdist too."""
    for item in items:
        if "/tests/interop/" in item.path.as_posix():
            item.user_properties.append((NAME, list(_names(item))))


def _names(item: pytest.Item) -> tuple[str, str, str, str]:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    mark = item.get_closest_marker("scenario")
    if mark is not None:
        area, scenario = mark.args
    else:
        area = item.path.stem.removeprefix("test_").replace("_", " ")
        scenario = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    return area, scenario, str(params.get("direction", WHATEVER)), str(params.get("adapter", WHATEVER))


class _Table:
    """Where the run is controlled: takes in every report and prints them."""

    def __init__(self) -> None:
        self._results: Results = defaultdict(lambda: defaultdict(list))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        for name, value in report.user_properties:
            if name == NAME and isinstance(value, (list, tuple)):
                area, scenario, direction, adapter = value
                self._results[(area, scenario, direction)][adapter].append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._results:
            return
        terminalreporter.section("the fleet: scenario × direction × adapter")
        for area in sorted({key[0] for key in self._results}):
            for line in _lines(area, {key: row for key, row in self._results.items() if key[0] == area}):
                terminalreporter.write_line(line.rstrip())
        terminalreporter.write_line(f"\n{_total(self._results)}")


def _lines(area: str, rows: Results) -> Iterator[str]:
    """An area's part of the table: only with the columns that it has."""
    used = {adapter for row in rows.values() for adapter in row}
    adapters = [name for name in (*ADAPTERS, WHATEVER) if name in used]
    width = max(len(area), 2 + max(len(scenario) for _, scenario, _ in rows))
    yield ""
    yield f"{area.upper():{width}}  {'direction':13}  " + "  ".join(f"{name:13}" for name in adapters)
    for _, scenario, direction in sorted(rows):
        row = rows[(area, scenario, direction)]
        cells = "  ".join(f"{_cell(row.get(adapter, [])):13}" for adapter in adapters)
        yield f"{'  ' + scenario:{width}}  {direction:13}  {cells}"


def _cell(outcomes: list[str]) -> str:
    if not outcomes:
        return ""
    worst = next(outcome for outcome in WORST_FIRST if outcome in outcomes)
    if worst == "passed" and len(outcomes) > 1:
        return f"{SIGNS[worst]} {len(outcomes)}"
    return SIGNS[worst] + (f" {outcomes.count(worst)}/{len(outcomes)}" if len(outcomes) > 1 else "")


def _total(results: Results) -> str:
    everything = [outcome for row in results.values() for outcomes in row.values() for outcome in outcomes]
    counted = ", ".join(f"{everything.count(name)} {name}" for name in ("passed", "failed", "skipped"))
    return f"{len(results)} rows; {counted}"
