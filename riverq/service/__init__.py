"""What every background service is made of."""

from __future__ import annotations

from riverq.service.backoff import Backoff
from riverq.service.context import ServiceContext
from riverq.service.service import Service, start_all, stop_all, stop_together, to_the_end
from riverq.service.testsignal import TestSignal
from riverq.service.ticker import Ticker
from riverq.service.timeout import OperationTimeoutError, within
from riverq.service.wakeup import Wakeup

__all__ = [
    "Backoff",
    "OperationTimeoutError",
    "Service",
    "ServiceContext",
    "TestSignal",
    "Ticker",
    "Wakeup",
    "start_all",
    "stop_all",
    "stop_together",
    "to_the_end",
    "within",
]
