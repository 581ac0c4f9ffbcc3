"""The reference pages name everything there is: settings with their defaults, commands with their options.

What a setting or an option *means* is written by hand; names, types and defaults are compared with the code, in its
order. When such a test fails, its message holds the lines that the page should have.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import dropwhile, takewhile
from typing import Any

import pytest

import riverq
from riverq.cli.main import make_parser
from riverq.insert_opts import OPTION_NAMES
from riverq.retry_policy import DefaultRetryPolicy
from tests.house.source import ROOT

REFERENCE = ROOT / "docs" / "reference"
CLASSES = [riverq.Config, riverq.QueueConfig]


def sections(page: str) -> Mapping[str, str]:
    """The text under each `## heading`."""
    parts = re.split(r"^## (.+)$", (REFERENCE / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[list[str]]:
    """The cells of the section's first table, without its head. A `\\|` is no border."""
    lines = dropwhile(lambda line: not line.startswith("|"), section.splitlines())
    table = list(takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


# -- configuration.md


def shown(value: object) -> str:
    """A default as a reader would write it."""
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, DefaultRetryPolicy):
        return "`DefaultRetryPolicy()`"
    if isinstance(value, Mapping):
        value = dict(value)
    return f"`{value!r}`".replace("'", '"')


def settings(cls: Any) -> Iterator[list[str]]:
    """Name, type and default of each field."""
    for field in dataclasses.fields(cls):
        default: object = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        annotation = str(field.type).replace("|", "\\|").replace("'", '"')
        yield [f"`{field.name}`", f"`{annotation}`", shown(default)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_stands_with_its_type_and_default(cls: type) -> None:
    wanted = list(settings(cls))
    found = rows(sections("configuration.md")[cls.__name__])
    expected = "\n".join("| " + " | ".join(each) + " | … |" for each in wanted)
    assert [each[:3] for each in found] == wanted, f"docs/reference/configuration.md should have:\n{expected}"


def test_every_setting_is_explained() -> None:
    for cls in CLASSES:
        silent = [each[0] for each in rows(sections("configuration.md")[cls.__name__]) if len(each) != 4 or not each[3]]
        assert silent == []


def test_a_new_setting_would_be_missed() -> None:
    @dataclasses.dataclass(frozen=True)
    class Longer(riverq.QueueConfig):
        surprise: int = 1

    assert list(settings(Longer))[-1] == ["`surprise`", "`int`", "`1`"]
    assert [each[:3] for each in rows(sections("configuration.md")["QueueConfig"])] != list(settings(Longer))


def test_every_insert_option_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "inserting.md").read_text(encoding="utf-8")
    table = guide.partition("## Options")[2]
    assert {each[0] for each in rows(table)} == {f"`{name}`" for name in OPTION_NAMES}


# -- cli.md


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command that can be run and its parser: `queues list`, not `queues`."""
    return dict(_leaves(make_parser(), ()))


def _leaves(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not below:
        yield " ".join(names), parser
    for subparsers in below:
        for name, child in subparsers.choices.items():
            yield from _leaves(child, (*names, name))


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Every argument as the help spells it, choices included: `--line LINE`."""
    found = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
        takes_value = action.nargs != 0
        spelled = ", ".join(action.option_strings) + (f" {value}" if takes_value else "")
        found.append(f"`{spelled if action.option_strings else value}`")
    return found


@pytest.mark.parametrize("command", [*commands(), ""])
def test_every_command_stands_with_its_options(command: str) -> None:
    heading = f"`riverq {command}`" if command else "Everywhere"
    wanted = options(commands()[command] if command else make_parser())
    found = [each[0] for each in rows(sections("cli.md").get(heading, ""))]
    expected = "\n".join(f"| {each} | … |" for each in wanted)
    assert heading in sections("cli.md"), f"docs/reference/cli.md has no section ## {heading}"
    assert found == wanted, f"docs/reference/cli.md, {heading}, should have:\n{expected}"


def test_no_command_is_invented() -> None:
    named = {heading for heading in sections("cli.md") if heading.startswith("`riverq ")}
    assert named == {f"`riverq {command}`" for command in commands()}
