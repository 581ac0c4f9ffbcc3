from __future__ import annotations

import argparse
import json
import shlex

import pytest

from riverq import migrate
from riverq.cli.migrate import AnyEngine, add_parsers
from riverq.errors import ConfigError, DatabaseError, SchemaError
from tests.migrate.test_catalog import rivers
from tests.migrate.ways import ADAPTERS, ASYNC, Place


class Riverq:
    """The command line of migrations, as the main program would call it."""

    def __init__(self, place: Place, adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self.adapter, self.capsys = place, adapter, capsys
        self.parser = argparse.ArgumentParser()
        add_parsers(self.parser.add_subparsers(required=True), self.connect)

    def connect(self, args: argparse.Namespace) -> AnyEngine:
        if self.adapter in ASYNC:
            return self.place.async_engine(self.adapter)
        with self.place.engine(self.adapter) as engine:
            return engine

    def __call__(self, line: str) -> tuple[int, str]:
        args = self.parser.parse_args(shlex.split(line))
        code = args.run(args)
        return code, self.capsys.readouterr().out


@pytest.fixture
def riverq(place: Place, capsys: pytest.CaptureFixture[str]) -> Riverq:
    return Riverq(place, "psycopg", capsys)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_up_list_validate_down(place: Place, adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    riverq = Riverq(place, adapter, capsys)
    code, text = riverq("validate")
    assert code == 1
    assert "lacks version 1, 2, 3, 4, 5, 6, 7, 8: run `riverq migrate-up`" in text
    code, text = riverq("migrate-up --dry-run")
    assert (code, text.splitlines()[0]) == (0, "would apply migration 001 [up] create river migration")
    assert place.relations() == []
    code, text = riverq("migrate-up")
    assert code == 0
    assert text.splitlines()[-1].startswith("applied migration riverq 001 [up] clients queues periodic jobs [")
    assert riverq("migrate-up") == (0, "no versions to migrate\n")
    assert riverq("validate") == (0, "all versions are applied\n")
    code, text = riverq("migrate-list")
    assert text.splitlines()[0] == "* 001 create river migration"
    assert text.splitlines()[-1] == "* riverq 001 clients queues periodic jobs"
    assert riverq("migrate-down")[1].startswith("applied migration 008 [down] job id autoincrement [")
    assert riverq("migrate-list --line main")[1].splitlines()[-1] == "  008 job id autoincrement"


def test_options_of_up_and_down(riverq: Riverq) -> None:
    riverq("migrate-up --max-steps 2")
    assert riverq.place.catalog() == rivers(2)
    riverq("migrate-up --target-version 5")
    assert riverq.place.catalog() == rivers(5)
    riverq("migrate-down --max-steps 2")
    riverq("migrate-down --target-version 1")
    assert riverq.place.catalog() == rivers(1)
    riverq("migrate-down --target-version 0")
    riverq("migrate-up --line riverq")
    riverq("migrate-down --line riverq")
    assert riverq.place.relations() == []


@pytest.mark.parametrize("target", ["0", "-1"])
def test_down_to_nothing(riverq: Riverq, target: str) -> None:
    riverq("migrate-up --line main")
    riverq(f"migrate-down --target-version {target}")
    assert riverq.place.relations() == []


def test_show_sql_shows_what_would_run(riverq: Riverq) -> None:
    _, text = riverq("migrate-up --dry-run --show-sql --target-version 1")
    assert migrate.sql(versions=[1]) in text
    assert riverq.place.relations() == []


def test_schema(riverq: Riverq) -> None:
    with pytest.raises(SchemaError, match="CREATE SCHEMA"):
        riverq("migrate-up --schema 'My Jobs'")
    riverq.place.execute('CREATE SCHEMA "My Jobs"')
    riverq("migrate-up --schema 'My Jobs'")
    assert riverq("validate --schema 'My Jobs'")[0] == 0
    assert riverq.place.catalog("My Jobs") == rivers(8)


def test_json(riverq: Riverq) -> None:
    riverq("migrate-up --target-version 7")
    riverq.place.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)")
    rows = json.loads(riverq("migrate-list --json")[1])
    assert [(row["version"], row["applied"], row["known"]) for row in rows if row["version"] > 6] == [
        (7, True, True),
        (8, False, True),
        (9, True, False),
    ]
    assert rows[0]["applied_at"].endswith("+00:00")
    code, text = riverq("validate --json")
    assert code == 1
    assert json.loads(text)["missing"] == {"main": [8], "riverq": [1]}
    assert riverq("validate --target-version 7")[0] == 0


def test_versions_of_newer_clients_are_listed(riverq: Riverq) -> None:
    riverq("migrate-up")
    riverq.place.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)")
    assert "* 009 (of a newer client)" in riverq("migrate-list")[1]


def test_get_prints_sql_in_the_order_in_which_it_runs(riverq: Riverq) -> None:
    assert riverq("migrate-get --all") == (0, migrate.sql())
    assert riverq("migrate-get --version 3 --version 2 --up")[1] == migrate.sql(versions=[2, 3])
    assert riverq("migrate-get --version 2,3 --down")[1] == migrate.sql("down", versions=[3, 2])
    assert riverq("migrate-get --all --exclude-version 1 --schema 'a b'")[1] == migrate.sql(exclude=[1], schema="a b")
    assert riverq("migrate-get --all --line riverq")[1] == migrate.sql(line="riverq")


def test_mistakes_are_explained(riverq: Riverq) -> None:
    with pytest.raises(ConfigError, match="did you mean 'main'"):
        riverq("migrate-up --line mian")
    with pytest.raises(ConfigError, match="unknown version"):
        riverq("migrate-get --version 12")
    with pytest.raises(SystemExit):
        riverq("migrate-get")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_unreachable_database_is_told_in_one_sentence(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    riverq = Riverq(Place("postgresql://nobody@127.0.0.1:1/nowhere"), adapter, capsys)
    with pytest.raises(DatabaseError, match=r"the database .* is not available: "):
        riverq("validate")
