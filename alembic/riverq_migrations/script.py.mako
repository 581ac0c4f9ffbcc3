"""${message}.

Written by `alembic revision --head riverq@head --rev-id riverq_main_NNN` (or riverq_own_NNN). Add the version to
riverq/versions.py. Every constraint and index name goes through `op.f`, every raw name through `river.q`.
"""

from __future__ import annotations

<% own = up_revision.startswith("riverq_own") %>\
from riverq_migrations.step import ${"OWN, " if own else ""}River, down, up

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

VERSION = int(revision.rpartition("_")[2])


@up(VERSION${", OWN" if own else ""})
def upgrade(river: River) -> None:
    raise NotImplementedError


@down(VERSION${", OWN" if own else ""})
def downgrade(river: River) -> None:
    raise NotImplementedError
