"""River main 006: bulk unique. A unique key holds in the states that the job's own mask names."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from riverq_migrations.objects import create_kind_unique_key_index
from riverq_migrations.step import River, down, up

revision = "riverq_main_006"
down_revision = "riverq_main_005"
branch_labels = None
depends_on = None

# get_bit counts from the left: `available` is the lowest of the eight bits.
BITS = ("scheduled", "running", "retryable", "pending", "discarded", "completed", "cancelled", "available")


@up(6)
def upgrade(river: River) -> None:
    op, schema = river.op, river.schema
    bits = " ".join(f"WHEN '{state}' THEN get_bit(bitmask, {bit})" for bit, state in enumerate(BITS))
    # Whatever exists already was made ahead by an operator, to build the index on a large table without blocking.
    river.execute(
        f"CREATE OR REPLACE FUNCTION {river.q}river_job_state_in_bitmask"
        f"(bitmask bit(8), state {river.q}river_job_state) RETURNS boolean LANGUAGE sql IMMUTABLE "
        f"AS $$SELECT CASE state {bits} ELSE 0 END = 1$$"
    )
    op.add_column("river_job", sa.Column("unique_states", pg.BIT(8)), schema=schema, if_not_exists=True)
    in_mask = f"{river.q}river_job_state_in_bitmask(unique_states, state)".replace(":", r"\:")
    op.create_index(
        op.f("river_job_unique_idx"),
        "river_job",
        ["unique_key"],
        unique=True,
        postgresql_where=sa.text(f"unique_key IS NOT NULL AND unique_states IS NOT NULL AND {in_mask}"),
        if_not_exists=True,
        schema=schema,
    )
    op.drop_index(op.f("river_job_kind_unique_key_idx"), "river_job", schema=schema, if_exists=True)


@down(6)
def downgrade(river: River) -> None:
    op, schema = river.op, river.schema
    op.drop_index(op.f("river_job_unique_idx"), "river_job", schema=schema)
    op.drop_column("river_job", "unique_states", schema=schema)
    river.execute(f"DROP FUNCTION {river.q}river_job_state_in_bitmask(bit, {river.q}river_job_state)")
    create_kind_unique_key_index(river)
