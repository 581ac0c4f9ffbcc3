"""How figures are written for people."""

from __future__ import annotations


def spaced(number: int) -> str:
    """`12 345`."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, thing: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{spaced(number)} {thing}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """`12 %`."""
    return f"{share * 100:.0f} %"


def milliseconds(seconds: float) -> str:
    """`0.12 ms`, `12.3 ms`."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"
