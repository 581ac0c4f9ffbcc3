"""Proof of life: the row a client keeps fresh from a thread of its own, and the lock on its listener's connection.

`pulse` counts heartbeats, `heart` is the thread that makes them, `liveness` is the service a client starts. Who is dead
is judged elsewhere, by the leader. See docs/internals/liveness.md.
"""

from __future__ import annotations

from riverq.liveness.heart import LivenessTiming
from riverq.liveness.liveness import Liveness

__all__ = ["Liveness", "LivenessTiming"]
