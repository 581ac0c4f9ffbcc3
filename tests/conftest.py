"""One plug-in per concern; tests/README.md says what each offers."""

from __future__ import annotations

pytest_plugins = ("tests.fix_database", "tests.fix_context", "tests.fix_leaks", "tests.fix_pgbouncer")
