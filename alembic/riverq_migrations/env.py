"""Refuses to be run: riverq's revisions need no environment of their own.

`riverq.migrate` and the command line call the revisions directly, under one lock and with `river_migration` as the
only record, and an application's environment borrows `versions/`. Alembic insists on an env.py in a script directory;
running one here would add a version table that goes stale as soon as another River client migrates.
"""

from __future__ import annotations

from alembic.util import CommandError

raise CommandError(
    "riverq's script directory cannot be run by the alembic command: run `riverq migrate-up` or "
    "riverq.migrate.up(engine), or list riverq_migrations:versions in version_locations of your own environment"
)
