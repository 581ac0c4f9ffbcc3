"""What keeps the work from going faster, in one sentence, with the figures behind it and what to change.

A pure function of the figures. Each suspect has a share of the time that it explains, and a threshold:

    the machine's CPU   every core that we may use is busy, whoever with: named before what it starves, but not
                        before waiting that needs no processor
    the client's CPU    of one core, which is all that one Python process has
    the server's CPU    of the looks at the server, those in which a connection of ours computes; not more than its
                        processes used of one core, where that is known
    the WAL             the looks in which one waits for it; with too few looks, statements × commit
    other waits         the looks in which one waits for anything else inside the server
    round trips         statements × their round trips

Statements are those of the longer chain, claims or completions: each chain runs one after the other, and beside the
other one. A suspect limits if its share reaches its threshold and no other that does is close behind; otherwise no
single one does, and the sentence says so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from riverq.bench.figures import Figures, is_wal_event
from riverq.bench.text import counted, milliseconds, percent

FULL = 0.85
"""A processor this busy is what one waits for; the rest is the pauses between statements."""

MOST = 0.5
"""Waiting that takes this much of the time takes most of it."""

MACHINE_FULL = 0.9
CLEAR_LEAD = 0.15
"""How far ahead of the next one a suspect must be to be the only one."""

NOTABLE = 0.25
"""The share of a machine's cores from which on others are named."""

MENTIONED = 0.01
"""The least share that is listed."""

SHORTEST = 0.5
"""Seconds of work below which nothing is concluded."""

ENOUGH = 20
"""Looks below which their shares tell nothing; it is a second's worth."""


class Suspect(enum.Enum):
    """What may limit."""

    MACHINE = "machine_cpu"
    CLIENT = "client_cpu"
    SERVER = "server_cpu"
    WAL = "wal"
    WAITS = "server_waits"
    ROUND_TRIPS = "round_trips"


NAMES: Mapping[Suspect, str] = {
    Suspect.MACHINE: "this machine's CPU",
    Suspect.CLIENT: "client CPU",
    Suspect.SERVER: "server CPU",
    Suspect.WAL: "the WAL",
    Suspect.WAITS: "other waits in the server",
    Suspect.ROUND_TRIPS: "round trips",
}

THRESHOLDS: Mapping[Suspect, float] = {
    Suspect.MACHINE: MACHINE_FULL,
    Suspect.CLIENT: FULL,
    Suspect.SERVER: FULL,
    Suspect.WAL: MOST,
    Suspect.WAITS: MOST,
    Suspect.ROUND_TRIPS: MOST,
}


WAITS_WITHOUT_CPU = frozenset({Suspect.WAL, Suspect.WAITS, Suspect.ROUND_TRIPS})
"""Who waits for one of these most of the time does not wait for a processor, however busy the processors are."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is judged by. Times in seconds, CPU in cores.

    `looks` is how often the server was looked at, 0 where that failed midway; `computing`, `wal` and `waiting` are
    shares of these looks. `event` is what was waited for most, the WAL left out. Of a server that is not on this
    machine `server_cpu` is None; `machine_cpu` is None where it cannot be read. `statements` came one after the other,
    with `exchanges` round trips each.
    """

    seconds: float
    jobs: int
    client_cpu: float
    server_cpu: float | None = None
    machine_cpu: float | None = None
    machine_cores: float = 1
    looks: int = 0
    computing: float = 0.0
    wal: float = 0.0
    waiting: float = 0.0
    event: str | None = None
    statements: int = 0
    round_trip: float = 0.0
    exchanges: int = 1
    commit: float = 0.0

    @property
    def sees(self) -> bool:
        """Whether there are looks enough."""
        return self.looks >= ENOUGH

    @classmethod
    def of(cls, figures: Figures) -> Evidence:
        """The evidence in the figures."""
        work, observed, trips = figures.work, figures.work.observed, figures.trips
        waits = {name: count for name, count in observed.events.items() if not is_wal_event(name.partition(":")[2])}
        return cls(
            seconds=work.seconds,
            jobs=work.tally.completed,
            client_cpu=work.client_cpu,
            server_cpu=observed.cpu,
            machine_cpu=work.machine_cpu,
            machine_cores=work.machine_cores,
            looks=0 if observed.error else observed.samples,
            computing=observed.computing,
            wal=observed.wal,
            waiting=observed.waiting,
            event=max(waits, key=lambda event: waits[event], default=None),
            statements=max(work.tally.claims, work.tally.completions),
            round_trip=trips.round_trip,
            exchanges=trips.exchanges,
            commit=trips.commit,
        )


