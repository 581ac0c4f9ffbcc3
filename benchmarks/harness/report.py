"""Turns a run's records into RESULTS.md, and into a small JSON form of the same.

Contenders are compared within a round only, where they took turns on the same machine in the same minutes. The text
says beside each figure how often it was measured and how far its rounds lie apart; whatever broke down, was cut off or
was disturbed stays visible.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.registry import MAIN, REFERENCE, Contender
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness.cell import Cell
from benchmarks.harness.markdown import (
    anything,
    listed,
    number,
    paragraph,
    ratio,
    share,
    table,
    whole,
    with_range,
    without_paths,
)
from benchmarks.harness.meter import FOREIGN_LIMIT
from benchmarks.harness.run import REPETITIONS
from benchmarks.harness.stage import CAP_SECONDS
from benchmarks.harness.store import Store
from benchmarks.harness.tally import NOISE_ROUNDS, Rounds, absent, collect, noise, summed_up

CAPPED, DISTURBED = "†", "‡"

HOW_TO_READ = Path(__file__).with_name("how_to_read.md")

LIMITS_CELL = "throughput/noop-2000-tuned"

FULL = 0.9
"""From this share on, a core or a machine counts as full: something always waits for a moment."""

HIDDEN_SETTINGS = ("DateStyle", "TimeZone", "dynamic_shared_memory_type")
"""What initdb writes down and no result depends on."""

Collected = Mapping[str, Mapping[str, Rounds]]


def render(
    store: Store,
    cells: Sequence[Cell],
    contenders: Mapping[str, Contender],
    facts: Mapping[str, Any],
    questions: Mapping[str, str],
) -> str:
    """The Markdown of RESULTS.md.

    `facts` are those of machine.py and, where known, `minutes` (how long the run took), `command` and `contenders`:
    by name, their `version` and `notes` then, or `unavailable` with the reason. `questions` has each question's
    docstring.
    """
    collected = collect(store, cells)
    lines = ["# Results", "", *_header(facts, collected), *_how_to_read(facts)]
    missing = absent(collected)
    shown = {
        key: {name: rounds for name, rounds in by_name.items() if name not in missing}
        for key, by_name in collected.items()
    }
    for question in dict.fromkeys(cell.question for cell in cells):
        lines += _question(question, [cell for cell in cells if cell.question == question], shown, questions)
    lines += [*_contenders(collected, _about(contenders, facts)), *_noise(collected), *_limits(collected, facts)]
    return "\n".join(lines).rstrip() + "\n"


def summary(
    store: Store, cells: Sequence[Cell], contenders: Mapping[str, Contender], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The same for machines: by cell and contender, every round's main figure, medians and ratios."""
    return {
        "facts": {**facts, "contenders": _about(contenders, facts)},
        "reference": REFERENCE,
        "noise": noise(collected := collect(store, cells)),
        "cells": {
            cell.key: {
                "title": cell.title,
                "main": cell.main,
                "unit": cell.unit,
                "higher_is_better": cell.higher_is_better,
                "contenders": {
                    name: summed_up(rounds, collected[cell.key].get(REFERENCE))
                    for name, rounds in collected[cell.key].items()
                },
            }
            for cell in cells
            if cell.key in collected
        },
    }


# -- around the tables


