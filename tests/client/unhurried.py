"""Clients that are patient with the database, for tests of what they leave and say where nothing goes wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from riverq import elector
from riverq.elector import ElectorTiming
from riverq.liveness.heart import LivenessTiming

LONG = timedelta(seconds=30)


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Give a bid, a resignation and the end of the proof of life so long.

    By default a client that stops gives them a second or two, and a machine may stand still for longer.
    """
    patient = partial(ElectorTiming, operation_timeout=LONG, resign_timeouts=(LONG,))
    patch.setattr(elector, "ElectorTiming", patient)
    of = LivenessTiming.of
    patch.setattr(LivenessTiming, "of", lambda grace: replace(of(grace), stop_limit=LONG))
