"""Modules and functions stay small enough to be read in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.source import EVERYWHERE, functions, parse, python_files, where

MODULE_LINES = 400
FUNCTION_LINES = 60


@pytest.mark.parametrize("path", python_files(*EVERYWHERE), ids=where)
def test_module_and_its_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MODULE_LINES, f"{where(path)} has {lines} lines, at most {MODULE_LINES} (split it)"
    long = [
        f"{where(path, node)} {node.name} has {length} lines, at most {FUNCTION_LINES}"
        for node in functions(parse(path))
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long, "; ".join(long)
