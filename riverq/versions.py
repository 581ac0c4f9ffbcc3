"""Which schema versions this riverq knows, line by line. No SQL and no Alembic: who only compares needs neither.

Line `main` is River's and is shared with every other client on the database; line `riverq` is what riverq adds in
`riverq_*` tables. The revisions themselves are `riverq_main_NNN` and `riverq_own_NNN` in the package
`riverq_migrations`; a test compares the two lists.
"""

from __future__ import annotations

from dataclasses import dataclass

MAIN = "main"
RIVERQ = "riverq"


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One version of one line: its number from 1 up, and River's name for it in words."""

    line: str
    number: int
    name: str

    @property
    def revision(self) -> str:
        """The Alembic revision that brings it about."""
        return f"{_PREFIXES[self.line]}_{self.number:03}"


_PREFIXES = {MAIN: "riverq_main", RIVERQ: "riverq_own"}

_NAMES = {
    MAIN: (
        "create river migration",
        "initial schema",
        "river job tags non null",
        "pending and more",
        "migration unique client",
        "bulk unique",
        "notification outbox sqlite jsonb and sql cleanup",
        "job id autoincrement",
    ),
    RIVERQ: ("clients queues periodic jobs",),
}

LINES: dict[str, tuple[Version, ...]] = {
    line: tuple(Version(line, number, name) for number, name in enumerate(names, 1)) for line, names in _NAMES.items()
}
"""Every known version in ascending order, main first."""
