"""DDL that two versions need: one that makes an object, and another whose way back makes it again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql as pg

from riverq_migrations.step import River, literal, quote

TIMESTAMP = sa.TIMESTAMP(timezone=True)

FINAL_STATES = "('cancelled', 'completed', 'discarded')"

# A final state may lack the time until version 4; from then on the two go together. `NOT IN`, not `NOT (… IN …)`: the
# catalog keeps the difference.
FINALIZED_LOOSE = f"(state IN {FINAL_STATES} AND finalized_at IS NOT NULL) OR finalized_at IS NULL"
FINALIZED_STRICT = (
    f"(finalized_at IS NULL AND state NOT IN {FINAL_STATES}) OR (finalized_at IS NOT NULL AND state IN {FINAL_STATES})"
)


def length_check(river: River, name: str, column: str, function: str = "char_length") -> sa.CheckConstraint:
    """River's rule for names: 1 to 127 characters."""
    return sa.CheckConstraint(f"{function}({column}) > 0 AND {function}({column}) < 128", name=river.op.f(name))


def now(name: str = "created_at") -> sa.Column[object]:
    """A timestamp that defaults to the transaction's time."""
    return sa.Column(name, TIMESTAMP, server_default=sa.text("now()"), nullable=False)


def metadata() -> sa.Column[object]:
    """A JSON object, empty by default."""
    return sa.Column("metadata", pg.JSONB, server_default=sa.text("'{}'"), nullable=False)


def add_pending(river: River) -> None:
    """Give the enum its label `pending`, where another client left the database at version 2 or 3.

    A new label cannot be used before it is committed, and version 6 uses it, so it is committed on a side connection.
    An autocommit block on this one would drop the lock. Where riverq made the enum, the label is there from the start.
    """
    statement = "ALTER TYPE {}river_job_state ADD VALUE IF NOT EXISTS 'pending' AFTER 'discarded'"
    if river.offline:
        river.execute(statement.format(river.q))
        return
    # The side connection does not have this connection's search_path, so it needs the schema's name.
    schema = river.scalar(
        "SELECT n.nspname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = to_regtype(:name) "
        "AND NOT EXISTS (SELECT FROM pg_enum e WHERE e.enumtypid = t.oid AND e.enumlabel = 'pending')",
        name=f"{river.q}river_job_state",
    )
    if schema is None:
        return
    statement = statement.format(quote(schema) + ".")
    try:
        _on_side_connection(river.connection.engine, statement)
    except Exception as error:
        raise CommandError(
            f"the label 'pending' must be added on a second connection, which could not be had: {error}; "
            f"allow one more connection, or run this first, outside a transaction: {statement}"
        ) from error


def _on_side_connection(engine: sa.Engine, statement: str) -> None:
    """Run a statement by itself on a new connection, made as the engine makes its own."""
    # A pool of its own: the application's may have no connection left, and waiting for one would be waiting for us.
    side = sa.Engine(engine.pool.recreate(), engine.dialect, engine.url)
    try:
        with side.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(literal(statement))
    finally:
        side.dispose()


def create_notify(river: River) -> None:
    """The trigger of versions 2 and 3 that tells listeners of a new job; from 4 on the clients do."""
    river.execute(f"""
        CREATE FUNCTION {river.q}river_job_notify() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.state = 'available' THEN
                PERFORM pg_notify('river_insert', json_build_object('queue', NEW.queue)::text);
            END IF;
            RETURN NULL;
        END
        $$""")
    river.execute(
        f"CREATE TRIGGER river_notify AFTER INSERT ON {river.q}river_job "
        f"FOR EACH ROW EXECUTE FUNCTION {river.q}river_job_notify()"
    )


def drop_notify(river: River) -> None:
    """Undo `create_notify`."""
    river.execute(f"DROP TRIGGER river_notify ON {river.q}river_job")
    river.execute(f"DROP FUNCTION {river.q}river_job_notify()")


def replace_check(river: River, table: str, name: str, condition: str) -> None:
    """Exchange a CHECK constraint for another of the same name."""
    river.op.drop_constraint(river.op.f(name), table, schema=river.schema)
    river.op.create_check_constraint(river.op.f(name), table, condition, schema=river.schema)


def create_kind_unique_key_index(river: River) -> None:
    """The index of version 5 that `river_job_unique_idx` replaced in 6."""
    river.op.create_index(
        river.op.f("river_job_kind_unique_key_idx"),
        "river_job",
        ["kind", "unique_key"],
        unique=True,
        postgresql_where=sa.text("unique_key IS NOT NULL"),
        if_not_exists=True,
        schema=river.schema,
    )


def create_client_tables(river: River) -> None:
    """`river_client` and `river_client_queue` of versions 5 and 6; no client ever used them."""
    op = river.op
    op.create_table(
        "river_client",
        sa.Column("id", sa.Text, nullable=False),
        now(),
        metadata(),
        sa.Column("paused_at", TIMESTAMP),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("river_client_pkey")),
        length_check(river, "name_length", "id"),
        prefixes=["UNLOGGED"],
        schema=river.schema,
    )
    op.create_table(
        "river_client_queue",
        sa.Column("river_client_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        now(),
        sa.Column("max_workers", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        metadata(),
        sa.Column("num_jobs_completed", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("num_jobs_running", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("river_client_id", "name", name=op.f("river_client_queue_pkey")),
        length_check(river, "name_length", "name"),
        sa.CheckConstraint("num_jobs_completed >= 0", name=op.f("num_jobs_completed_zero_or_positive")),
        sa.CheckConstraint("num_jobs_running >= 0", name=op.f("num_jobs_running_zero_or_positive")),
        prefixes=["UNLOGGED"],
        schema=river.schema,
    )
    # In raw SQL: SQLAlchemy splits "schema.table.column" at the dots, and a schema's name may hold some.
    river.execute(
        f"ALTER TABLE {river.q}river_client_queue ADD CONSTRAINT river_client_queue_river_client_id_fkey "
        f"FOREIGN KEY (river_client_id) REFERENCES {river.q}river_client (id) ON DELETE CASCADE"
    )


def drop_client_tables(river: River) -> None:
    """Undo `create_client_tables`."""
    river.op.drop_table("river_client_queue", schema=river.schema)
    river.op.drop_table("river_client", schema=river.schema)
