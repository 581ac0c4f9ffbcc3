"""One plug-in per concern; tests/README.md says what each offers.

`RIVERQ_FAULTS=1`, as `make test-faults` sets it, brings in the tests that take minutes; `RIVERQ_INTEROP=1`, as
`make test-interop` does, the scenarios of a fleet with Go River. What is left out is said in the first lines of a run.
"""

from __future__ import annotations

import os

pytest_plugins = (
    "tests.fix_signals",
    "tests.fix_server",
    "tests.fix_pgbouncer",
    "tests.fix_reruns",
    "tests.fix_database",
    "tests.fix_schema",
    "tests.fix_context",
    "tests.fix_leaks",
)

collect_ignore = [] if os.environ.get("RIVERQ_FAULTS") else ["faults"]

LEFT_OUT = (
    ("RIVERQ_FAULTS", "tests/faults", "make test-faults"),
    ("RIVERQ_INTEROP", "tests/interop/fleet and tests/interop/ui", "make test-interop"),
)


def pytest_report_header() -> list[str]:
    """What this run leaves out, and how to run it."""
    return [f"left out: {what} ({command})" for variable, what, command in LEFT_OUT if not os.environ.get(variable)]
