"""Where files may lie, and which layers may know which."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.source import ROOT, python_files, where


@pytest.mark.parametrize("folder", ["drivers", "alembic"])
def test_plain_folder_holds_no_module_of_its_own(folder: str) -> None:
    """With an `__init__.py`, `alembic/` would shadow Alembic itself; so would any module beside it be importable."""
    found = [where(path) for path in (ROOT / folder).glob("*.py")]
    assert not found, f"{folder}/ is a folder of packages, never a package: {found}"


def test_every_package_is_in_the_wheel_and_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    present = ["riverq", *(str(p.relative_to(ROOT)) for p in (*ROOT.glob("drivers/*/"), *ROOT.glob("alembic/*/")))]
    assert sorted(packages) == sorted(path for path in present if "__pycache__" not in path)
    assert [path for path in packages if not (ROOT / path / "py.typed").is_file()] == []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in python_files("riverq", "tests")}
    missing = sorted(where(folder) for folder in folders if not (folder / "__init__.py").is_file())
    assert not missing, f"no __init__.py in {missing}"


def test_layer_contracts_are_kept() -> None:
    """The contracts stand in pyproject.toml; a new module must be given its place there."""
    command = Path(sys.executable).with_name("lint-imports")
    shown = subprocess.run(
        [command, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr[-2000:]
