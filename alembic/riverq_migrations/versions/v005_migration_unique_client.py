"""River main 005: migration unique client. Lines in river_migration, unique keys on jobs, two tables never used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql as pg

from riverq_migrations.objects import (
    create_client_tables,
    create_kind_unique_key_index,
    drop_client_tables,
    length_check,
    now,
)
from riverq_migrations.step import River, down, up

revision = "riverq_main_005"
down_revision = "riverq_main_004"
branch_labels = None
depends_on = None


@up(5)
def upgrade(river: River) -> None:
    op, q = river.op, river.q
    op.rename_table("river_migration", "river_migration_old", schema=river.schema)
    op.create_table(
        "river_migration",
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        now(),
        length_check(river, "line_length", "line"),
        sa.CheckConstraint("version >= 1", name=op.f("version_gte_1")),
        schema=river.schema,
    )
    # Without a name, as in River: the server calls it river_migration_pkey1 while the old table has the plain name.
    river.execute(f"ALTER TABLE {q}river_migration ADD PRIMARY KEY (line, version)")
    river.execute(
        f"INSERT INTO {q}river_migration (line, version, created_at) "
        f"SELECT 'main', version, created_at FROM {q}river_migration_old"
    )
    op.drop_table("river_migration_old", schema=river.schema)
    op.add_column("river_job", sa.Column("unique_key", pg.BYTEA), schema=river.schema, if_not_exists=True)
    create_kind_unique_key_index(river)
    create_client_tables(river)


@down(5)
def downgrade(river: River) -> None:
    op, q = river.op, river.q
    _refuse_other_lines(river)
    op.rename_table("river_migration", "river_migration_old", schema=river.schema)
    # In raw SQL, to leave the key's name to the server here too.
    river.execute(
        f"CREATE TABLE {q}river_migration (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(), "
        "version bigint NOT NULL, CONSTRAINT version CHECK (version >= 1))"
    )
    op.create_index(
        op.f("river_migration_version_idx"), "river_migration", ["version"], unique=True, schema=river.schema
    )
    river.execute(
        f"INSERT INTO {q}river_migration (created_at, version) "
        f"SELECT created_at, version FROM {q}river_migration_old ORDER BY version"
    )
    op.drop_table("river_migration_old", schema=river.schema)
    op.drop_column("river_job", "unique_key", schema=river.schema)
    drop_client_tables(river)


def _refuse_other_lines(river: River) -> None:
    """The older form of the record has no place for another line's versions."""
    others = f"SELECT FROM {river.q}river_migration WHERE line <> 'main'"
    reason = "river_migration holds versions of another line than main; migrate that line down first"
    if river.offline:
        river.execute(f"DO $$ BEGIN IF EXISTS ({others}) THEN RAISE EXCEPTION '{reason}'; END IF; END $$")
    elif river.scalar(f"SELECT EXISTS ({others})"):
        lines = river.scalar(
            f"SELECT string_agg(DISTINCT line, ', ') FROM {river.q}river_migration WHERE line <> 'main'"
        )
        raise CommandError(f"{reason}: {lines}")
