"""What a stuck job's handler is told, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class StuckAnswer(StrEnum):
    """What to do about the slot that a stuck job holds."""

    LEAVE = "leave"
    ADD_WORKER_SLOT = "add_worker_slot"
    """Let another job run in its stead; the slot goes back when the stuck job ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckJob:
    """A job that ran on past its timeout. `total_stuck` counts the stuck jobs of this client, this one included."""

    job_id: int
    kind: str
    queue: str
    timeout: timedelta
    running_for: timedelta
    total_stuck: int


StuckHandler = Callable[[StuckJob], StuckAnswer | None]
