"""riverq's revisions in an application's own Alembic environment, beside the application's tables."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from riverq.migrate.run import LOCK_KEY
from tests.migrate.test_catalog import rivers
from tests.migrate.test_concurrent import gate
from tests.migrate.ways import ADAPTERS, Place

MODELS = """
import sqlalchemy as sa
metadata = sa.MetaData(naming_convention={
    "ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s", "fk": "fk_%(table_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s", "pk": "pk_%(table_name)s",
})
sa.Table("account", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text, index=True))
"""

ENV = """
from alembic import context
import asyncio, os, sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from riverq_migrations import include_name
exec(MODELS)
config = context.config
url, mode = config.attributes.get("url") or os.environ["APP_DATABASE_URL"], config.attributes.get("mode")

def run(connection):
    context.configure(connection=connection, target_metadata=metadata, include_name=include_name,
                      transaction_per_migration=mode == "per-migration")
    with context.begin_transaction():
        {lock}
        context.run_migrations()

async def run_async():
    engine = create_async_engine(url, poolclass=sa.pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True,
                      dialect_opts={{"paramstyle": "named"}})
    with context.begin_transaction():
        context.run_migrations()
elif "async" in url:
    asyncio.run(run_async())
else:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        run(connection)
    engine.dispose()
"""

APP_REVISION = """
import sqlalchemy as sa
from alembic import op
revision = "app_001"
down_revision = None
branch_labels = ("app",)
depends_on = {depends_on!r}
def upgrade():
    op.create_table("account", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text, index=True))
def downgrade():
    op.drop_table("account")
"""

HEADS = {"riverq_main_008", "riverq_own_001", "app_001"}


@dataclass
class Project:
    """An application's folder: alembic.ini, migrations/, models."""

    folder: Path
    place: Place
    adapter: str = "psycopg"
    mode: str = "one transaction"
    schema: str | None = None

    def write(self, *, depends_on: str | None = None, lock: str = "pass") -> Project:
        versions = self.folder / "migrations" / "versions"
        versions.mkdir(parents=True)
        env = ENV.format(lock=lock).replace("exec(MODELS)", MODELS)
        (self.folder / "migrations" / "env.py").write_text(env)
        (versions / "app_001.py").write_text(APP_REVISION.format(depends_on=depends_on))
        (self.folder / "alembic.ini").write_text(
            "[alembic]\nscript_location = %(here)s/migrations\npath_separator = newline\nversion_locations =\n"
            "    %(here)s/migrations/versions\n    riverq_migrations:versions\n"
        )
        return self

    def config(self) -> Config:
        buffer = io.StringIO()
        config = Config(self.folder / "alembic.ini", stdout=buffer, output_buffer=buffer)
        url = self.place.sqlalchemy_url(self.adapter).render_as_string(hide_password=False)
        config.attributes.update(url=url, mode=self.mode, riverq_schema=self.schema)
        return config

    def upgrade(self, target: str = "heads") -> None:
        command.upgrade(self.config(), target)

    def downgrade(self, target: str) -> None:
        command.downgrade(self.config(), target)

    def versions(self) -> set[str]:
        return {str(row[0]) for row in self.place.rows("SELECT version_num FROM alembic_version")}


@pytest.fixture
def project(place: Place, tmp_path: Path) -> Callable[..., Project]:
    def make(adapter: str = "psycopg", mode: str = "one transaction", schema: str | None = None) -> Project:
        return Project(tmp_path, place, adapter, mode, schema)

    return make


