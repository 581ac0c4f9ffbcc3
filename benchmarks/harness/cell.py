"""A question's smallest part: one task, one kind of database, the contenders, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.contenders.registry import Contender
    from benchmarks.harness.stage import Stage

Figures = dict[str, Any]
Measure = Callable[["Stage", "Contender", "Cell"], Figures]


@dataclass(frozen=True)
class Content:
    """What the database holds before a run.

    `backlog` jobs named "bench" that can be worked at once; beside them, only in River's tables, `finished` completed
    jobs of another kind, `idle` available jobs of a queue that nobody works, and `unknown` jobs of a kind that nobody
    knows, in front of the backlog.
    """

    backlog: int = 0
    finished: int = 0
    idle: int = 0
    unknown: int = 0

    def template_name(self, family: str) -> str:
        """The name of the database that is copied for each run."""
        parts = [f"{letter}{count}" for letter, count in zip("bfiu", self.counts, strict=True) if count]
        return "_".join(["t", family, *parts])

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """In the order of the fields."""
        return (self.backlog, self.finished, self.idle, self.unknown)


@dataclass(frozen=True)
class Cell:
    """`main` is the figure that is compared (a key of the figures); `higher_is_better` says which way."""

    question: str
    name: str
    title: str
    measure: Measure
    task: Mapping[str, Any]
    contenders: tuple[str, ...]
    content: Content = field(default_factory=Content)
    main: str = "rate"
    unit: str = "jobs/s"
    higher_is_better: bool = True
    rounds: int | None = None
    backlogs: Mapping[str, int] = field(default_factory=dict)
    """Fewer jobs for contenders that would not work the usual number within the cap."""

    @property
    def key(self) -> str:
        """Unique among all cells."""
        return f"{self.question}/{self.name}"

    def content_for(self, contender: str) -> Content:
        """With that contender's own backlog."""
        if not self.content.backlog or contender not in self.backlogs:
            return self.content
        return replace(self.content, backlog=self.backlogs[contender])

    def jobs_for(self, contender: str) -> int:
        """How many jobs a run of `work` is done with: the backlog, or what the run itself inserts."""
        return self.backlogs.get(contender) or self.content.backlog or int(self.task["insert"])

    def rounds_for(self, contender: Contender, asked: int | None) -> int:
        """How often `contender` runs it; `asked` is the command line's limit."""
        rounds = contender.rounds if self.rounds is None else min(self.rounds, contender.rounds)
        return rounds if asked is None else min(rounds, asked)
