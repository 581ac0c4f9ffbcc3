"""Waits for a moment at which nobody works on this machine: not the copying before a round, and nobody else."""

from __future__ import annotations

import time

from benchmarks.harness import proc

QUIET_CORES = 0.2
QUIET_SECONDS = 20.0
"""A round's clock starts when less than a fifth of a core is in use, or after this long."""

_LOOK_SECONDS = 0.4


def wait_for_quiet(seconds: float = QUIET_SECONDS) -> bool:
    """Whether it became quiet within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        began, busy = time.monotonic(), proc.machine_busy_seconds()
        time.sleep(_LOOK_SECONDS)
        cores = (proc.machine_busy_seconds() - busy) / (time.monotonic() - began)
        if cores <= QUIET_CORES:
            return True
        if time.monotonic() > deadline:
            return False
