from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

import riverq_migrations
import riverq_migrations.step
from riverq.migrate import run
from riverq.versions import LINES, MAIN, RIVERQ


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "riverq_migrations:")
    return ScriptDirectory.from_config(config)


def test_versions_are_the_revisions() -> None:
    found = {script.revision for script in scripts().walk_revisions()}
    assert found == {version.revision for versions in LINES.values() for version in versions}
    assert set(scripts().get_heads()) == {versions[-1].revision for versions in LINES.values()}


def test_names_are_those_of_the_files() -> None:
    for version in (version for versions in LINES.values() for version in versions):
        stem = Path(scripts().get_revision(version.revision).path).stem
        assert stem.removeprefix("own_") == f"v{version.number:03}_{version.name.replace(' ', '_')}"


def test_lines_are_independent_bases_with_labels() -> None:
    for line, label in ((MAIN, "riverq"), (RIVERQ, "riverq_own")):
        first = scripts().get_revision(LINES[line][0].revision)
        assert first.down_revision is None
        assert label in first.branch_labels
    assert not any(script.dependencies for script in scripts().walk_revisions())


def test_both_ways_take_the_same_lock() -> None:
    assert run.LOCK_KEY == riverq_migrations.step.LOCK_KEY == int.from_bytes(b"riverq")


def test_revisions_fit_the_version_table() -> None:
    assert all(len(script.revision) <= 32 for script in scripts().walk_revisions())


def test_include_name_hides_rivers_tables_only() -> None:
    hidden = riverq_migrations.include_name
    assert not hidden("river_job", "table", {"schema_name": None})
    assert hidden("rivers", "table", {"schema_name": None})
    assert hidden("river_job", "column", {"schema_name": None})
    assert hidden(None, "schema", {})


def test_alembic_folder_never_becomes_a_package() -> None:
    folder = Path(riverq_migrations.__file__).parent.parent
    if folder.name == "alembic":  # in a checkout; a wheel has no such folder
        assert not list(folder.glob("*.py"))


def test_checking_a_schema_does_not_import_alembic() -> None:
    code = "import sys, riverq.migrate; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_alembic_command_on_our_own_directory_is_refused() -> None:
    code = (
        "from alembic import command; from alembic.config import Config; c = Config(); "
        "c.set_main_option('script_location', 'riverq_migrations:'); command.upgrade(c, 'riverq@head')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run `riverq migrate-up`" in done.stderr
