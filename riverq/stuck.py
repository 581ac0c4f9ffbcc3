"""What a stuck job's handler is told, and what it may answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    """A job that ran on past its timeout.

    `running_for` counts from when its worker began; `total_stuck` counts the stuck jobs of this client, this one
    included. `place` is where its thread was, as `file:line in function`; None where it has none, which goes for
    `async def` workers.
    """

    job_id: int
    kind: str
    queue: str
    timeout: timedelta
    running_for: timedelta
    total_stuck: int
    place: str | None = None


StuckHandler = Callable[[StuckJob], StuckAnswer | Awaitable[StuckAnswer | None] | None]
"""A `def` is called in a thread of its own, an `async def` in the event loop. None means LEAVE."""
