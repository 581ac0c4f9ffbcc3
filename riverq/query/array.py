"""Postgres array literals: how many values cross in one text parameter.

A list parameter is bound differently by every adapter: one writes `None` inside a `jsonb[]` as JSON null, another as
SQL NULL; one spends a third of its time on dumping lists. A literal is the same text everywhere, and `str.replace` and
`str.join` are the fastest loops Python has. The server reads it with `CAST(CAST(:ids AS text) AS bigint[])`.
"""

from __future__ import annotations

from collections.abc import Iterable


def text_array(values: Iterable[str | None]) -> str:
    """A literal for `text[]`, and for `jsonb[]` and the like whose elements are given as text. None is NULL.

    Every element is quoted, so the empty string, the word NULL, braces, commas and white space need no rules of their
    own; inside quotes only the quote and the backslash are special.
    """
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def integer_array(values: Iterable[int | None]) -> str:
    """A literal for `bigint[]`, `smallint[]` and the like. None is NULL."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def bytea_array(values: Iterable[bytes | None]) -> str:
    r"""A literal for `bytea[]`, in the hex form, whose backslash the array's own syntax doubles. None is NULL."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
