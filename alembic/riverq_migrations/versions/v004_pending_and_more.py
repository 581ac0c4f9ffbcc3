"""River main 004: pending and more. Notifications move from a trigger to the clients; queues get rows."""

from __future__ import annotations

import sqlalchemy as sa

from riverq_migrations.objects import (
    FINALIZED_LOOSE,
    FINALIZED_STRICT,
    TIMESTAMP,
    add_pending,
    create_notify,
    drop_notify,
    metadata,
    now,
    replace_check,
)
from riverq_migrations.step import River, down, up

revision = "riverq_main_004"
down_revision = "riverq_main_003"
branch_labels = None
depends_on = None


@up(4)
def upgrade(river: River) -> None:
    op, schema = river.op, river.schema
    add_pending(river)
    river.execute(f"UPDATE {river.q}river_job SET args = '{{}}' WHERE args IS NULL")
    op.alter_column("river_job", "args", nullable=False, schema=schema)
    op.alter_column("river_job", "metadata", server_default=sa.text("'{}'"), schema=schema)
    river.execute(f"UPDATE {river.q}river_job SET metadata = '{{}}' WHERE metadata IS NULL")
    op.alter_column("river_job", "metadata", nullable=False, schema=schema)
    replace_check(river, "river_job", "finalized_or_finalized_at_null", FINALIZED_STRICT)
    drop_notify(river)
    op.create_table(
        "river_queue",
        sa.Column("name", sa.Text, nullable=False),
        now(),
        metadata(),
        sa.Column("paused_at", TIMESTAMP),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("river_queue_pkey")),
        schema=schema,
    )
    op.alter_column("river_leader", "name", server_default="default", schema=schema)
    replace_check(river, "river_leader", "name_length", "name = 'default'")


@down(4)
def downgrade(river: River) -> None:
    """The label `pending` stays: Postgres cannot take one away."""
    op, schema = river.op, river.schema
    op.drop_table("river_queue", schema=schema)
    op.alter_column("river_job", "args", nullable=True, schema=schema)
    op.alter_column("river_job", "metadata", nullable=True, server_default=None, schema=schema)
    replace_check(river, "river_job", "finalized_or_finalized_at_null", FINALIZED_LOOSE)
    create_notify(river)
    op.alter_column("river_leader", "name", server_default=None, schema=schema)
    replace_check(river, "river_leader", "name_length", "char_length(name) > 0 AND char_length(name) < 128")
