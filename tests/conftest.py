"""One plug-in per concern; tests/README.md says what each offers.

`RIVERQ_FAULTS=1`, as `make test-faults` sets it, brings in the tests that take minutes.
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
