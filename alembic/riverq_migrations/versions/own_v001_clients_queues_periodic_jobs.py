"""riverq's own 001: clients queues periodic jobs. Proof of life, timed pauses, durable periodic jobs.

An independent base, recorded in a table of its own: a line other than `main` in `river_migration` would make every
client's step down from version 5 fail. River's line never depends on it.
"""

from __future__ import annotations

import sqlalchemy as sa

from riverq_migrations.objects import TIMESTAMP, now
from riverq_migrations.step import OWN, River, down, up

revision = "riverq_own_001"
down_revision = None
branch_labels = ("riverq_own",)
depends_on = None


@up(1, OWN)
def upgrade(river: River) -> None:
    op, schema = river.op, river.schema
    op.create_table(
        "riverq_migration",
        sa.Column("version", sa.BigInteger, autoincrement=False, nullable=False),
        now(),
        sa.PrimaryKeyConstraint("version", name=op.f("riverq_migration_pkey")),
        schema=schema,
    )
    op.create_table(
        "riverq_client",
        # integer, because it is one half of a two-part advisory lock
        sa.Column("id", sa.Integer, sa.Identity(), nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("incarnation", sa.Uuid, nullable=False),
        now("started_at"),
        now("seen_at"),
        sa.Column("lock_taken", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("riverq_client_pkey")),
        schema=schema,
    )
    op.create_index(op.f("riverq_client_client_id_idx"), "riverq_client", ["client_id"], schema=schema)
    op.create_table(
        "riverq_queue",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("paused_at", TIMESTAMP, nullable=False),
        sa.Column("until", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("riverq_queue_pkey")),
        schema=schema,
    )
    op.create_table(
        "riverq_periodic_job",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("next_run_at", TIMESTAMP, nullable=False),
        now("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("riverq_periodic_job_pkey")),
        schema=schema,
    )


@down(1, OWN)
def downgrade(river: River) -> None:
    for table in ("riverq_periodic_job", "riverq_queue", "riverq_client", "riverq_migration"):
        river.op.drop_table(table, schema=river.schema)
