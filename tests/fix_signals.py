"""Children of the tests can be interrupted, also where the run itself cannot.

A shell that starts a job in the background lets it ignore SIGINT and SIGQUIT, `nohup` lets it ignore SIGHUP, and
whoever ignores a signal hands that down to every program it starts: a test that interrupts a child would wait for ever.
What has a handler is the default again in a program that is started, so a handler that does nothing leaves the run as
deaf as before and its children not.
"""

from __future__ import annotations

import signal
from types import FrameType


def pytest_configure() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which children would inherit."""