@dataclass(frozen=True)
class Verdict:
    """`limits` is None where nothing clearly does. `shares` has every suspect whose share is known."""

    limits: Suspect | None
    sentence: str
    shares: Mapping[Suspect, float]


def judge(evidence: Evidence) -> Verdict:
    """What limits, and what to change."""
    shares = find_shares(evidence)
    if evidence.seconds < SHORTEST:
        return Verdict(
            None,
            f"too short to say what limits: {counted(evidence.jobs, 'job')} in {evidence.seconds:.2g} s "
            "(a larger -n or a longer --duration tells)",
            shares,
        )
    guilty = _guilty(shares)
    if not guilty:
        sentence = f"no single limit: {_list(shares) or 'nothing is busy'}; {_TRY_MORE}"
    elif len(guilty) > 1:
        sentence = f"no single limit, several at once: {_list({each: shares[each] for each in guilty})}; {_TRY_MORE}"
    else:
        sentence = _SENTENCES[guilty[0]](evidence, shares)
    if guilty != [Suspect.MACHINE]:
        sentence += _disturbance(evidence)
    return Verdict(guilty[0] if len(guilty) == 1 else None, sentence, shares)


def _guilty(shares: Mapping[Suspect, float]) -> list[Suspect]:
    """Those that limit, most first: one, or several that are close to each other, or none."""
    ranked = sorted(shares, key=lambda suspect: -shares[suspect])
    guilty = [suspect for suspect in ranked if shares[suspect] >= THRESHOLDS[suspect]]
    if Suspect.MACHINE in guilty:
        waits = [suspect for suspect in guilty if suspect in WAITS_WITHOUT_CPU]
        if not waits:
            return [Suspect.MACHINE]
        guilty = waits
    return [suspect for suspect in guilty if shares[guilty[0]] - shares[suspect] < CLEAR_LEAD]


def find_shares(evidence: Evidence) -> dict[Suspect, float]:
    """How much of the time each suspect explains, from 0 to 1; without those of which nothing is known."""
    shares = {Suspect.CLIENT: evidence.client_cpu}
    if evidence.machine_cpu is not None:
        shares[Suspect.MACHINE] = evidence.machine_cpu / evidence.machine_cores
    if evidence.sees:
        cpu = evidence.server_cpu
        shares[Suspect.SERVER] = evidence.computing if cpu is None else min(evidence.computing, cpu)
        shares[Suspect.WAITS] = evidence.waiting
        shares[Suspect.WAL] = evidence.wal
    elif evidence.seconds > 0:
        shares[Suspect.WAL] = evidence.statements * evidence.commit / evidence.seconds
    if evidence.seconds > 0:
        trips = evidence.statements * evidence.exchanges
        shares[Suspect.ROUND_TRIPS] = trips * evidence.round_trip / evidence.seconds
    return {suspect: min(1.0, share) for suspect, share in shares.items()}


# -- sentences

_TRY_MORE = "try a second worker process"


