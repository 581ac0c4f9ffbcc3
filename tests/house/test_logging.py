"""Log lines have one shape, and use only the loggers and field names that docs/internals/logging.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import LIBRARY, ROOT, parse, python_files, where

METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
SHAPE = re.compile(r"(?:%s|\w+(?: %[sd])?): [A-Z]")
FIELD = re.compile(r"\b(\w+)=%")


def listed(heading: str) -> set[str]:
    """The names in the first column of a table of the page."""
    text = (ROOT / "docs/internals/logging.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([^`]+)`", section, re.MULTILINE))


def _log_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            target = ast.unparse(node.func.value).rsplit(".", 1)[-1].lstrip("_")
            if target in ("log", "logger", "logging"):
                yield node


def faults(path: Path) -> list[str]:
    """What is wrong with the log calls of a module."""
    fields, loggers = listed("Fields"), listed("Loggers")
    found = []
    for call in _log_calls(path):
        message = call.args[0] if call.args else None
        if not (isinstance(message, ast.Constant) and isinstance(message.value, str) and SHAPE.match(message.value)):
            found.append(f"{where(path, call)} the message is not a constant of the form '%s: Verb phrase'")
            continue
        named = set(FIELD.findall(message.value)) | _extra_names(call)
        found += [f"{where(path, call)} field {name} is not listed" for name in sorted(named - fields)]
        if message.value.endswith("."):
            found.append(f"{where(path, call)} the message ends in a full stop")
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger"):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if name not in loggers:
                found.append(f"{where(path, node)} logger {name!r} is not listed")
    return found


def _extra_names(call: ast.Call) -> set[str]:
    extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
    keys = extra.keys if isinstance(extra, ast.Dict) else []
    return {str(key.value) for key in keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize("path", python_files(*LIBRARY), ids=where)
def test_log_lines_keep_to_the_page(path: Path) -> None:
    assert faults(path) == [], "see docs/internals/logging.md"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('log.info("%s: Deleted (num_jobs=%d)", name, 1)', None),
        ('self.ctx.log.info("deleted jobs")', "not a constant"),
        ('log.info(f"{name}: Deleted")', "not a constant"),
        ('log.info("%s: Deleted (jobs=%d)", name, 1)', "field jobs"),
        ('log.info("%s: Deleted", name, extra={"worker": 1})', "field worker"),
        ('log.info("%s: Deleted.", name)', "full stop"),
        ("logging.getLogger(__name__)", "logger None"),
    ],
)
def test_faults_are_found(source: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setattr("tests.house.source.ROOT", tmp_path)
    found = faults(path)
    assert (fault is None and not found) or (fault is not None and any(fault in text for text in found))
