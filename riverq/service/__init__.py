"""What every background service is made of."""

from __future__ import annotations

from riverq.service.backoff import Backoff
from riverq.service.context import ServiceContext
from riverq.service.service import Service, start_all, stop_all
from riverq.service.testsignal import TestSignal
from riverq.service.ticker import Ticker

__all__ = ["Backoff", "Service", "ServiceContext", "TestSignal", "Ticker", "start_all", "stop_all"]
