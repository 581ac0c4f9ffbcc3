"""River main 001: create river migration. The table in which every client records the versions it applied."""

from __future__ import annotations

import sqlalchemy as sa

from riverq_migrations.objects import now
from riverq_migrations.step import River, down, up

revision = "riverq_main_001"
down_revision = None
branch_labels = ("riverq",)
depends_on = None


@up(1)
def upgrade(river: River) -> None:
    op = river.op
    op.create_table(
        "river_migration",
        sa.Column("id", sa.BigInteger, autoincrement=True, nullable=False),
        now(),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("river_migration_pkey")),
        sa.CheckConstraint("version >= 1", name=op.f("version")),
        schema=river.schema,
    )
    op.create_index(
        op.f("river_migration_version_idx"), "river_migration", ["version"], unique=True, schema=river.schema
    )


@down(1)
def downgrade(river: River) -> None:
    river.op.drop_table("river_migration", schema=river.schema)