def _machine(evidence: Evidence, _shares: Mapping[Suspect, float]) -> str:
    parts, cures = [f"client {evidence.client_cpu:.1f}"], ["more cores"]
    if evidence.server_cpu is not None:
        parts.append(f"server {evidence.server_cpu:.1f}")
        cures.append("a machine of its own for the server")
    others = _others(evidence)
    if others:
        parts.append(others)
        cures.append("fewer others")
    return (
        f"the CPU of this machine limits: {evidence.machine_cpu or 0.0:.1f} cores of {evidence.machine_cores:g} "
        f"are busy ({', '.join(parts)}); {' or '.join(cures)} would help"
    )


def _disturbance(evidence: Evidence) -> str:
    """What to add where others keep this machine so busy that the figures are not to be trusted."""
    others = _others(evidence)
    if not others or (evidence.machine_cpu or 0.0) < MACHINE_FULL * evidence.machine_cores:
        return ""
    return f" (and measure again when this machine is quieter: {others} of {evidence.machine_cores:g} cores)"


def _others(evidence: Evidence) -> str:
    """The cores used by what is neither client nor, where that is known, server; nothing where it is little."""
    used = (evidence.machine_cpu or 0.0) - evidence.client_cpu - (evidence.server_cpu or 0.0)
    if used < NOTABLE * evidence.machine_cores:
        return ""
    return f"others{' or the server' if evidence.server_cpu is None else ''} {used:.1f}"


def _client(_evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    return (
        f"the client's CPU limits: {percent(shares[Suspect.CLIENT])} of a core{_beside(Suspect.SERVER, shares)}; "
        "run more worker processes"
    )


def _server(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    known = "" if evidence.server_cpu is None else f" ({evidence.server_cpu:.1f} cores)"
    return (
        f"the server's CPU limits: a connection computes in {percent(evidence.computing)} of the looks{known}"
        f"{_beside(Suspect.CLIENT, shares)}; a faster server helps, and more worker processes while it has idle cores"
    )


def _wal(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    share = percent(shares[Suspect.WAL])
    if evidence.sees:
        found = f"connections wait for it in {share} of the looks"
    else:
        commits = f"{counted(evidence.statements, 'commit')} of {milliseconds(evidence.commit)} each"
        found = f"too few looks to see it, but {commits}, one after the other, take {share} of the time"
    return f"writing the WAL limits: {found}; a faster disk for the WAL helps, or a nearer synchronous standby"


def _waits(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    most = f", mostly for {evidence.event}" if evidence.event else ""
    return (
        f"waiting inside the server limits: connections wait in {percent(shares[Suspect.WAITS])} of the looks{most}; "
        f"{_cure_of(evidence.event)}"
    )


def _round_trips(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    trips = counted(evidence.statements * evidence.exchanges, "round trip")
    return (
        f"round trips limit: {trips} of {milliseconds(evidence.round_trip)} each, one after the other, take "
        f"{percent(shares[Suspect.ROUND_TRIPS])} of the time; work nearer to the server, with a larger max_workers, or "
        "in more processes"
    )


_SENTENCES = {
    Suspect.MACHINE: _machine,
    Suspect.CLIENT: _client,
    Suspect.SERVER: _server,
    Suspect.WAL: _wal,
    Suspect.WAITS: _waits,
    Suspect.ROUND_TRIPS: _round_trips,
}


def _cure_of(event: str | None) -> str:
    kind = (event or "").partition(":")[0]
    if kind == "IO":
        return "a faster disk helps, or more shared_buffers"
    if kind == "Lock":
        return "pg_locks tells who holds what is waited for"
    return "Postgres' documentation has a table of what it waits for"


def _beside(other: Suspect, shares: Mapping[Suspect, float]) -> str:
    return f", beside {NAMES[other]} {percent(shares[other])}" if other in shares else ""


def _list(shares: Mapping[Suspect, float]) -> str:
    ranked = sorted((each for each in shares if shares[each] >= MENTIONED), key=lambda suspect: -shares[suspect])
    return ", ".join(f"{NAMES[suspect]} {percent(shares[suspect])}" for suspect in ranked)
