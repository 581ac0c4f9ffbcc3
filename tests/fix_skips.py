"""What a test does where something it needs is missing: it skips, or fails where nothing may be missing (CI)."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, or fail it where RIVERQ_FORBID_SKIPS=1 says that every test must run."""
    if os.environ.get("RIVERQ_FORBID_SKIPS") == "1":
        pytest.fail(f"may not be skipped here: {reason}", pytrace=False)
    pytest.skip(reason)