def _header(facts: Mapping[str, Any], collected: Collected) -> list[str]:
    machine, postgres = facts.get("machine", {}), facts.get("postgres", {})
    settings = [
        f"`{name} = {value}`" for name, value in postgres.get("settings", {}).items() if name not in HIDDEN_SETTINGS
    ]
    rounds = sum(len(rounds.records) for by_name in collected.values() for rounds in by_name.values())
    minutes = facts.get("minutes")
    sync = machine.get("fdatasync_us")
    rows = {
        "date": [facts.get("date")],
        "machine": [
            machine.get("cpu"),
            _with_unit(machine.get("cores"), "cores"),
            _with_unit(machine.get("memory_gb"), "GB of memory"),
        ],
        "system": [machine.get("kernel"), machine.get("virtualisation")],
        "disk": [machine.get("filesystem"), sync and f"{number(sync)} µs for the fdatasync of 8 kB (median)"],
        "Postgres": [postgres.get("version")],
        "its settings": [*settings, "all others as they come"] if settings else [],
        "versions": [f"{name} {version}" for name, version in facts.get("versions", {}).items()],
        "command": [facts.get("command") and f"`{facts['command']}`"],
        "this run": [f"{rounds} rounds", minutes and f"{number(minutes)} minutes"],
    }
    shown = {name: [str(value) for value in values if value] for name, values in rows.items()}
    return [*table(["", ""], [[name, listed(values)] for name, values in shown.items() if values], left=2), ""]


