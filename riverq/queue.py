"""The row of `river_queue`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """A queue that some client has worked. `paused_at` is set while it is paused; running jobs then go on."""

    name: str
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
