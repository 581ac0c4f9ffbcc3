"""The figures and the verdict as a person reads them, and as a program does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from textwrap import fill
from typing import Any

from riverq.bench.figures import Figures, Rate
from riverq.bench.phases import BATCH
from riverq.bench.plan import Plan
from riverq.bench.text import milliseconds, percent, spaced
from riverq.bench.verdict import Verdict

PERCENTS = (50, 95, 99)
EVENTS_SHOWN = 3
WIDTH = 24


@dataclass(frozen=True)
class Report:
    """One run of the bench. `where` names the database, without a password."""

    where: str
    plan: Plan
    figures: Figures
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """One document. Units are in the names; what could not be found out is null."""
        figures, verdict = self.figures, self.verdict
        return {
            "riverq": version("riverq"),
            "database": self.where,
            "server": figures.server._asdict(),
            "adapter": figures.adapter,
            "asynchronous": figures.asynchronous,
            "settings": {
                "max_workers": self.plan.workers,
                "fetch_cooldown_ms": _ms(self.plan.cooldown.total_seconds()),
                "fetch_poll_interval_ms": _ms(self.plan.poll_interval.total_seconds()),
            },
            "round_trip_ms": _ms(figures.trips.round_trip),
            "statement_ms": _ms(figures.trips.statement),
            "statement_round_trips": figures.trips.exchanges,
            "commit_ms": _ms(figures.trips.commit),
            "insert_one_by_one": _rate(figures.one),
            "insert_in_batches": _rate(figures.many) | {"batch": self._batch},
            "insert_by_copy": _rate(figures.copy),
            "work": self._work(),
            "latency": {
                "jobs": len(figures.latency.seconds),
                "jobs_per_second": round(figures.latency.per_second, 1),
                "listens": figures.latency.listens,
                **{f"p{each}_ms": _ms(figures.latency.percentile(each)) for each in PERCENTS},
            },
            "verdict": {
                "limit": verdict.limits.value if verdict.limits is not None else None,
                "sentence": verdict.sentence,
                "shares": {suspect.value: round(share, 3) for suspect, share in verdict.shares.items()},
            },
        }

    @property
    def _batch(self) -> int:
        return min(BATCH, self.figures.many.jobs)

    def _work(self) -> dict[str, Any]:
        work = self.figures.work
        observed = work.observed
        return {
            **_rate(work.rate),
            "backlog": work.tally.jobs,
            "runs": work.tally.runs,
            "claims": work.tally.claims,
            "completions": work.tally.completions,
            "client_cpu_cores": round(work.client_cpu, 3),
            "client_cpu_us_per_job": _us(work.client_cpu_per_job),
            "server_cpu_cores": None if observed.cpu is None else round(observed.cpu, 3),
            "server_cpu_us_per_job": _us(work.server_cpu_per_job),
            "machine_cpu_cores": None if work.machine_cpu is None else round(work.machine_cpu, 3),
            "machine_cores": work.machine_cores,
            "wal_bytes_per_job": _rounded(work.per_job(work.wal_bytes)),
            "looks": observed.samples,
            "looks_computing": round(observed.computing, 3),
            "looks_wal": round(observed.wal, 3),
            "looks_waiting": round(observed.waiting, 3),
            "wait_events": dict(observed.events),
            "looks_error": observed.error,
        }

    def text(self, width: int) -> str:
        """For a terminal of so many columns, from the top to the verdict."""
        paragraphs = [
            fill(text, width, subsequent_indent="  ") for text in (self._head(), f"verdict: {self.verdict.sentence}")
        ]
        return "\n\n".join([paragraphs[0], "\n".join(self._table()), paragraphs[1]])

    def _head(self) -> str:
        figures, server = self.figures, self.figures.server
        face = "async" if figures.asynchronous else "sync"
        cooldown = f"fetch_cooldown {self.plan.cooldown.total_seconds() * 1000:g} ms"
        return (
            f"riverq {version('riverq')} on {figures.adapter} ({face}), max_workers {self.plan.workers}, {cooldown}; "
            f"Postgres {server.version.partition(' ')[0]} at {self.where}, fsync {server.fsync}, "
            f"synchronous_commit {server.synchronous_commit}"
        )

    def _table(self) -> Iterator[str]:
        figures = self.figures
        yield _line("round trip", milliseconds(figures.trips.round_trip))
        yield _line("smallest statement", milliseconds(figures.trips.statement))
        yield _line("commit", f"{milliseconds(figures.trips.commit)} more")
        yield ""
        yield _line("insert one by one", _rate_text(figures.one))
        yield _line(f"insert {spaced(self._batch)} at once", _rate_text(figures.many))
        yield _line("insert by COPY", _rate_text(figures.copy))
        yield ""
        yield from self._lines_of_work()
        yield ""
        latency = figures.latency
        times = "   ".join(f"p{each} {milliseconds(latency.percentile(each))}" for each in PERCENTS)
        yield _line("from insert to start", times)
        how = "notified" if latency.listens else "polling: notifications do not arrive"
        yield _line("", f"{spaced(len(latency.seconds))} jobs, {latency.per_second:.0f} a second, {how}")

    def _lines_of_work(self) -> Iterator[str]:
        work = self.figures.work
        observed = work.observed
        left = "" if work.tally.completed == work.tally.jobs else f" of {spaced(work.tally.jobs)}"
        yield _line("work a backlog", _rate_text(work.rate, left))
        yield _line("  client CPU", _cpu_text(work.client_cpu, work.client_cpu_per_job))
        if observed.cpu is None:
            yield _line("  server CPU", "unknown: too short to tell, or not on this machine")
        else:
            yield _line("  server CPU", _cpu_text(observed.cpu, work.server_cpu_per_job))
        wal = work.per_job(work.wal_bytes)
        yield _line(
            "  WAL", "unknown: the server does not tell" if wal is None else f"{spaced(round(wal))} bytes a job"
        )
        if observed.samples:
            seen = f"computing {percent(observed.computing)}, WAL {percent(observed.wal)}"
            yield _line("  seen in the server", f"{seen}, waiting {percent(observed.waiting)}")
            most = [f"{event} {count}" for event, count in list(observed.events.items())[:EVENTS_SHOWN]]
            yield _line("", ", ".join([f"{observed.samples} looks", *most]))
        if observed.error or not observed.samples:
            yield _line("  not seen", observed.error or "no time to look")


def _rate(rate: Rate) -> dict[str, Any]:
    return {"jobs": rate.jobs, "seconds": round(rate.seconds, 6), "jobs_per_second": round(rate.per_second, 1)}


def _rate_text(rate: Rate, of: str = "") -> str:
    return f"{spaced(round(rate.per_second))} jobs/s   {spaced(rate.jobs)}{of} in {rate.seconds:.2g} s"


def _cpu_text(cores: float, per_job: float | None) -> str:
    each = "" if per_job is None else f"{per_job * 1e6:.0f} µs a job   "
    return f"{each}{percent(cores)} of a core"


def _line(name: str, text: str) -> str:
    return f"  {name:<{WIDTH}}{text}"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 1)


def _rounded(number: float | None) -> int | None:
    return None if number is None else round(number)
