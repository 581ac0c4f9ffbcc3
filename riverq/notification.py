"""The three NOTIFY topics and their payloads. The texts are byte for byte what Go River sends.

A notification is a hint, never a fact: it may be lost, doubled or late, so whoever hears one re-reads the table. Parse
by key; unknown keys and actions are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Topic(StrEnum):
    """What one may listen to; the channel is `<schema>.<topic>`."""

    INSERT = "river_insert"
    CONTROL = "river_control"
    LEADERSHIP = "river_leadership"


def channel(schema: str, topic: Topic) -> str:
    """The channel's name, unquoted."""
    return f"{schema}.{topic.value}"


def insert_payload(queue: str) -> str:
    """Sent when jobs of `queue` became available."""
    return json.dumps({"queue": queue}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Control:
    """A parsed `river_control` payload: `pause`, `resume`, `metadata_changed` or `cancel`."""

    action: str
    queue: str = ""
    job_id: int = 0


@dataclass(frozen=True, slots=True)
class Leadership:
    """A parsed `river_leadership` payload: `resigned` or `request_resign`."""

    action: str
    leader_id: str = ""


def parse_insert(payload: str) -> str | None:
    """The queue of a `river_insert` payload, or None where it is not one."""
    queue = _object(payload).get("queue")
    return queue if isinstance(queue, str) else None


def parse_control(payload: str) -> Control | None:
    """A `river_control` payload, or None where it is not one."""
    decoded = _object(payload)
    action, queue, job_id = decoded.get("action"), decoded.get("queue", ""), decoded.get("job_id", 0)
    if not isinstance(action, str) or not isinstance(queue, str) or not isinstance(job_id, int):
        return None
    return Control(action, queue, job_id)


def parse_leadership(payload: str) -> Leadership | None:
    """A `river_leadership` payload, or None where it is not one."""
    decoded = _object(payload)
    action, leader_id = decoded.get("action"), decoded.get("leader_id", "")
    if not isinstance(action, str) or not isinstance(leader_id, str):
        return None
    return Leadership(action, leader_id)


def _object(payload: str) -> dict[str, Any]:
    try:
        decoded = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
