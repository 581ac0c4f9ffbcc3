"""The text format of COPY, for adapters that do not write it themselves.

A row is a line, values are parted by tabs, NULL is `\\N`. The characters that mean something to the format (backslash,
tab, newline, carriage return) are escaped with a backslash, so a value may hold anything but NUL, which Postgres has no
place for in any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

CHUNK = 1 << 16
"""Bytes gathered before they are handed on: large enough that a message per chunk costs nothing."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def line(row: Sequence[str | None]) -> str:
    """One row, its line end included."""
    return "\t".join(["\\N" if value is None else value.translate(_ESCAPES) for value in row]) + "\n"


def chunks(rows: Iterable[Sequence[str | None]]) -> Iterator[bytes]:
    """The rows as UTF-8, in pieces of about `CHUNK` bytes."""
    gathered: list[bytes] = []
    size = 0
    for row in rows:
        encoded = line(row).encode()
        gathered.append(encoded)
        size += len(encoded)
        if size >= CHUNK:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
