"""Figures as text, and tables of them."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

SPACE = "\u202f"
"""Narrow, and no line breaks at it: between thousands and before units."""

WIDTH = 120


def number(value: float, digits: int = 3) -> str:
    """Rounded to `digits` that count, thousands apart: 34 300, 1.03, 0.0021."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}".replace(",", SPACE)


def ratio(value: float) -> str:
    """Two decimals where they say something."""
    return f"{value:.2f}" if 0.1 <= value < 10 else number(value, 2)


def share(value: float, decimals: int = 1) -> str:
    """As a percentage."""
    return f"{value:.{decimals}%}".replace("%", f"{SPACE}%")


def with_range(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The median, and how far the rounds go; "–" for none."""
    if not values:
        return "–"
    middle = show(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))}–{show(max(values))})"


def without_paths(text: str) -> str:
    """A message without the folders of the machine that it arose on."""
    return re.sub(r"(?<![\w./:])(?:/[\w.+-]+){2,}", lambda found: f"…/{PurePosixPath(found[0]).name}", text)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """In Markdown; all but the first `left` columns to the right."""
    rule = ["---" if at < left else "---:" for at in range(len(heading))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [heading, rule, *rows]]


def paragraph(text: str, indent: str = "") -> list[str]:
    """Broken into lines, all but the first indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def whole(value: int) -> str:
    """Every digit, thousands apart."""
    return f"{value:,}".replace(",", SPACE)


def anything(value: object) -> str:
    """Whatever a measurement wrote down."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return number(value)
    return "–" if value is None else str(value)


def listed(items: Iterable[object]) -> str:
    """With commas."""
    return ", ".join(map(str, items))
