"""A job row in words of neither side, so that what two clients read or wrote can be compared with `==`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from riverq.job import JobRow
from riverq.queue import Queue


def of_riverq(row: JobRow) -> dict[str, Any]:
    """A row as riverq read it."""
    return {
        "id": row.id,
        "state": str(row.state),
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "attempted_at": row.attempted_at,
        "attempted_by": list(row.attempted_by),
        "created_at": row.created_at,
        "finalized_at": row.finalized_at,
        "scheduled_at": row.scheduled_at,
        "priority": row.priority,
        "args": json.loads(row.encoded_args),
        "errors": [
            {"at": each.at, "attempt": each.attempt, "error": each.error, "trace": each.trace} for each in row.errors
        ],
        "kind": row.kind,
        "metadata": row.metadata,
        "queue": row.queue,
        "tags": list(row.tags),
        "unique_key": row.unique_key.hex() if row.unique_key is not None else None,
        "unique_states": sorted(map(str, row.unique_states)) if row.unique_states is not None else None,
    }


def river_row(row: JobRow) -> dict[str, Any]:
    """A row that riverq read, in the words in which the oracle tells one."""
    times = {name: _text(getattr(row, name)) for name in ("attempted_at", "created_at", "finalized_at", "scheduled_at")}
    return {
        **of_riverq(row),
        **times,
        "args": row.encoded_args,
        "metadata": json.dumps(row.metadata, ensure_ascii=False),
        "errors": [
            {"at": _text(each.at), "attempt": each.attempt, "error": each.error, "trace": each.trace}
            for each in row.errors
        ],
    }


def river_queue(queue: Queue) -> dict[str, Any]:
    """A queue that riverq read, in the words in which the oracle tells one."""
    return {
        "name": queue.name,
        "metadata": json.dumps(queue.metadata, ensure_ascii=False),
        "created_at": _text(queue.created_at),
        "paused_at": _text(queue.paused_at),
        "updated_at": _text(queue.updated_at),
    }


def queue_of_river(queue: dict[str, Any]) -> dict[str, Any]:
    """A queue as River read it, from the oracle."""
    times = {name: _time(queue[name]) for name in ("created_at", "paused_at", "updated_at")}
    return {**queue, **times, "metadata": json.loads(queue["metadata"])}


def of_river(row: dict[str, Any]) -> dict[str, Any]:
    """A row as River read it, from the oracle."""
    times = {name: _time(row[name]) for name in ("attempted_at", "created_at", "finalized_at", "scheduled_at")}
    return {
        **row,
        **times,
        "attempted_by": row["attempted_by"] or [],
        "args": json.loads(row["args"]),
        "metadata": json.loads(row["metadata"]),
        "errors": [{**each, "at": _time(each["at"])} for each in row["errors"]],
        "unique_states": sorted(row["unique_states"]) if row["unique_states"] is not None else None,
    }


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _time(text: str | None) -> datetime | None:
    """Go writes up to nine digits of a second; Python holds six."""
    if text is None:
        return None
    head, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(head).replace(microsecond=int(fraction[:6].ljust(6, "0")), tzinfo=UTC)
