"""What the repository must not hold: one machine's paths, one registry's hosts, references that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.source import ROOT, tracked_files

MINE = Path(__file__).resolve()
MACHINE = re.compile(r"(?<![\w.$])/wor[k]/\w|/home/\w+/|(?<!\w)/root/[\w.]|/Users/\w+/|[A-Z]:\\Users\\|\.\./shared\b")
REGISTRY = re.compile(
    r"pypi\.org/simple|files\.pythonhosted\.org|proxy\.golang\.org|sum\.golang\.org|registry\.npmjs\.org"
    r"|deb\.debian\.org|index-ur[l]|GOPROX[Y]|artifactory|\bnexus\b|devpi",
    re.IGNORECASE,
)
PAGE = re.compile(r"\bdocs/[\w/-]+\.md\b")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _found(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked_files():
        if path == MINE:
            continue
        for number, line in enumerate(_text(path).splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number} {match[0]}")
    return found


def test_no_paths_of_one_machine() -> None:
    assert _found(MACHINE) == []


def test_no_hosts_of_one_registry() -> None:
    assert _found(REGISTRY) == []


def test_pages_that_are_named_exist() -> None:
    named = {page for path in tracked_files() if path != MINE for page in PAGE.findall(_text(path))}
    assert sorted(page for page in named if not (ROOT / page).is_file()) == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _text(path))
        local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
        broken += [f"{path.relative_to(ROOT)}: {target}" for target in local if not (path.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("text", ["/home/anna/x", "/root/.venv", "/Users/anna/x"])
def test_machine_paths_are_recognised(text: str) -> None:
    assert MACHINE.search(text)
