"""Insert options, their precedence, and the row-to-be that they resolve to. (Being written.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from riverq.job import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertParams:
    """One job about to be inserted, everything resolved and validated.

    `scheduled_at` None means the statement's own time. `unique_states` is the mask of docs/internals/protocol.md, 0
    where the job is not unique. `args` is what the caller gave, for middleware to look at.
    """

    kind: str
    encoded_args: str
    max_attempts: int = 25
    metadata: str = "{}"
    priority: int = 1
    queue: str = "default"
    scheduled_at: datetime | None = None
    state: JobState = JobState.AVAILABLE
    tags: tuple[str, ...] = ()
    unique_key: bytes | None = None
    unique_states: int = 0
    args: object = field(default=None, compare=False, repr=False)
