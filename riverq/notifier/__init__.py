"""The client's one LISTEN connection, and who hears what arrives on it."""

from __future__ import annotations

from riverq.notifier.fan_out import OnGap, OnPayload
from riverq.notifier.notifier import Notifier, NotifierTiming

__all__ = ["Notifier", "NotifierTiming", "OnGap", "OnPayload"]
