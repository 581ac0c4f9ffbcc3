"""`python -m riverq` is the command line."""

from __future__ import annotations

import sys

from riverq.cli.main import main

sys.exit(main())