@pytest.mark.parametrize("mode", ["one transaction", "per-migration"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_upgrade_heads_check_and_back(project: Callable[..., Project], adapter: str, mode: str) -> None:
    mine = project(adapter, mode).write()
    mine.upgrade()
    assert mine.versions() == HEADS
    assert mine.place.catalog() == rivers(8)  # the application's naming convention does not touch ours
    assert mine.place.call("psycopg", "validate").ok
    command.check(mine.config())
    mine.downgrade("riverq@base")
    mine.downgrade("riverq_own@base")
    assert {name for name in mine.place.relations() if "river" in name} == set()
    assert mine.place.rows("SELECT count(*) FROM account") == [(0,)]
    mine.upgrade("riverq@head")
    assert mine.versions() == HEADS - {"riverq_own_001"}


@pytest.mark.parametrize("mode", ["one transaction", "per-migration"])
@pytest.mark.parametrize("version", [1, 3, 7])
def test_database_of_another_client_is_adopted(project: Callable[..., Project], mode: str, version: int) -> None:
    mine = project(mode=mode).write()
    mine.place.left_by_another_client(version)
    before = mine.place.record()
    mine.upgrade()
    assert mine.place.record()[:version] == before
    assert mine.place.catalog() == rivers(8)


def test_command_line_first_then_own_environment(project: Callable[..., Project]) -> None:
    mine = project().write()
    mine.place.up()
    before = mine.place.record()
    mine.upgrade()
    assert mine.versions() == HEADS
    assert mine.place.record() == before
    mine.place.down(target=6)
    mine.downgrade("riverq_main_005")  # 8 and 7 are skipped: they are not there any more
    assert [version for version, _ in mine.place.record()] == [1, 2, 3, 4, 5]
    assert mine.place.catalog() == rivers(5)


def test_every_step_back_in_own_environment(project: Callable[..., Project]) -> None:
    mine = project().write()
    mine.upgrade()
    for version in range(7, 0, -1):
        mine.downgrade(f"riverq_main_{version:03}")
        assert mine.place.catalog() == rivers(version, back=True)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_schema_of_any_name(project: Callable[..., Project], adapter: str) -> None:
    mine = project(adapter, schema='My "50% :Jobs.x').write()
    with mine.place.engine() as engine, engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(str(mine.schema)))
    mine.place.left_by_another_client(3, mine.schema)
    mine.upgrade()
    assert mine.place.catalog(str(mine.schema)) == rivers(8)
    assert not [name for name in mine.place.relations() if name.startswith("public.river")]
    command.check(mine.config())
    mine.downgrade("riverq@base")
    mine.downgrade("riverq_own@base")
    assert not [name for name in mine.place.relations() if "river" in name]


def test_schema_in_the_ini_file(project: Callable[..., Project]) -> None:
    mine = project().write()
    mine.place.execute('CREATE SCHEMA "My Jobs"')
    ini = mine.folder / "alembic.ini"
    ini.write_text(ini.read_text() + "riverq_schema = My Jobs\n")
    mine.upgrade("riverq@head")
    assert mine.place.catalog("My Jobs") == rivers(8)


def test_alembic_command_with_pyproject_and_schema_on_the_command_line(project: Callable[..., Project]) -> None:
    mine = project().write()
    (mine.folder / "alembic.ini").unlink()
    (mine.folder / "pyproject.toml").write_text(
        '[tool.alembic]\nscript_location = "%(here)s/migrations"\n'
        'version_locations = ["%(here)s/migrations/versions", "riverq_migrations:versions"]\n'
    )
    mine.place.execute("CREATE SCHEMA other")
    url = mine.place.sqlalchemy_url().render_as_string(hide_password=False)
    line = [sys.executable, "-m", "alembic", "-x", "riverq_schema=other", "upgrade", "heads"]
    done = subprocess.run(
        line, cwd=mine.folder, env=os.environ | {"APP_DATABASE_URL": url}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert mine.versions() == HEADS
    assert mine.place.catalog("other") == rivers(8)


def test_offline_sql_of_own_environment(project: Callable[..., Project]) -> None:
    mine = project().write()
    config = mine.config()
    command.upgrade(config, "heads", sql=True)
    assert isinstance(config.output_buffer, io.StringIO)
    mine.place.execute(config.output_buffer.getvalue())
    assert mine.place.catalog() == rivers(8)
    assert mine.versions() == HEADS
    mine.upgrade()


def test_depends_on_rivers_line(project: Callable[..., Project]) -> None:
    mine = project().write(depends_on="riverq_main_008")
    mine.upgrade("app@head")
    assert mine.place.catalog() == rivers(8)


def test_autogenerate_would_drop_rivers_tables_without_the_filter(project: Callable[..., Project]) -> None:
    mine = project().write()
    mine.upgrade()
    env = mine.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace("include_name=include_name,", ""))
    with pytest.raises(CommandError, match="remove_table"):
        command.check(mine.config())


def test_translated_schema_is_refused(project: Callable[..., Project]) -> None:
    mine = project().write()
    env = mine.folder / "migrations" / "env.py"
    translating = 'run(connection.execution_options(schema_translate_map={None: "public"}))'
    env.write_text(env.read_text().replace("        run(connection)\n    engine", f"        {translating}\n    engine"))
    with pytest.raises(CommandError, match="is not followed by River's migrations"):
        mine.upgrade("riverq@head")


def test_migrating_from_within_a_revision(project: Callable[..., Project]) -> None:
    mine = project().write()
    app = mine.folder / "migrations" / "versions" / "app_001.py"
    inner = '    op.create_table("account"'
    app.write_text(
        app.read_text().replace(inner, f"    from riverq import migrate\n    migrate.up(op.get_bind())\n{inner}")
    )
    mine.upgrade("app@head")
    assert mine.versions() == {"app_001"}
    assert mine.place.catalog() == rivers(8)


def test_two_upgrades_at_once_with_the_documented_line(project: Callable[..., Project]) -> None:
    mine = project().write(lock=f'connection.execute(sa.text("SELECT pg_advisory_xact_lock({LOCK_KEY})"))')
    code = (
        "import sys; from alembic import command; from alembic.config import Config; c = Config(sys.argv[1]); "
        "c.attributes.update(url=sys.argv[2], mode='one transaction', riverq_schema=None); command.upgrade(c, 'heads')"
    )
    url = mine.place.sqlalchemy_url().render_as_string(hide_password=False)
    line = [sys.executable, "-c", code, str(mine.folder / "alembic.ini"), url]

    def run() -> str:
        return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ).stderr

    with gate(mine.place) as open_at, ThreadPoolExecutor(3) as threads:
        racing = [threads.submit(run) for _ in range(2)]
        ours = threads.submit(mine.place.call, "asyncpg", "up")
        open_at(3)
        assert [each.result(60) for each in racing] == ["", ""]
        assert len(ours.result(60)) in (0, 9)
    assert mine.versions() == HEADS
    assert mine.place.catalog() == rivers(8)


def test_upgrade_without_the_documented_line_waits_for_the_command_line(project: Callable[..., Project]) -> None:
    mine = project().write()
    with gate(mine.place) as open_at, ThreadPoolExecutor(2) as threads:
        racing = threads.submit(mine.upgrade)
        ours = threads.submit(mine.place.call, "pg8000", "up")
        open_at(2)
        racing.result(60)
        assert len(ours.result(60)) in (0, 9)
    assert mine.versions() == HEADS
    assert mine.place.catalog() == rivers(8)
