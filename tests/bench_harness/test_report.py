"""Reports of stores that were made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness import report
from benchmarks.harness.cell import Cell
from benchmarks.harness.markdown import SPACE
from benchmarks.harness.store import Record, Store
from tests.bench_harness.made_up import LATENCY, NOOP, everybody, records

FACTS: dict[str, Any] = {
    "date": "2026-03-04",
    "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 16.4, "filesystem": "ext4", "fdatasync_us": 120},
    "postgres": {"version": "15.9", "settings": {"DateStyle": "ISO", "shared_buffers": "1GB"}},
    "versions": {"Python": "3.11.7"},
    "command": "make bench",
    "minutes": 61.4,
}
QUESTIONS = {"throughput": "How many\njobs a second.\n\nThe rest is for maintainers.\n", "latency": "How long."}


class Report:
    """What `render` makes of these records, and ways to look into it."""

    def __init__(self, folder: Path, made: list[Record], cells: list[Cell] | None = None, **facts: Any) -> None:
        self.store = Store(folder)
        for record in made:
            self.store.write(record)
        self.cells = cells or [NOOP]
        self.facts = {**FACTS, **facts}
        text = report.render(self.store, self.cells, everybody(), self.facts, QUESTIONS)
        self.text = text.replace(SPACE, " ")
        self.flat = " ".join(self.text.split())

    def rows(self, title: str = NOOP.title) -> dict[str, dict[str, str]]:
        """The first table under that heading: by its first column and its headings."""
        lines = self.section(f"### {title}").splitlines()
        begin = next(at for at, line in enumerate(lines) if line.startswith("|"))
        table = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in lines[
                begin : next(at for at in range(begin, len(lines) + 1) if not "".join(lines[at : at + 1]))
            ]
        ]
        return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}

    def section(self, heading: str) -> str:
        """From that heading to the next of its level or above."""
        lines = self.text.splitlines()
        begin = lines.index(heading)
        stops = tuple("#" * level + " " for level in range(1, heading.index(" ") + 1))
        end = next((at for at in range(begin + 1, len(lines)) if lines[at].startswith(stops)), len(lines))
        return "\n".join(lines[begin:end])


def test_a_table_has_medians_ranges_and_ratios_within_rounds(tmp_path: Path) -> None:
    found = Report(
        tmp_path,
        [
            *records(NOOP, "go", 30_000.0, 40_000.0, 20_000.0),
            *records(NOOP, "riverq-asyncpg", 33_000.0, 40_000.0, 30_000.0),
        ],
    ).rows()
    assert list(found) == ["riverq-asyncpg", "go"]
    assert found["go"] == {
        "": "go",
        "jobs/s": "30 000 (20 000–40 000)",
        "n": "3",
        "× go": "1",
        "client µs": "14.4",
        "PG µs": "32.6",
        "WAL B": "2 150",
        "stmts": "0.00213",
        "MB": "67.9",
        "cores": "0.55",
        "others": "2.1 %",
    }
    assert found["riverq-asyncpg"]["jobs/s"] == "33 000 (30 000–40 000)"
    assert found["riverq-asyncpg"]["× go"] == "1.10 (1.00–1.50)"


def test_one_round_has_no_range_and_is_compared_with_the_references_first(tmp_path: Path) -> None:
    found = Report(tmp_path, [*records(NOOP, "go", 10_000.0, 40_000.0), *records(NOOP, "saq", 2_500.0)])
    row = found.rows()["saq"]
    assert (row["jobs/s"], row["n"], row["× go"]) == ("2 500", "1", "0.25")
    assert "- 100 000 jobs a round; 20 000 for saq." in found.text


def test_without_the_reference_there_are_no_ratios(tmp_path: Path) -> None:
    found = Report(tmp_path, records(NOOP, "riverq-asyncpg", 1_000.0))
    assert "× go" not in found.rows()["riverq-asyncpg"]


def test_with_a_reference_that_failed_there_are_no_ratios(tmp_path: Path) -> None:
    failed = Record(NOOP.question, NOOP.name, "go", 1, None, failed="ChildFailed: ended early")
    assert "× go" not in Report(tmp_path, [failed, *records(NOOP, "saq", 1.0)]).rows()["saq"]


def test_a_contender_without_a_common_round_has_no_ratio(tmp_path: Path) -> None:
    [late] = records(NOOP, "go", 1_000.0)
    found = Report(tmp_path, [replace(late, round=2), *records(NOOP, "saq", 1_000.0)]).rows()
    assert found["saq"]["× go"] == "–"


def test_a_capped_round_is_marked_and_explained(tmp_path: Path) -> None:
    found = Report(tmp_path, [*records(NOOP, "go", 9.0, capped=False), *records(NOOP, "saq", 3.0, capped=True)])
    assert found.rows()["saq"]["jobs/s"] == "3.00†"
    assert "†" not in found.rows()["go"]["jobs/s"]
    assert "- † not done within 30 s, the rate is that of the jobs done by then: saq." in found.text


def test_a_disturbed_round_is_marked_and_named(tmp_path: Path) -> None:
    [calm, loud, cured] = records(NOOP, "go", 9.0, 9.0, 9.0)
    made = [calm, replace(loud, attempts=3, disturbed=True), replace(cured, attempts=2)]
    found = Report(tmp_path, [*made, *records(NOOP, "saq", 3.0)])
    assert found.rows()["go"]["jobs/s"].endswith("‡")
    assert "‡" not in found.rows()["saq"]["jobs/s"]
    assert "- ‡ disturbed by others, also when repeated: go (round 2)." in found.text
    assert "Of 4 rounds, 2 were repeated (at most 2 times)" in found.flat
    assert "1 stayed disturbed" in found.flat


def test_what_cannot_be_done_and_what_failed_is_listed_under_the_table(tmp_path: Path) -> None:
    made = [
        *records(NOOP, "go", 9.0),
        Record(NOOP.question, NOOP.name, "go", 2, None, failed="ChildFailed: at /srv/anna/x.py `y`\nin line 3"),
        Record(NOOP.question, NOOP.name, "saq", 1, None, unsupported="it has no COPY"),
    ]
    found = Report(tmp_path, made)
    assert list(found.rows()) == ["go"]
    assert "- **saq** cannot: it has no COPY" in found.text
    assert "- **go** failed in round 2: `ChildFailed: at …/x.py 'y' in line 3`" in found.text


def test_a_cell_where_everybody_failed_has_no_table(tmp_path: Path) -> None:
    section = Report(
        tmp_path, [Record(NOOP.question, NOOP.name, "go", 1, None, failed="TimeoutError: no 'ready'")]
    ).section(f"### {NOOP.title}")
    assert "|" not in section
    assert "**go** failed in round 1" in section


def test_who_cannot_run_at_all_is_named_once(tmp_path: Path) -> None:
    made = [
        Record(cell.question, cell.name, "saq", 1, None, unsupported="needs /srv/anna/venv") for cell in (NOOP, LATENCY)
    ]
    found = Report(tmp_path, [*made, *records(NOOP, "go", 9.0)], [NOOP, LATENCY])
    assert found.text.count("saq") == 1
    assert "- **saq** could not run: needs …/venv" in found.section("## Contenders")
    assert "Not measured: 50-tuned." in found.text


def test_latencies_have_their_own_columns_and_less_is_better(tmp_path: Path) -> None:
    more = {"start_p95": 4.0, "start_p99": 8.5, "end_p50": 3.1, "end_p99": None, "jobs": 400}
    made = [*records(LATENCY, "go", 2.0, 1.5, 1.0, **more), *records(LATENCY, "saq", 1.0, **more)]
    found = Report(tmp_path, made, [LATENCY])
    row = found.rows(LATENCY.title)["go"]
    assert row["start p50, ms"] == "1.50 (1.00–2.00)"
    assert list(row)[4:] == ["start p95", "start p99", "end p50", "client µs", "PG µs", "others"]
    assert found.rows(LATENCY.title)["saq"]["× go"] == "0.50"
    assert "Less is better" in found.text
    assert "- 400 jobs a round." in found.text
    assert "Less is better" not in Report(tmp_path, records(NOOP, "go", 1.0)).text


def test_a_column_that_nobody_has_is_left_out(tmp_path: Path) -> None:
    row = Report(tmp_path, records(NOOP, "go", 1.0, memory_mb=None)).rows()["go"]
    assert "MB" not in row


def test_notes_and_series_stand_under_the_table(tmp_path: Path) -> None:
    series = [{"second": 0, "jobs": 24_000.0}, {"second": 30, "jobs": None, "end_p99": 18.25}]
    made = [*records(NOOP, "go", 1.0, 2.0, note="dead rows"), *records(NOOP, "saq", 1.0, series=series)]
    found = Report(tmp_path, made).section(f"### {NOOP.title}")
    assert found.count("**go**: dead rows") == 1
    assert found.endswith(
        "saq:\n\n| second | jobs | end p99 |\n| --- | ---: | ---: |\n| 0 | 24 000 | – |\n| 30 | – | 18.2 |\n"
    )


def test_a_question_begins_with_the_first_paragraph_of_its_docstring(tmp_path: Path) -> None:
    section = Report(tmp_path, records(NOOP, "go", 1.0)).section("## Throughput")
    assert section.startswith("## Throughput\n\nHow many jobs a second.\n\n### ")
    assert "maintainers" not in section


def test_the_header_says_on_what_it_was_measured(tmp_path: Path) -> None:
    found = Report(tmp_path, records(NOOP, "go", 1.0, 2.0))
    assert "| machine | Some CPU, 2 cores, 16.4 GB of memory |" in found.text
    assert "| disk | ext4, 120 µs for the fdatasync of 8 kB (median) |" in found.text
    assert "| its settings | `shared_buffers = 1GB`, all others as they come |" in found.text
    assert "| command | `make bench` |" in found.text
    assert "| this run | 2 rounds, 61.4 minutes |" in found.text
    assert "share the machine's 2 cores" in found.text


def test_every_mark_and_column_of_the_tables_is_explained(tmp_path: Path) -> None:
    made = [*records(NOOP, "go", 1.0), *records(LATENCY, "go", 1.0, start_p95=2.0, start_p99=3.0, end_p50=4.0)]
    found = Report(tmp_path, made, [NOOP, LATENCY])
    explained = found.section("## How to read this")
    assert "{" not in explained
    headings = {*found.rows()["go"], *found.rows(LATENCY.title)["go"]} - {"", "jobs/s", "n", "start p50, ms"}
    words = {word for heading in headings for word in (heading.split() if heading[:3] in ("sta", "end") else [heading])}
    assert {word for word in (*words, "†", "‡") if f"**{word}**" not in explained} == set()


def test_contenders_say_what_they_are_and_what_is_not_equal(tmp_path: Path) -> None:
    then = {"go": {"version": "0.43.0", "notes": {"tuned": "as it was then"}}}
    found = Report(tmp_path, [*records(NOOP, "go", 1.0), *records(NOOP, "saq", 1.0)], contenders=then)
    assert found.section("## Contenders").strip().splitlines()[2:] == [
        "- **go** 0.43.0",
        "  - tuned: as it was then",
        "- **saq** 1.3",
        "  - tuned: pool of 8",
        "  - not equal: no bulk insert",
    ]


def test_a_contender_without_a_version_could_not_run(tmp_path: Path) -> None:
    def nowhere() -> str:
        raise ContenderUnavailable("no Go")

    contenders = {name: replace(contender, version=nowhere) for name, contender in everybody().items()}
    text = report.render(Store(tmp_path), [NOOP], contenders, FACTS, QUESTIONS)
    assert "- **go** could not run: no Go" in text


def test_the_noise_is_stated(tmp_path: Path) -> None:
    made = [*records(NOOP, "go", 90.0, 100.0, 120.0), *records(NOOP, "saq", 1.0)]
    section = Report(tmp_path, made).section("## Noise")
    assert "| jobs/s | 1 | 30.0 % | 30.0 % | go in throughput/noop-2000-tuned |" in section


def test_noise_that_was_not_measured_is_said_to_be_unknown(tmp_path: Path) -> None:
    assert "is not known" in Report(tmp_path, records(NOOP, "go", 1.0, 2.0)).section("## Noise")


def test_a_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    found = Report(tmp_path, [], [NOOP, LATENCY])
    assert "Not measured: noop-2000-tuned." in found.text
    assert "Not measured: 50-tuned." in found.text
    assert "None has run." in found.text
    assert "## What limits" not in found.text
    assert report.render(Store(tmp_path), [], {}, {}, {}).startswith("# Results\n")


@pytest.mark.parametrize(
    ("client", "postgres", "room", "full"),
    [
        (0.95, 0.9, 1, "the client's core"),
        (0.55, 1.3, 1, "the machine, Postgres has 70 % of it"),
        (0.55, 1.3, 2, "the machine, Postgres has 70 % of it"),
        (0.95, 1.0, 2, "the machine, Postgres has 51 % of it"),
        (1.85, 0.1, 2, "the machine, by the client"),
        (0.5, 1.0, 1, "nothing"),
    ],
)
def test_what_is_full_follows_from_the_cores(client: float, postgres: float, room: int, full: str) -> None:
    assert report.what_is_full(client, postgres, 2, room).replace(SPACE, " ") == full


def test_the_limit_of_the_main_contenders_is_the_last_section(tmp_path: Path) -> None:
    made = [
        *records(NOOP, "go", 1.0, client_cores=0.4, postgres_cores=0.6),
        *records(NOOP, "riverq-asyncpg", 1.0, 2.0, 3.0, client_cores=0.93),
        *records(NOOP, "saq", 1.0),
    ]
    section = Report(tmp_path, made).text.partition("## What limits")[2]
    assert "| riverq-asyncpg | 0.93 | 1.30 | 0.0 % | the client's core |" in section
    assert "| go | 0.40 | 0.60 | 47.9 % | nothing |" in section
    assert "saq" not in section
    assert "\n## " not in section


def test_the_summary_is_json_with_every_round(tmp_path: Path) -> None:
    made = Report(tmp_path, [*records(NOOP, "go", 100.0, 200.0), *records(NOOP, "saq", 50.0)], [NOOP, LATENCY])
    found = json.loads(json.dumps(report.summary(made.store, made.cells, everybody(), made.facts)))
    assert list(found["cells"]) == [NOOP.key]
    cell = found["cells"][NOOP.key]
    assert (cell["main"], cell["unit"], cell["higher_is_better"]) == ("rate", "jobs/s", True)
    assert cell["contenders"]["go"]["rounds"] == {"1": 100.0, "2": 200.0}
    assert cell["contenders"]["saq"]["ratio"]["median"] == 0.5
    assert found["facts"]["machine"]["cores"] == 2
    assert found["facts"]["contenders"]["saq"]["notes"]["tuned"] == "pool of 8"
    assert found["noise"]["rounds"] == 3
