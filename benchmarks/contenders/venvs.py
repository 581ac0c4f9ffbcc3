"""The environments of the Python contenders, under .cache: made when first needed, and again when their file changes.

The peers share riverq's own interpreter. Oban needs a newer Python than riverq does, so it gets the oldest one that
fits: the nearest to what the others run on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.contenders.unavailable import ContenderUnavailable

OBAN_MINORS = (12, 13, 14)
"""The Pythons 3.x that Oban is tried with."""

PIP_SECONDS = 900
_PROBE = "import sys, venv, ensurepip; print(sys.version_info[1])"
_STAMP = "made-from.txt"


def peers(root: Path) -> Path:
    """The Python of the environment that the peers share. Raises ContenderUnavailable."""
    return _environment(root, "peers", [Path(sys.executable)], "Python 3.11 or newer with venv and ensurepip")


def oban(root: Path) -> Path:
    """The Python of Oban's environment. Raises ContenderUnavailable."""
    wanted = f"Python 3.{OBAN_MINORS[0]} to 3.{OBAN_MINORS[-1]} on PATH or in ~/.pyenv/versions"
    return _environment(root, "oban", _oban_candidates(), wanted)


def _oban_candidates() -> Iterator[Path]:
    if sys.version_info[1] in OBAN_MINORS:
        yield Path(sys.executable)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in OBAN_MINORS:
        if found := shutil.which(f"python3.{minor}"):
            yield Path(found)
        yield from sorted(versions.glob(f"3.{minor}.*/bin/python3.{minor}"))


def _environment(root: Path, name: str, candidates: Sequence[Path] | Iterator[Path], wanted: str) -> Path:
    requirements = root / "benchmarks" / f"requirements-{name}.txt"
    folder = root / ".cache" / f"bench-{name}"
    python, stamp = folder / "bin" / "python", folder / _STAMP
    content = f"# for {sys.version}\n{requirements.read_text()}"
    if python.exists() and stamp.exists() and stamp.read_text() == content:
        return python
    base = next((candidate for candidate in candidates if _can_make_venvs(candidate)), None)
    if base is None:
        raise ContenderUnavailable(f"{requirements.name} needs {wanted}; none was found that runs")
    print(f"making {folder} with {base}; this takes a minute", file=sys.stderr, flush=True)
    _run([str(base), "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)])
    stamp.write_text(content)
    return python


def _can_make_venvs(python: Path) -> bool:
    """Whether it runs at all, too: pyenv puts commands on PATH for versions that are not switched on."""
    try:
        probe = subprocess.run([str(python), "-c", _PROBE], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ContenderUnavailable(f"{' '.join(command)} failed: {error}") from None
    if done.returncode != 0:
        said = " / ".join(done.stdout.strip().splitlines()[-4:]) or "it said nothing"
        raise ContenderUnavailable(f"{' '.join(command)} failed with exit code {done.returncode}: {said}")
