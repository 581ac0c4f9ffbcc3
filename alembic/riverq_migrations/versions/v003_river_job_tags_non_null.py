"""River main 003: river job tags non null."""

from __future__ import annotations

import sqlalchemy as sa

from riverq_migrations.objects import add_pending
from riverq_migrations.step import River, down, up

revision = "riverq_main_003"
down_revision = "riverq_main_002"
branch_labels = None
depends_on = None


@up(3)
def upgrade(river: River) -> None:
    if not river.offline:
        add_pending(river)  # not needed before 4, but what needs a second connection must fail before any change
    river.op.alter_column("river_job", "tags", server_default=sa.text("'{}'"), schema=river.schema)
    river.execute(f"UPDATE {river.q}river_job SET tags = '{{}}' WHERE tags IS NULL")
    river.op.alter_column("river_job", "tags", nullable=False, schema=river.schema)


@down(3)
def downgrade(river: River) -> None:
    river.op.alter_column("river_job", "tags", nullable=True, server_default=None, schema=river.schema)
