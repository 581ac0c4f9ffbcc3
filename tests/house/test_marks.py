"""The marks that leave a test out behind a pooler say why."""

from __future__ import annotations

import ast

import pytest

from tests.house.source import parse, python_files, where

REASONED = {"direct", "own_session"}
MARKS = REASONED | {"listens"}


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
        if (len((_reason(node) or "").split()) < 3 if name in REASONED else isinstance(node, ast.Call))
    ]


def test_a_test_that_a_pooler_makes_pointless_says_why() -> None:
    wrong = [where(path, node) for path in python_files("tests") for node in _wrong(parse(path))]
    assert not wrong, f'expected @pytest.mark.direct("a few words why") and a bare @pytest.mark.listens, got: {wrong}'


@pytest.mark.parametrize(
    ("written", "is_wrong"),
    [
        ('@pytest.mark.direct("counts the backends of the server")', False),
        ('@pytest.mark.direct("")', True),
        ('@pytest.mark.direct("because")', True),
        ("@pytest.mark.direct", True),
        ("@pytest.mark.direct()", True),
        ("@pytest.mark.own_session()", True),
        ('@pytest.mark.own_session("the lock of a connection")', False),
        ("@pytest.mark.listens", False),
        ('@pytest.mark.listens("a reason that everybody knows")', True),
    ],
)
def test_a_reason_is_told_from_none(written: str, *, is_wrong: bool) -> None:
    assert bool(_wrong(ast.parse(f"{written}\ndef test(): ..."))) == is_wrong
