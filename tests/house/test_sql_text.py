"""SQL text lives in riverq/query. Drivers, and what they share in riverq/driver, may LISTEN, UNLISTEN, COPY and ping.

Exempt are migrations (`alembic/`, and `riverq/migrate`, which runs before the tables that `riverq/query` knows exist)
and the suite that tries what drivers do with statements.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import ROOT, docstrings, parse, python_files, where

STATEMENT = re.compile(
    r"\s*(?:"
    r"(?:SELECT|INSERT INTO|DELETE FROM|MERGE INTO|ALTER|CREATE|DROP|TRUNCATE|SET|RESET|SHOW|NOTIFY|LISTEN|UNLISTEN"
    r"|COPY|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|LOCK|VACUUM|ANALYZE|EXPLAIN|GRANT|REVOKE|DO \$|CALL|VALUES"
    r"|UPDATE\s+\S+\s+(?:AS\s+\S+\s+)?SET|WITH\s+(?:RECURSIVE\s+)?\S+\s+AS)\b"
    r"|select\s+\S|insert\s+into\s|delete\s+from\s|update\s+\S+\s+set\s|notify\s+\S|set\s+\S+\s+(?:to|=)\s)"
)
EXEMPT = ("riverq/query", "riverq/migrate", "riverq/testing/driver_suite")
WHOLE_STATEMENTS = {"BEGIN", "COMMIT", "ROLLBACK"}
IN_DRIVERS = re.compile(r"\s*(?:LISTEN|UNLISTEN|COPY)\b|\s*SELECT 1\s*$")


def _texts(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every string that is not documentation; the holes of an f-string read as `?`."""
    documentation = docstrings(tree)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = [str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values]
            yield node, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation | parts:
            yield node, node.value


def sql_in(path: Path, allowed: re.Pattern[str] | None = None) -> list[str]:
    """What looks like SQL in a module, and every call of SQLAlchemy's `text`."""
    tree = parse(path)
    found = [
        f"{where(path, node)} {text.strip()[:60]!r}"
        for node, text in _texts(tree)
        if STATEMENT.match(text) and (" " in text.strip() or text.strip() in WHOLE_STATEMENTS)
        if not (allowed and allowed.match(text))
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    texts = [call for call in calls if ast.unparse(call.func) in ("sa.text", "text", "sqlalchemy.text")]
    return found + [f"{where(path, call)} {ast.unparse(call)[:60]}" for call in texts]


def _below(path: Path, *folders: str) -> bool:
    return any(ROOT / folder in path.parents for folder in folders)


def _library() -> list[Path]:
    return [path for path in python_files("riverq", "drivers") if not _below(path, *EXEMPT)]


@pytest.mark.parametrize("path", _library(), ids=where)
def test_no_sql_outside_query(path: Path) -> None:
    allowed = IN_DRIVERS if _below(path, "drivers", "riverq/driver") else None
    assert sql_in(path, allowed) == [], (
        "SQL belongs in riverq/query, as a function of a connection; a driver may LISTEN, UNLISTEN, COPY and SELECT 1"
    )


@pytest.mark.parametrize(
    "source",
    [
        'x = "SELECT id FROM river_job"',
        'x = f"UPDATE {table} SET a = 1"',
        'x = "with a as (select 1) select 2" + "insert into t values (1)"',
        'x = sa.text("1")',
        'x = "NOTIFY jobs"',
        'x = "SET LOCAL lock_timeout = 1"',
        'x = "COMMIT"',
    ],
)
def test_sql_is_recognised(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setattr("tests.house.source.ROOT", tmp_path)
    assert sql_in(path)


@pytest.mark.parametrize(
    "source",
    [
        '"""SELECT in a docstring."""',
        'x = "set the pool_mode to session"',
        'x = "create a queue"',
        'x = "update failed"',
    ],
)
def test_prose_is_left_alone(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setattr("tests.house.source.ROOT", tmp_path)
    assert not sql_in(path)
