"""What the migration functions answer with: plain values, ready to be printed or compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Applied:
    """A version that was migrated up or down, or would be in a dry run (`duration` is then zero)."""

    line: str
    version: int
    name: str
    direction: Direction
    duration: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One version of one line, as the database records it.

    `applied_at` is None while the version is not applied. `known` is False for a version that a newer client applied:
    it is tolerated and left alone, and has no name here.
    """

    line: str
    version: int
    name: str
    applied_at: datetime | None
    known: bool = True

    @property
    def applied(self) -> bool:
        """Whether the database records this version."""
        return self.applied_at is not None


@dataclass(frozen=True, slots=True)
class Validation:
    """Whether the database has every version that this riverq knows.

    `missing` lists the unapplied versions of each line that was looked at. `messages` say why `ok` is False, each with
    the command that helps; `warnings` say what is off without the tables of riverq's own line, which nobody needs
    to have.
    """

    ok: bool
    missing: Mapping[str, tuple[int, ...]]
    messages: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
