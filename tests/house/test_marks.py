"""The marks that leave a test out behind a pooler: which reasons they carry, and that nobody is left out unsaid."""

from __future__ import annotations

import ast

import pytest

from tests.house.source import ROOT, parse, python_files, where

REASONED = "direct"
MARKS = {REASONED, "listens"}


def _reason(node: ast.expr) -> str | None:
    """The reason that the use of the mark gives, if it is one that can be read here."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return None
    given = node.args[0]
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None


def _uses(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """Every `pytest.mark.<one of MARKS>`, as it is written there: called or not."""
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [
        (node.attr, calls.get(node, node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in MARKS
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "mark"
    ]


def _wrong(tree: ast.AST) -> list[ast.expr]:
    """The uses that do not say why, or that explain what needs no explanation."""
    return [
        node
        for name, node in _uses(tree)
        if (len((_reason(node) or "").split()) < 3 if name == REASONED else isinstance(node, ast.Call))
    ]


def test_a_test_that_a_pooler_makes_pointless_says_why() -> None:
    wrong = [where(path, node) for path in python_files("tests") for node in _wrong(parse(path))]
    assert not wrong, f'expected @pytest.mark.direct("a few words why") and a bare @pytest.mark.listens, got: {wrong}'


def test_marks_that_leave_a_test_out_are_in_use() -> None:
    """A mark that nobody has any more belongs out of pyproject.toml, and this check with it."""
    used = {name for path in (ROOT / "tests").rglob("test_*.py") for name, _ in _uses(parse(path))}
    assert used == MARKS


@pytest.mark.parametrize(
    ("written", "is_wrong"),
    [
        ('@pytest.mark.direct("counts the backends of the server")', False),
        ('@pytest.mark.direct("")', True),
        ('@pytest.mark.direct("because")', True),
        ("@pytest.mark.direct", True),
        ("@pytest.mark.direct()", True),
        ("@pytest.mark.listens", False),
        ('@pytest.mark.listens("a reason that everybody knows")', True),
    ],
)
def test_a_reason_is_told_from_none(written: str, *, is_wrong: bool) -> None:
    assert bool(_wrong(ast.parse(f"{written}\ndef test(): ..."))) == is_wrong
