"""River main 002: initial schema. Jobs, their states, and the leader."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq_migrations.objects import FINALIZED_LOOSE, TIMESTAMP, create_notify, length_check, metadata, now
from riverq_migrations.step import River, down, up

revision = "riverq_main_002"
down_revision = "riverq_main_001"
branch_labels = None
depends_on = None


@up(2)
def upgrade(river: River) -> None:
    # `pending` belongs to version 4. It is here from the start, because a label added later cannot be used (by
    # version 6) in the transaction that added it, and an application may run all versions in one.
    river.execute(
        f"CREATE TYPE {river.q}river_job_state AS ENUM ('available', 'cancelled', 'completed', 'discarded', "
        "'pending', 'retryable', 'running', 'scheduled')"
    )
    _create_job(river)
    _create_job_indexes(river)
    create_notify(river)
    _create_leader(river)


def _create_job(river: River) -> None:
    op = river.op
    state = pg.ENUM(name="river_job_state", schema=river.schema, create_type=False)
    op.create_table(
        "river_job",
        sa.Column("id", sa.BigInteger, autoincrement=True, nullable=False),
        sa.Column("state", state, server_default="available", nullable=False),
        sa.Column("attempt", sa.SmallInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.SmallInteger, nullable=False),
        sa.Column("attempted_at", TIMESTAMP),
        now(),
        sa.Column("finalized_at", TIMESTAMP),
        now("scheduled_at"),
        sa.Column("priority", sa.SmallInteger, server_default=sa.text("1"), nullable=False),
        sa.Column("args", pg.JSONB),
        sa.Column("attempted_by", pg.ARRAY(sa.Text)),
        sa.Column("errors", pg.ARRAY(pg.JSONB)),
        sa.Column("kind", sa.Text, nullable=False),
        metadata(),
        sa.Column("queue", sa.Text, server_default="default", nullable=False),
        sa.Column("tags", pg.ARRAY(sa.String(255))),
        sa.PrimaryKeyConstraint("id", name=op.f("river_job_pkey")),
        sa.CheckConstraint(FINALIZED_LOOSE, name=op.f("finalized_or_finalized_at_null")),
        sa.CheckConstraint("max_attempts > 0", name=op.f("max_attempts_is_positive")),
        sa.CheckConstraint("priority >= 1 AND priority <= 4", name=op.f("priority_in_range")),
        length_check(river, "queue_length", "queue"),
        length_check(river, "kind_length", "kind"),
        schema=river.schema,
    )


def _create_job_indexes(river: River) -> None:
    op, schema = river.op, river.schema
    op.create_index(op.f("river_job_kind"), "river_job", ["kind"], schema=schema)
    op.create_index(
        op.f("river_job_state_and_finalized_at_index"),
        "river_job",
        ["state", "finalized_at"],
        postgresql_where=sa.text("finalized_at IS NOT NULL"),
        schema=schema,
    )
    op.create_index(
        op.f("river_job_prioritized_fetching_index"),
        "river_job",
        ["state", "queue", "priority", "scheduled_at", "id"],
        schema=schema,
    )
    for column in ("args", "metadata"):
        op.create_index(op.f(f"river_job_{column}_index"), "river_job", [column], postgresql_using="gin", schema=schema)


def _create_leader(river: River) -> None:
    op = river.op
    op.create_table(
        "river_leader",
        sa.Column("elected_at", TIMESTAMP, nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False),
        sa.Column("leader_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("river_leader_pkey")),
        length_check(river, "name_length", "name"),
        length_check(river, "leader_id_length", "leader_id"),
        prefixes=["UNLOGGED"],
        schema=river.schema,
    )


@down(2)
def downgrade(river: River) -> None:
    river.op.drop_table("river_job", schema=river.schema)
    river.execute(f"DROP FUNCTION {river.q}river_job_notify()")
    river.execute(f"DROP TYPE {river.q}river_job_state")
    river.op.drop_table("river_leader", schema=river.schema)
