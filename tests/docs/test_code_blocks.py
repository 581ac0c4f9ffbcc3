"""Every example of the README and the docs runs.

The Python blocks of a page share one module and run in order, against a migrated database of the page's own under
DATABASE_URL; `await` is allowed outside of functions. A block that cannot run is marked `python notest`, with the
reason on the line above: `<!-- not run: why -->`. In `console` blocks every `riverq …` and `make …` must exist, and
its options too.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq import migrate
from tests.docs.blocks import Block, blocks
from tests.fix_database import adapter_url
from tests.house.source import ROOT, where

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "CONTRIBUTING.md"]
PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.fixture
def page_database(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database, named by DATABASE_URL."""
    engine = sa.create_engine(adapter_url(fresh_database, "psycopg"))
    migrate.up(engine)
    engine.dispose()
    monkeypatch.setenv("DATABASE_URL", fresh_database)
    return fresh_database


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the page's blocks are: a module that can be found by name, since type hints are looked up there."""
    module = ModuleType("riverq_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def run_block(block: Block, page: Path, module: ModuleType, runner: asyncio.Runner) -> None:
    """Execute a block; its line numbers are the page's."""
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(eval(code, module.__dict__))
    else:
        exec(code, module.__dict__)


def _dispose(module: ModuleType, runner: asyncio.Runner) -> None:
    for value in list(vars(module).values()):
        if isinstance(value, AsyncEngine):
            runner.run(value.dispose())
        elif isinstance(value, sa.Engine):
            value.dispose()


@pytest.mark.parametrize("page", PYTHON, ids=where)
def test_python_blocks_run(page: Path, page_database: str, module: ModuleType) -> None:
    with asyncio.Runner() as runner:
        try:
            for block in blocks(page):
                if block.language == "python" and block.is_run:
                    run_block(block, page, module, runner)
        finally:
            _dispose(module, runner)


def test_blocks_that_are_not_run_say_why() -> None:
    silent = [
        f"{where(page)}:{block.line}"
        for page in PAGES
        for block in blocks(page)
        if not block.is_run and not block.has_reason
    ]
    assert not silent, f"put `<!-- not run: why -->` above the fence: {silent}"


def test_every_block_names_its_language() -> None:
    bare = [f"{where(page)}:{block.line}" for page in PAGES for block in blocks(page) if not block.info]
    assert not bare, f"use python, console, ini, toml, sql or text: {bare}"


# -- commands


def _commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page):
            if block.language != "console" or not block.is_run:
                continue
            for offset, line in enumerate(block.text.replace("\\\n", "  ").splitlines()):
                words = line.strip().removeprefix("$ ")
                if words.startswith(("riverq ", "make ")) or words in ("riverq", "make"):
                    yield f"{where(page)}:{block.line + offset}", words


@cache
def _help(words: tuple[str, ...]) -> tuple[int, str]:
    command = [sys.executable, "-m", "riverq", *words, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return shown.returncode, shown.stdout + shown.stderr


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("place", "command"), [pytest.param(*each, id=each[0]) for each in _commands()])
def test_command_exists(place: str, command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = [word for word in words if "=" not in word and not word.startswith("-")]
        assert set(targets) <= _make_targets(), f"{place}: no such make target"
        return
    names = []
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        names.append(word)
    code, shown = _help(tuple(names))
    assert code == 0, f"{place}: riverq {' '.join(names)} --help says: {shown[-500:]}"
    missing = [option for word in words if (option := word.split("=")[0]).startswith("--") and option not in shown]
    assert not missing, f"{place}: riverq {' '.join(names)} has no {missing}"


def test_a_block_that_fails_is_named_by_its_line(tmp_path: Path, module: ModuleType) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2, 'no'\n```\n")
    first, second = blocks(page)
    with asyncio.Runner() as runner:
        run_block(first, page, module, runner)
        with pytest.raises(AssertionError, match="no") as caught:
            run_block(second, page, module, runner)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 8)


def test_blocks_share_names_and_may_await(tmp_path: Path, module: ModuleType) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport asyncio\nx = 1\n```\n```python\nawait asyncio.sleep(0)\nx += 1\n```\n")
    with asyncio.Runner() as runner:
        for block in blocks(page):
            run_block(block, page, module, runner)
    assert vars(module)["x"] == 2
