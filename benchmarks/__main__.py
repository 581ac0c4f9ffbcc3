"""`python -m benchmarks`: see README.md."""

from __future__ import annotations

import sys

from benchmarks.harness.cli import main

sys.exit(main())
