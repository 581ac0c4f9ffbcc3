"""Code blocks of Markdown pages, with the line they stand on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
REASON = re.compile(r"<!-- not run: \S.*-->")


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the page's line of its first line of text, `before` the line above the fence."""

    info: str
    text: str
    line: int
    before: str

    @property
    def language(self) -> str:
        return self.info.split(" ", 1)[0]

    @property
    def is_run(self) -> bool:
        return "notest" not in self.info.split()

    @property
    def has_reason(self) -> bool:
        return REASON.fullmatch(self.before.strip()) is not None


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        number += 1
        if not opened:
            continue
        start = number
        while number < len(lines) and lines[number].strip() != "```":
            number += 1
        indent = len(opened["indent"])
        text = "\n".join(line[indent:] for line in lines[start:number])
        yield Block(opened["info"].strip(), text, start + 1, lines[start - 2] if start > 1 else "")
        number += 1
