from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from riverq import migrate
from riverq.demo.postgres import PostgresStartError, find_binaries
from riverq.errors import ConfigError
from tests.fix_skips import skip_or_fail
from tests.migrate.test_catalog import rivers
from tests.migrate.ways import WEIRD, Place


def find_psql() -> str:
    """That of the server's own binaries first: Debian's `psql` may be a wrapper with nothing behind it."""
    try:
        beside_server = find_binaries().folder / "psql"
    except PostgresStartError:
        beside_server = Path("psql")
    found = str(beside_server) if beside_server.is_file() else shutil.which("psql")
    return found or skip_or_fail("psql is not installed")


def psql(place: Place, script: str, *options: str) -> None:
    command = [find_psql(), "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, "-d", place.url]
    done = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("-1",)], ids=["statement by statement", "one transaction"])
def test_printed_sql_up_and_down(place: Place, options: tuple[str, ...]) -> None:
    psql(place, migrate.sql(), *options)
    assert place.catalog() == rivers(8)
    assert place.call("psycopg", "validate").ok
    assert place.up() == []
    psql(place, migrate.sql("down") + migrate.sql("down", line="riverq"), *options)
    assert place.relations() == []


def test_printed_sql_in_any_schema(place: Place) -> None:
    for schema in WEIRD:
        quoted = '"' + schema.replace('"', '""') + '"'
        psql(place, f"CREATE SCHEMA {quoted};" + migrate.sql(schema=schema))
        assert place.catalog(schema) == rivers(8), schema
        assert place.call("psycopg", "validate", schema=schema).ok
    assert not [name for name in place.relations() if name.startswith("public.")]


def test_printed_sql_version_by_version(place: Place) -> None:
    for version in range(1, 9):
        psql(place, migrate.sql(versions=[version]), "-1")
        assert place.catalog() == rivers(version), version
    for version in range(7, 0, -1):
        psql(place, migrate.sql("down", versions=[version + 1]), "-1")
        assert place.catalog() == rivers(version, back=True), version


def test_printed_step_down_from_5_refuses_other_lines(place: Place) -> None:
    place.up(target=5)
    place.execute("INSERT INTO river_migration (line, version) VALUES ('pro', 1)")
    with pytest.raises(AssertionError, match="another line than main"):
        psql(place, migrate.sql("down", versions=[5]), "-1")


def test_printed_sql_holds_no_lock_no_transaction_no_alembic_table() -> None:
    script = migrate.sql()
    for word in ("alembic", "advisory", "BEGIN;", "COMMIT"):
        assert word not in script


def test_which_versions_are_printed() -> None:
    def titles(script: str) -> list[str]:
        return [line[13:21].strip() for line in script.splitlines() if line.startswith("-- migration")]

    assert titles(migrate.sql()) == [*(f"main 00{n}" for n in range(1, 9)), "riverq 0"]
    assert titles(migrate.sql(versions=range(5, 7))) == ["main 005", "main 006"]
    assert titles(migrate.sql(exclude=[1])) == [f"main 00{n}" for n in range(2, 9)]
    assert titles(migrate.sql("down", versions=[1, 2])) == ["main 002", "main 001"]
    with pytest.raises(ConfigError, match="unknown version"):
        migrate.sql(versions=[9])
    with pytest.raises(ConfigError, match="expected direction"):
        migrate.sql("sideways")  # type: ignore[arg-type]
