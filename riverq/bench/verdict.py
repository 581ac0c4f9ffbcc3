"""What keeps the work from going faster, in one sentence, with the figures behind it and what to change.

A pure function of the figures. Each suspect has a share of the time that it explains, and a threshold:

    the machine's CPU   every core of this machine is busy, whoever with: named before what it starves, but not
                        before waiting that needs no processor
    the client's CPU    of one core, which is all that one Python process has
    the server's CPU    of the looks at the server, those in which a connection of ours computes
    the WAL             the looks in which one waits for it, or statements × commit, whichever explains more
    other waits         the looks in which one waits for anything else inside the server
    round trips         statements × what the smallest statement takes
    the cooldown        claims × the pause that the settings put between them, as far as nobody is busy meanwhile

Statements are those of the longer chain, claims or completions: each chain runs one after the other, and beside the
other one. A suspect limits if its share reaches its threshold and no other that does is close behind; otherwise no
single one does, and the sentence says so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from riverq.bench.figures import Figures, is_wal_event

FULL = 0.85
"""A processor this busy is what one waits for; the rest is the pauses between statements."""

MOST = 0.5
"""Waiting that takes this much of the time takes most of it."""

MACHINE_FULL = 0.9
CLEAR_LEAD = 0.15
"""How far ahead of the next one a suspect must be to be the only one."""

NOTABLE = 0.25
"""The share of a machine's cores from which on other processes are named."""

TOLERANCE = 0.05
"""By how much the pauses may seem longer than the time that they are in, since the first claim has none."""

MENTIONED = 0.01
"""The least share that is listed."""

SHORTEST = 0.5
"""Seconds of work below which nothing is concluded."""


class Suspect(enum.Enum):
    """What may limit."""

    MACHINE = "machine_cpu"
    CLIENT = "client_cpu"
    SERVER = "server_cpu"
    WAL = "wal"
    WAITS = "server_waits"
    ROUND_TRIPS = "round_trips"
    COOLDOWN = "fetch_cooldown"


NAMES: Mapping[Suspect, str] = {
    Suspect.MACHINE: "this machine's CPU",
    Suspect.CLIENT: "client CPU",
    Suspect.SERVER: "server CPU",
    Suspect.WAL: "the WAL",
    Suspect.WAITS: "other waits in the server",
    Suspect.ROUND_TRIPS: "round trips",
    Suspect.COOLDOWN: "fetch_cooldown",
}

THRESHOLDS: Mapping[Suspect, float] = {
    Suspect.MACHINE: MACHINE_FULL,
    Suspect.CLIENT: FULL,
    Suspect.SERVER: FULL,
    Suspect.WAL: MOST,
    Suspect.WAITS: MOST,
    Suspect.ROUND_TRIPS: MOST,
    Suspect.COOLDOWN: MOST,
}


