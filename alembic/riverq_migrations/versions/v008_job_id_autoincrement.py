"""River main 008: job id autoincrement. Changes SQLite only; on Postgres the version is recorded and nothing else."""

from __future__ import annotations

from riverq_migrations.step import River, down, up

revision = "riverq_main_008"
down_revision = "riverq_main_007"
branch_labels = None
depends_on = None


@up(8)
def upgrade(river: River) -> None:
    pass


@down(8)
def downgrade(river: River) -> None:
    pass