def _with_unit(value: object, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _how_to_read(facts: Mapping[str, Any]) -> list[str]:
    cores = facts.get("machine", {}).get("cores")
    text = HOW_TO_READ.read_text(encoding="utf-8").format(
        where=f"the machine's {cores} cores" if cores else "one machine",
        reference=REFERENCE,
        capped=CAPPED,
        cap=f"{CAP_SECONDS:g}",
        disturbed=DISTURBED,
        limit=share(FOREIGN_LIMIT, 0),
        repetitions=REPETITIONS,
    )
    return text.split("\n")


def _question(question: str, cells: Sequence[Cell], collected: Collected, questions: Mapping[str, str]) -> list[str]:
    first_paragraph = inspect.cleandoc(questions.get(question, "")).partition("\n\n")[0]
    lines = [f"## {question.replace('_', ' ').capitalize()}", ""]
    if first_paragraph:
        lines += [*paragraph(" ".join(first_paragraph.split())), ""]
    for cell in cells:
        if collected.get(cell.key):
            lines += _cell(cell, collected[cell.key])
    if missing := [cell.name for cell in cells if not collected.get(cell.key)]:
        lines += [*paragraph(f"Not measured: {listed(missing)}."), ""]
    return lines


def _contenders(collected: Collected, about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    present = {name for by_name in collected.values() for name in by_name}
    missing = absent(collected)
    titles = {"tuned": "tuned", "default": "default", "unequal": "not equal"}
    lines: list[str] = []
    for name, known in about.items():
        reason = known.get("unavailable") or missing.get(name)
        if reason:
            lines += paragraph(f"- **{name}** could not run: {_one_line(reason)}", "  ")
        elif name in present:
            lines.append(f"- **{name}** {known['version']}")
            notes = known.get("notes", {})
            said = [(title, notes[key]) for key, title in titles.items() if notes.get(key)]
            lines += [line for title, note in said for line in paragraph(f"  - {title}: {note}", "    ")]
    return ["## Contenders", "", *(lines or ["None has run."]), ""]


def _about(contenders: Mapping[str, Contender], facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was written down of them when they ran, else what they say now."""
    then = facts.get("contenders", {})
    found: dict[str, dict[str, Any]] = {}
    for name, contender in contenders.items():
        try:
            known = then.get(name) or {"version": contender.version(), "notes": dict(contender.notes)}
        except ContenderUnavailable as reason:
            known = {"unavailable": str(reason)}
        found[name] = {key: without_paths(value) if key == "unavailable" else value for key, value in known.items()}
    return found


def _noise(collected: Collected) -> list[str]:
    found = noise(collected)
    lines = [f"No contender ran a cell {NOISE_ROUNDS} times: how much the figures vary is not known."]
    if found["spreads"]:
        heading = ["", "series", "middle", "widest", "which"]
        lines = [
            *paragraph(
                "How far the rounds of one contender in one cell lie apart, (highest − lowest) / median, where there "
                f"are {NOISE_ROUNDS} or more. Figures that are closer to each other than that are not different."
            ),
            "",
            *table(
                heading,
                [
                    [unit, str(of["series"]), share(of["median"]), share(of["max"]), of["max_of"]]
                    for unit, of in found["spreads"].items()
                ],
            ),
        ]
    counts = (
        f"Of {found['rounds']} rounds, {found['repeated']} were repeated (at most {REPETITIONS} times) because others "
        f"had more than {share(FOREIGN_LIMIT, 0)} of the machine; {found['disturbed']} stayed disturbed ({DISTURBED})."
    )
    return ["## Noise", "", *lines, "", *paragraph(counts), ""]


def _limits(collected: Collected, facts: Mapping[str, Any]) -> list[str]:
    """Which of client and Postgres fills its share of the machine, for those that are compared in earnest."""
    by_name = collected.get(LIMITS_CELL, {})
    cores = facts.get("machine", {}).get("cores")
    rows = []
    for name in MAIN:
        rounds = by_name.get(name)
        client = rounds.median("client_cores") if rounds else None
        postgres = rounds.median("postgres_cores") if rounds else None
        if rounds is None or client is None or postgres is None or not cores:
            continue
        others = rounds.median("foreign_share") or 0.0
        idle = max(0.0, 1 - (client + postgres) / cores - others)
        full = what_is_full(client, postgres, cores, room=cores if name == REFERENCE else 1)
        rows.append([name, f"{client:.2f}", f"{postgres:.2f}", share(idle), full])
    if not rows:
        return []
    title = next(iter(by_name.values())).cell.title
    text = (
        "Python code runs on one core of a process. Where the client's core is full, a further process helps; where "
        "the machine is, only less CPU a job does, first in whichever of the two takes more; where nothing is, the two "
        "wait for each other or for the disk."
    )
    heading = ["", "client's cores", "Postgres's cores", "idle", "full"]
    return ["## What limits", "", f"{title}; of {cores} cores:", "", *table(heading, rows), "", *paragraph(text), ""]


def what_is_full(client: float, postgres: float, cores: int, room: int) -> str:
    """`room` is how many cores the client can use at all."""
    if client >= FULL * room:
        return "the client's core" if room == 1 else "the machine, by the client"
    if client + postgres >= FULL * cores:
        return f"the machine, Postgres has {share(postgres / (client + postgres), 0)} of it"
    return "nothing"


Column = tuple[str, str, Callable[[float], str]]

RATE_COLUMNS: tuple[Column, ...] = (
    ("client_cpu_us", "client µs", number),
    ("postgres_cpu_us", "PG µs", number),
    ("wal_bytes", "WAL B", number),
    ("statements", "stmts", number),
    ("memory_mb", "MB", number),
    ("client_cores", "cores", "{:.2f}".format),
    ("foreign_share", "others", share),
)
LATENCY_COLUMNS: tuple[Column, ...] = (
    *((f"{when}_{at}", f"{when} {at}", number) for when in ("start", "end") for at in ("p50", "p95", "p99", "max")),
    *(column for column in RATE_COLUMNS if column[0] in ("client_cpu_us", "postgres_cpu_us", "foreign_share")),
)


# -- one cell


def _cell(cell: Cell, by_name: Mapping[str, Rounds]) -> list[str]:
    """Its table, and under it what the table cannot say."""
    lines = [f"### {cell.title}", ""]
    measured = [rounds for rounds in by_name.values() if rounds.figures]
    if measured:
        if not cell.higher_is_better:
            lines += ["Less is better, also of the ratio.", ""]
        lines += [*_cell_table(cell, measured, by_name.get(REFERENCE)), ""]
    remarks = [*_marks(measured), *(_jobs(cell, measured) if measured else ()), *_notes(measured)]
    remarks += _reasons(by_name.values())
    if remarks:
        lines += [*(line for remark in remarks for line in paragraph(f"- {remark}", "  ")), ""]
    for rounds in measured:
        lines += _series(rounds)
    return lines


def _cell_table(cell: Cell, measured: Sequence[Rounds], reference: Rounds | None) -> list[str]:
    columns = LATENCY_COLUMNS if cell.unit == "ms" else RATE_COLUMNS
    columns = tuple(
        column for column in columns if column[0] != cell.main and any(rounds.values(column[0]) for rounds in measured)
    )
    has_ratio = reference is not None and bool(reference.figures)
    name = cell.unit if cell.main == "rate" else f"{cell.main.replace('_', ' ')}, {cell.unit}"
    heading = ["", name, "n", *([f"× {REFERENCE}"] if has_ratio else []), *(title for _, title, _ in columns)]
    rows = []
    for rounds in measured:
        marks = CAPPED * rounds.capped + DISTURBED * bool(rounds.disturbed)
        row = [rounds.contender, with_range(rounds.values(cell.main), number) + marks, str(len(rounds.figures))]
        if has_ratio:
            row.append("1" if rounds.contender == REFERENCE else with_range(rounds.ratios(reference), ratio))
        medians = [(rounds.median(key), show) for key, _, show in columns]
        rows.append(row + ["–" if middle is None else show(middle) for middle, show in medians])
    return table(heading, rows)


def _marks(measured: Sequence[Rounds]) -> list[str]:
    lines = []
    if capped := [rounds.contender for rounds in measured if rounds.capped]:
        lines.append(
            f"{CAPPED} not done within {CAP_SECONDS:g} s, the rate is that of the jobs done by then: {listed(capped)}."
        )
    disturbed = [f"{rounds.contender} (round {listed(rounds.disturbed)})" for rounds in measured if rounds.disturbed]
    if disturbed:
        lines.append(f"{DISTURBED} disturbed by others, also when repeated: {listed(disturbed)}.")
    return lines


def _jobs(cell: Cell, measured: Sequence[Rounds]) -> list[str]:
    """How many a round has, where that is the same for (nearly) all and not itself the result."""
    if cell.content.backlog or cell.task.get("insert"):
        counts = {rounds.contender: cell.jobs_for(rounds.contender) for rounds in measured}
    elif "rate" in cell.task:
        counts = {rounds.contender: int(rounds.median("jobs") or 0) for rounds in measured}
    else:
        return []
    names: dict[int, list[str]] = {}
    for name, count in counts.items():
        names.setdefault(count, []).append(name)
    (usual, _), *others = sorted(names.items(), key=lambda item: -len(item[1]))
    return [
        f"{whole(usual)} jobs a round" + "".join(f"; {whole(jobs)} for {listed(some)}" for jobs, some in others) + "."
    ]


def _notes(measured: Sequence[Rounds]) -> list[str]:
    found = dict.fromkeys(
        (rounds.contender, figures["note"])
        for rounds in measured
        for figures in rounds.figures.values()
        if figures.get("note")
    )
    return [f"**{name}**: {note}" for name, note in found]


def _reasons(everybody: Iterable[Rounds]) -> list[str]:
    lines = []
    for rounds in everybody:
        cannot = dict.fromkeys(record.unsupported for record in rounds.records if record.unsupported)
        lines += [f"**{rounds.contender}** cannot: {_one_line(reason)}" for reason in cannot]
        failed = [(record.round, record.failed) for record in rounds.records if record.failed]
        # A code span: what broke down may have said anything.
        lines += [
            f"**{rounds.contender}** failed in round {at}: `{_one_line(reason).replace('`', chr(39))}`"
            for at, reason in failed
        ]
    return lines


def _one_line(text: str) -> str:
    line = without_paths(" ".join(text.split()))
    return line if len(line) <= 400 else f"{line[:400]}…"


def _series(rounds: Rounds) -> list[str]:
    lines = []
    for at, figures in rounds.figures.items():
        if rows := figures.get("series"):
            heading = list(dict.fromkeys(key for row in rows for key in row))
            title = rounds.contender if len(rounds.figures) == 1 else f"{rounds.contender}, round {at}"
            shown = [[anything(row.get(key)) for key in heading] for row in rows]
            lines += [f"{title}:", "", *table([key.replace("_", " ") for key in heading], shown), ""]
    return lines