WAITS_WITHOUT_CPU = frozenset({Suspect.WAL, Suspect.WAITS, Suspect.ROUND_TRIPS})
"""Who waits for one of these most of the time does not wait for a processor, however busy the processors are."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is judged by. Times in seconds, CPU in cores.

    `looks` is how often the server was looked at; `computing`, `wal` and `waiting` are shares of these looks. `event`
    is what was waited for most, the WAL left out. Of a server that is not on this machine `server_cpu` is None;
    `machine_cpu` is None where it cannot be read.
    """

    seconds: float
    jobs: int
    client_cpu: float
    server_cpu: float | None = None
    machine_cpu: float | None = None
    machine_cores: int = 1
    looks: int = 0
    computing: float = 0.0
    wal: float = 0.0
    waiting: float = 0.0
    event: str | None = None
    claims: int = 0
    completions: int = 0
    statement: float = 0.0
    commit: float = 0.0
    cooldown: float = 0.0

    @property
    def statements(self) -> int:
        """How many statements of the longer chain ran one after the other."""
        return max(self.claims, self.completions)

    @classmethod
    def of(cls, figures: Figures) -> Evidence:
        """The figures that count here."""
        work, trips, observed = figures.work, figures.trips, figures.work.observed
        waits = {event: n for event, n in observed.events.items() if not is_wal_event(event.partition(":")[2])}
        return cls(
            seconds=work.seconds,
            jobs=work.tally.completed,
            client_cpu=work.client_cpu,
            server_cpu=observed.cpu,
            machine_cpu=work.machine_cpu,
            machine_cores=work.machine_cores,
            looks=observed.samples,
            computing=observed.computing,
            wal=observed.wal,
            waiting=observed.waiting,
            event=max(waits, key=lambda event: waits[event], default=None),
            claims=work.tally.claims,
            completions=work.tally.completions,
            statement=trips.statement,
            commit=trips.commit,
            cooldown=figures.cooldown,
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
            f"too short to say what limits: {_count(evidence.jobs, 'job')} in {evidence.seconds:.2g} s "
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
    if Suspect.COOLDOWN in guilty:  # a pause is a pause, whatever else the machine is busy with
        return [Suspect.COOLDOWN]
    if Suspect.MACHINE in guilty:
        waits = [suspect for suspect in guilty if suspect in WAITS_WITHOUT_CPU]
        if not waits:
            return [Suspect.MACHINE]
        guilty = waits
    return [suspect for suspect in guilty if shares[guilty[0]] - shares[suspect] < CLEAR_LEAD]


def find_shares(evidence: Evidence) -> dict[Suspect, float]:
    """How much of the time each suspect explains, from 0 to 1; without those of which nothing is known."""
    shares: dict[Suspect, float] = {}
    machine = _machine_cpu(evidence)
    if machine is not None:
        shares[Suspect.MACHINE] = machine / evidence.machine_cores
    shares[Suspect.CLIENT] = evidence.client_cpu
    if evidence.looks:
        shares[Suspect.SERVER] = evidence.computing
        shares[Suspect.WAITS] = evidence.waiting
    elif evidence.server_cpu is not None:
        shares[Suspect.SERVER] = evidence.server_cpu
    if evidence.seconds > 0:
        shares[Suspect.WAL] = max(evidence.wal, evidence.statements * evidence.commit / evidence.seconds)
        shares[Suspect.ROUND_TRIPS] = evidence.statements * evidence.statement / evidence.seconds
        shares[Suspect.COOLDOWN] = _cooldown_share(evidence)
    return {suspect: min(1.0, share) for suspect, share in shares.items()}


def _cooldown_share(evidence: Evidence) -> float:
    """None of it where claims came faster: a claim that comes back full is followed by the next one at once."""
    pauses = evidence.claims * evidence.cooldown / evidence.seconds
    if pauses > 1 + TOLERANCE:
        return 0.0
    busy = max(evidence.client_cpu, evidence.computing, evidence.server_cpu or 0.0)
    return min(pauses, max(0.0, 1 - busy))


def _machine_cpu(evidence: Evidence) -> float | None:
    """What everybody uses. Where that cannot be read, what we use, if the server is here too."""
    if evidence.machine_cpu is not None:
        return evidence.machine_cpu
    return None if evidence.server_cpu is None else evidence.client_cpu + evidence.server_cpu


# -- sentences

_TRY_MORE = "try a second worker process"


def _machine(evidence: Evidence, _shares: Mapping[Suspect, float]) -> str:
    server, others = evidence.server_cpu, _others(evidence)
    parts = [f"client {evidence.client_cpu:.1f}"] + ([] if server is None else [f"server {server:.1f}"])
    cure = "more cores would help" + ("" if server is None else ", or a machine of its own for the server")
    if others and server is None:
        parts.append(f"all others, and the server if it is here, {others:.1f}")
        cure = "more cores would help, or fewer others"
    elif others:
        parts.append(f"other processes {others:.1f}")
        cure = "measure again when the other processes rest"
    used, cores = _machine_cpu(evidence) or 0.0, _count(evidence.machine_cores, "core")
    return f"the CPU of this machine limits: {used:.1f} of {cores} busy ({', '.join(parts)}); {cure}"


def _disturbance(evidence: Evidence) -> str:
    """What to add where others keep this machine so busy that the figures are not to be trusted."""
    others = _others(evidence)
    if not others or (_machine_cpu(evidence) or 0.0) < MACHINE_FULL * evidence.machine_cores:
        return ""
    who = "other processes" if evidence.server_cpu is not None else "other processes, or the server,"
    return f" (and measure again when this machine is quieter: {who} use {others:.1f} of its cores)"


def _others(evidence: Evidence) -> float:
    """How many cores processes use that are neither client nor, where that is known, server; 0 where it is little."""
    others = (_machine_cpu(evidence) or 0.0) - evidence.client_cpu - (evidence.server_cpu or 0.0)
    return others if others >= NOTABLE * evidence.machine_cores else 0.0


def _client(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    each = evidence.client_cpu * evidence.seconds / max(1, evidence.jobs)
    return (
        f"the client's CPU limits: {_percent(shares[Suspect.CLIENT])} of a core, {each * 1e6:.0f} µs a job"
        f"{_beside(Suspect.SERVER, shares)}; run more worker processes"
    )


def _server(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    known = ""
    if evidence.server_cpu is not None:
        each = evidence.server_cpu * evidence.seconds / max(1, evidence.jobs)
        known = f" ({evidence.server_cpu:.1f} cores, {each * 1e6:.0f} µs a job)"
    return (
        f"the server's CPU limits: a connection computes in {_percent(shares[Suspect.SERVER])} of the looks{known}"
        f"{_beside(Suspect.CLIENT, shares)}; a faster server helps, and more worker processes while it has idle cores"
    )


def _wal(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    return (
        f"writing the WAL limits: a commit takes {_milliseconds(evidence.commit)}, and connections wait for the WAL "
        f"in {_percent(evidence.wal)} of the looks; a faster disk for the WAL helps, or a nearer synchronous standby"
    )


def _waits(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    most = f", mostly for {evidence.event}" if evidence.event else ""
    return (
        f"waiting inside the server limits: connections wait in {_percent(shares[Suspect.WAITS])} of the looks{most}; "
        f"{_cure_of(evidence.event)}"
    )


def _round_trips(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    return (
        f"round trips limit: {_count(evidence.statements, 'statement')} of {_milliseconds(evidence.statement)} each, "
        f"one after the other, take {_percent(shares[Suspect.ROUND_TRIPS])} of the time; work nearer to the server, "
        "with a larger max_workers, or in more processes"
    )


def _cooldown(evidence: Evidence, shares: Mapping[Suspect, float]) -> str:
    claimed = evidence.jobs / max(1, evidence.claims)
    return (
        f"fetch_cooldown limits: {_count(evidence.claims, 'claim')} of about {claimed:.0f} jobs, "
        f"{_milliseconds(evidence.cooldown)} apart, explain {_percent(shares[Suspect.COOLDOWN])} of the time; "
        "raise max_workers or lower fetch_cooldown"
    )


_SENTENCES = {
    Suspect.MACHINE: _machine,
    Suspect.CLIENT: _client,
    Suspect.SERVER: _server,
    Suspect.WAL: _wal,
    Suspect.WAITS: _waits,
    Suspect.ROUND_TRIPS: _round_trips,
    Suspect.COOLDOWN: _cooldown,
}


def _cure_of(event: str | None) -> str:
    kind = (event or "").partition(":")[0]
    if kind == "IO":
        return "a faster disk helps, or more shared_buffers"
    if kind == "Lock":
        return "pg_locks tells who holds what is waited for"
    return "Postgres' documentation has a table of what it waits for"


def _beside(other: Suspect, shares: Mapping[Suspect, float]) -> str:
    return f", beside {NAMES[other]} {_percent(shares[other])}" if other in shares else ""


def _list(shares: Mapping[Suspect, float]) -> str:
    ranked = sorted((each for each in shares if shares[each] >= MENTIONED), key=lambda suspect: -shares[suspect])
    return ", ".join(f"{NAMES[suspect]} {_percent(shares[suspect])}" for suspect in ranked)


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}".replace(",", " ")
