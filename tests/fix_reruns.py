"""A test is told when a PgBouncer of its run ended, and is run again where only PgBouncer's own bug can be to blame.

Where that was the bug of `pooler_process.py` and the test failed, the test is run again, RUNS times in all, and the
summary names it. Where a PgBouncer ended in any other way, the test fails with its log, also if it passed otherwise.
What ends between two tests counts to the second of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.runner import runtestprotocol

from tests import pooler_process
from tests.pooler_process import DEATHS, Death

RUNS = 3
PROPERTY = "pgbouncer"
"""A report's property, as only those go from a worker of xdist to the terminal."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Summary(), "riverq_pgbouncer_summary")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _run(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """The reports of the last run that was needed."""
    story: list[str] = []
    for run in range(1, RUNS + 1):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in reports if report.failed]
        deaths = _new_deaths(after_failure=bool(failed))
        if not deaths:
            break
        unknown = [death for death in deaths if not death.is_known]
        story += [f"run {run}: {str(death).splitlines()[0]}" for death in deaths]
        if unknown:
            _blame(failed, reports, unknown)
        if unknown or not failed:
            break
    if story:
        outcome = "failed" if any(report.failed for report in reports) else "passed"
        reports[-1].user_properties.append((PROPERTY, "; ".join([*story, f"{outcome} in the end"])))
    return reports


def _new_deaths(*, after_failure: bool) -> list[Death]:
    """Since the last time; those that are noticed later count to the next test."""
    pooler_process.settle(after_failure=after_failure)
    deaths = DEATHS.copy()
    del DEATHS[: len(deaths)]
    return deaths


def _blame(failed: list[pytest.TestReport], reports: list[pytest.TestReport], deaths: list[Death]) -> None:
    """Let the test fail for it, with the log."""
    text = "\n".join(map(str, deaths))
    if failed:
        failed[0].sections.append(("PgBouncer", text))
    else:
        reports[-1].outcome = "failed"
        reports[-1].longrepr = text


class _Summary:
    """Collects what the reports say, in the process that has the terminal."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._lines += [f"{report.nodeid}: {text}" for name, text in report.user_properties if name == PROPERTY]

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        yield
        if self._lines:
            terminalreporter.section("PgBouncer ended by itself")
            for line in self._lines:
                terminalreporter.line(line)
