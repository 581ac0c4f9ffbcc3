"""River main 007: notification outbox sqlite jsonb and sql cleanup. The outbox is for SQLite; nothing uses it here."""

from __future__ import annotations

import sqlalchemy as sa

from riverq_migrations.objects import create_client_tables, drop_client_tables, length_check, now
from riverq_migrations.step import River, down, up

revision = "riverq_main_007"
down_revision = "riverq_main_006"
branch_labels = None
depends_on = None


@up(7)
def upgrade(river: River) -> None:
    op, schema = river.op, river.schema
    op.create_table(
        "river_notification",
        sa.Column("id", sa.BigInteger, autoincrement=True, nullable=False),
        now(),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("river_notification_pkey")),
        length_check(river, "topic_length", "topic", "length"),
        schema=schema,
    )
    op.create_index(op.f("river_notification_created_at_idx"), "river_notification", ["created_at"], schema=schema)
    op.create_index(op.f("river_notification_topic_id_idx"), "river_notification", ["topic", "id"], schema=schema)
    drop_client_tables(river)
    op.alter_column("river_job", "max_attempts", server_default=sa.text("25"), schema=schema)
    op.alter_column("river_queue", "updated_at", server_default=sa.text("CURRENT_TIMESTAMP"), schema=schema)


@down(7)
def downgrade(river: River) -> None:
    op, schema = river.op, river.schema
    op.alter_column("river_queue", "updated_at", server_default=None, schema=schema)
    op.alter_column("river_job", "max_attempts", server_default=None, schema=schema)
    create_client_tables(river)
    op.drop_table("river_notification", schema=schema)
