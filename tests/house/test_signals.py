"""A run that was started in the background, and therefore ignores SIGINT, has children that do not."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if "with" in sys.argv:
    import tests.fix_signals
    tests.fix_signals.pytest_configure()
os.kill(os.getpid(), signal.SIGINT)
child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_children_of_a_deaf_run_can_be_interrupted() -> None:
    found = {
        word: subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True).stdout
        for word in ("with", "without")
    }
    assert found == {"with": "True\n", "without": "False\n"}
