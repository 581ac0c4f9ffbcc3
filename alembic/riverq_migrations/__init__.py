"""River's tables, and riverq's own beside them, as Alembic revisions.

Two independent lines live in `versions/`: `riverq_main_001` … is River's line `main` (branch label `riverq`), shared
with every other River client on the database; `riverq_own_001` … holds what riverq adds in `riverq_*` tables (branch
label `riverq_own`). An application borrows them in its own Alembic environment through `version_locations`;
`riverq.migrate` and the command line run the same files without any environment. docs/operations/migrating.md shows
both.
"""

from __future__ import annotations

__all__ = ["RIVER_TABLES", "include_name"]

RIVER_TABLES = frozenset(
    {
        "river_client",
        "river_client_queue",
        "river_job",
        "river_leader",
        "river_migration",
        "river_migration_old",
        "river_notification",
        "river_queue",
        "riverq_client",
        "riverq_migration",
        "riverq_periodic_job",
        "riverq_queue",
    }
)
"""Every table that some version of either line creates; none belongs to the application's metadata."""


def include_name(name: str | None, type_: str, parent_names: object = None) -> bool:
    """Hide River's tables from autogenerate: `context.configure(include_name=include_name)` in env.py.

    Without it `alembic revision --autogenerate` proposes to drop them and `alembic check` fails. To combine it with a
    filter of one's own: `lambda *a: mine(*a) and include_name(*a)`. Tables are told by name in any schema; their
    indexes and constraints follow.
    """
    return not (type_ == "table" and name in RIVER_TABLES)
