"""What the records of a run come to: medians, ratios within rounds, and how much of it all is noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.cell import Cell, Figures
from benchmarks.harness.markdown import without_paths
from benchmarks.harness.store import Record, Store

NOISE_ROUNDS = 3
"""A contender with fewer rounds of a cell says nothing about the noise."""


@dataclass(frozen=True)
class Rounds:
    """What one contender's rounds of one cell came to."""

    cell: Cell
    contender: str
    records: Sequence[Record]

    @property
    def figures(self) -> dict[int, Figures]:
        """By round, of those that went through."""
        return {record.round: record.figures for record in self.records if record.figures is not None}

    def values(self, key: str) -> list[float]:
        """One figure in all rounds that have it."""
        return [float(figures[key]) for figures in self.figures.values() if figures.get(key) is not None]

    def median(self, key: str) -> float | None:
        """None if no round has it."""
        values = self.values(key)
        return statistics.median(values) if values else None

    def ratios(self, reference: Rounds | None) -> list[float]:
        """This contender's main figure over the reference's, in each round that both have."""
        if reference is None:
            return []
        key, others = self.cell.main, reference.figures
        both = [(mine.get(key), others[number].get(key)) for number, mine in self.figures.items() if number in others]
        return [mine / other for mine, other in both if mine is not None and other]

    @property
    def disturbed(self) -> list[int]:
        """The rounds that others disturbed, in the last attempt too."""
        return [record.round for record in self.records if record.disturbed and record.figures is not None]

    @property
    def capped(self) -> bool:
        """Whether a round ended before the last job was done."""
        return any(figures.get("capped") for figures in self.figures.values())

    @property
    def spread(self) -> float:
        """How far its rounds lie apart, as a share of their median."""
        values = self.values(self.cell.main)
        return (max(values) - min(values)) / (statistics.median(values) or 1.0)


def collect(store: Store, cells: Sequence[Cell]) -> dict[str, dict[str, Rounds]]:
    """By cell and contender, in the cells' order; those that have not run are not in it."""
    known = {(cell.question, cell.name): cell for cell in cells}
    found: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(store.records(), key=lambda record: record.round):
        if cell := known.get((record.question, record.cell)):
            found.setdefault(cell.key, {}).setdefault(record.contender, []).append(record)
    return {
        cell.key: {
            name: Rounds(cell, name, found[cell.key][name])
            for name in dict.fromkeys((*cell.contenders, *found[cell.key]))
            if name in found[cell.key]
        }
        for cell in cells
        if cell.key in found
    }


def noise(collected: Mapping[str, Mapping[str, Rounds]]) -> dict[str, Any]:
    """How much one contender's figures differ where nothing differs, by unit; and how much of the run was disturbed."""
    everything = [rounds for by_name in collected.values() for rounds in by_name.values()]
    by_unit: dict[str, list[Rounds]] = {}
    for rounds in everything:
        if len(rounds.values(rounds.cell.main)) >= NOISE_ROUNDS:
            by_unit.setdefault(rounds.cell.unit, []).append(rounds)
    widest = {unit: max(some, key=lambda rounds: rounds.spread) for unit, some in by_unit.items()}
    measured = [record for rounds in everything for record in rounds.records if record.figures is not None]
    return {
        "spreads": {
            unit: {
                "series": len(some),
                "median": statistics.median(rounds.spread for rounds in some),
                "max": widest[unit].spread,
                "max_of": f"{widest[unit].contender} in {widest[unit].cell.key}",
            }
            for unit, some in by_unit.items()
        },
        "rounds": len(measured),
        "repeated": sum(record.attempts > 1 for record in measured),
        "disturbed": sum(record.disturbed for record in measured),
    }


def absent(collected: Mapping[str, Mapping[str, Rounds]]) -> dict[str, str]:
    """Those who could not run at all, which is when the same reason stands in every cell, and there are several."""
    reasons: dict[str, list[str | None]] = {}
    for by_name in collected.values():
        for name, rounds in by_name.items():
            reasons.setdefault(name, []).extend(record.unsupported for record in rounds.records)
    return {
        name: said[0] for name, said in reasons.items() if said[0] is not None and len(said) > 1 and len(set(said)) == 1
    }


def summed_up(rounds: Rounds, reference: Rounds | None) -> dict[str, Any]:
    """For JSON: all rounds' main figures, medians of all figures, ratios, and why there is nothing."""
    main = rounds.cell.main
    keys = dict.fromkeys(
        key
        for figures in rounds.figures.values()
        for key, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    found: dict[str, Any] = {
        "rounds": {
            at: _brief(figures[main]) for at, figures in rounds.figures.items() if figures.get(main) is not None
        },
        **_low_middle_high(rounds.values(main)),
        "spread": _brief(rounds.spread) if len(rounds.values(main)) > 1 else None,
        "ratio": _low_middle_high(rounds.ratios(reference)) or None,
        "figures": {key: _brief(statistics.median(rounds.values(key))) for key in keys if key != main},
        "capped": rounds.capped or None,
        "disturbed": rounds.disturbed,
        "unsupported": next(
            (without_paths(record.unsupported) for record in rounds.records if record.unsupported), None
        ),
        "failed": {record.round: without_paths(record.failed) for record in rounds.records if record.failed},
    }
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _low_middle_high(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": _brief(statistics.median(values)), "min": _brief(min(values)), "max": _brief(max(values))}


def _brief(value: float) -> float:
    return float(f"{value:.5g}")
