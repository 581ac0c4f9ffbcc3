"""What options and tables share: durations, moments, addresses, and how rows are shown."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)(ms|s|m|h|d)")
_PLAIN = re.compile(r"\d+(\.\d+)?")


def duration(text: str) -> timedelta:
    """`30s`, `500ms`, `1h30m`, or a number of seconds."""
    parts = _PART.findall(f"{text}s" if _PLAIN.fullmatch(text) else text)
    if not parts or "".join(number + unit for number, unit in parts).removesuffix("s") != text.removesuffix("s"):
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 500ms or 5m, got: {text!r}")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise argparse.ArgumentTypeError(
            f"expected a time such as 30s, 500ms or 5m, which a calendar can hold, got: {text!r}"
        ) from None


def positive_duration(text: str) -> timedelta:
    """A duration of more than nothing."""
    found = duration(text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time of more than 0, got: {text!r}")
    return found


def moment(text: str) -> datetime:
    """A point in time, with its zone: `2026-11-21T18:00:00Z`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"expected a time with its zone, as 2026-11-21T18:00:00Z, got: {text!r}")
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"expected a time before the year 10000, got: {text!r}") from None


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got: {text!r}")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`; `:PORT` and `PORT` are the loopback's. An IPv6 host stands in brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or (colon and host.strip() != host):
        host = port = ""
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT, as 127.0.0.1:8080, [::1]:8080 or :8080 (the loopback), got: {text!r}"
        )
    return host or "127.0.0.1", int(port)


# -- showing


def shown(value: Any) -> str:
    """A cell: times in UTC to the second, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; the last one is left as it is. Control characters are shown escaped."""
    lines = [list(head), *([_clean(shown(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _clean(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def plain(value: Any) -> Any:
    """For `json.dumps(default=…)`: times in RFC 3339, durations in seconds, else what it says of itself."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
