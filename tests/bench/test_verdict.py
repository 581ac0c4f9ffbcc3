"""The verdict is a function of the figures: a table of cases, and the sentences for people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from riverq.bench.figures import Figures, Latency, Observed, Rate, Trips, Work
from riverq.bench.verdict import ENOUGH, SHORTEST, THRESHOLDS, Evidence, Suspect, find_shares, judge
from riverq.query.measure import ServerFacts, Tally

IDLE = Evidence(
    seconds=4.0,
    jobs=40_000,
    client_cpu=0.3,
    server_cpu=None,
    machine_cpu=0.5,
    machine_cores=8,
    looks=80,
    computing=0.3,
    wal=0.05,
    waiting=0.02,
    statements=45,
    round_trip=0.0003,
    commit=0.001,
)
"""Nothing is busy; each case changes what it is about."""

NONE = None


@pytest.mark.parametrize(
    ("change", "limits"),
    [
        ({}, NONE),
        # one processor's worth of Python, or the server's
        ({"client_cpu": 0.93}, Suspect.CLIENT),
        ({"client_cpu": 0.85}, Suspect.CLIENT),
        ({"client_cpu": 0.849}, NONE),
        ({"client_cpu": 1.1}, Suspect.CLIENT),
        ({"computing": 0.95}, Suspect.SERVER),
        ({"computing": 0.85}, Suspect.SERVER),
        ({"computing": 0.84}, NONE),
        ({"computing": 0.95, "server_cpu": 0.9}, Suspect.SERVER),
        ({"computing": 0.95, "server_cpu": 0.84}, NONE),
        ({"computing": 0.95, "looks": ENOUGH}, Suspect.SERVER),
        ({"computing": 0.95, "looks": ENOUGH - 1}, NONE),
        ({"looks": 0, "computing": 0.0, "server_cpu": 0.9}, NONE),
        # two at once
        ({"client_cpu": 0.9, "computing": 0.9}, NONE),
        ({"client_cpu": 1.0, "computing": 0.86}, NONE),
        ({"client_cpu": 1.0, "computing": 0.85}, Suspect.CLIENT),
        ({"computing": 0.9, "wal": 0.6}, Suspect.SERVER),
        ({"computing": 0.7, "wal": 0.6}, Suspect.WAL),
        # the disk
        ({"wal": 0.5}, Suspect.WAL),
        ({"wal": 0.49}, NONE),
        ({"commit": 0.05}, NONE),  # it was looked at, and it was not that
        ({"commit": 0.05, "looks": ENOUGH - 1}, Suspect.WAL),
        ({"commit": 0.044, "looks": ENOUGH - 1}, NONE),
        ({"wal": 0.9, "looks": ENOUGH - 1}, NONE),
        ({"waiting": 0.6, "event": "IO:DataFileRead"}, Suspect.WAITS),
        ({"waiting": 0.6, "looks": ENOUGH - 1}, NONE),
        ({"waiting": 0.6, "wal": 0.55}, NONE),
        # the way to the server
        ({"round_trip": 0.06}, Suspect.ROUND_TRIPS),
        ({"round_trip": 0.045}, Suspect.ROUND_TRIPS),
        ({"round_trip": 0.04}, NONE),
        ({"round_trip": 0.01, "exchanges": 5}, Suspect.ROUND_TRIPS),
        ({"round_trip": 0.05, "statements": 80}, Suspect.ROUND_TRIPS),
        ({"round_trip": 0.06, "wal": 0.6}, NONE),
        # this machine
        ({"machine_cpu": 7.5}, Suspect.MACHINE),
        ({"machine_cpu": 7.2}, Suspect.MACHINE),
        ({"machine_cpu": 7.1}, NONE),
        ({"machine_cpu": 8.0, "client_cpu": 0.95, "computing": 0.95}, Suspect.MACHINE),
        ({"machine_cpu": 8.0, "round_trip": 0.09}, Suspect.ROUND_TRIPS),
        ({"machine_cpu": 8.0, "round_trip": 0.03}, Suspect.MACHINE),
        ({"machine_cpu": 8.0, "wal": 0.7, "waiting": 0.65}, NONE),
        ({"machine_cpu": 8.0, "wal": 0.7}, Suspect.WAL),
        ({"machine_cpu": 8.0, "waiting": 0.7}, Suspect.WAITS),
        ({"machine_cpu": 1.4, "machine_cores": 1.5}, Suspect.MACHINE),
        ({"machine_cpu": None, "client_cpu": 0.9, "machine_cores": 1}, Suspect.CLIENT),
        # too short to tell
        ({"seconds": SHORTEST, "client_cpu": 0.95}, Suspect.CLIENT),
        ({"seconds": SHORTEST - 0.01, "client_cpu": 0.95}, NONE),
        ({"seconds": 0.0, "jobs": 0, "statements": 0, "looks": 0}, NONE),
    ],
)
def test_what_limits(change: dict[str, object], limits: Suspect | None) -> None:
    verdict = judge(replace(IDLE, **change))  # type: ignore[arg-type]  # each case names fields with their types
    assert verdict.limits is limits, verdict.sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"client_cpu": 0.93},
            ["client's CPU limits: 93 % of a core, beside server CPU 30 %; run more worker processes"],
        ),
        (
            {"computing": 0.95, "server_cpu": 1.2},
            ["the server's CPU limits", "95 % of the looks (1.2 cores), beside client CPU 30 %"],
        ),
        ({"wal": 0.6}, ["writing the WAL limits: connections wait for it in 60 % of the looks", "faster disk"]),
        (
            {"commit": 0.05, "looks": 3},
            ["too few looks to see it, but 45 commits of 50.0 ms each, one after the other, take 56 % of the time"],
        ),
        ({"waiting": 0.6, "event": "Lock:tuple"}, ["60 % of the looks, mostly for Lock:tuple", "pg_locks"]),
        ({"waiting": 0.6, "event": "IO:DataFileRead"}, ["a faster disk helps, or more shared_buffers"]),
        ({"waiting": 0.6}, ["60 % of the looks; Postgres' documentation"]),
        (
            {"round_trip": 0.06},
            ["round trips limit: 45 round trips of 60.0 ms each", "68 % of the time", "nearer to the server"],
        ),
        ({"round_trip": 0.0125, "exchanges": 5}, ["225 round trips of 12.5 ms each"]),
        ({"machine_cpu": 1.0, "machine_cores": 1, "client_cpu": 0.96}, ["1.0 cores of 1 are busy (client 1.0); more"]),
        (
            {"machine_cpu": 1.98, "machine_cores": 2, "client_cpu": 0.8, "server_cpu": 1.0},
            [
                "the CPU of this machine limits: 2.0 cores of 2 are busy (client 0.8, server 1.0); ",
                "; more cores or a machine of its own for the server would help",
            ],
        ),
        (
            {"machine_cpu": 2.0, "machine_cores": 2, "client_cpu": 0.4, "server_cpu": 0.2},
            ["(client 0.4, server 0.2, others 1.4); ", "or fewer others would help"],
        ),
        (
            {"machine_cpu": 1.5, "machine_cores": 1.5, "client_cpu": 0.4},
            ["1.5 cores of 1.5 are busy (client 0.4, others or the server 1.1); more cores or fewer others would help"],
        ),
        (
            {"wal": 0.7, "machine_cpu": 1.9, "machine_cores": 2, "server_cpu": 0.2},
            ["writing the WAL limits", "this machine is quieter: others 1.4 of 2 cores)"],
        ),
        (
            {"round_trip": 0.08, "machine_cpu": 1.9, "machine_cores": 2},
            ["round trips limit", "this machine is quieter: others or the server 1.6 of 2 cores)"],
        ),
        ({}, ["no single limit: client CPU 30 %, server CPU 30 %", "the WAL 5 %", "try a second worker process"]),
        (
            {"client_cpu": 0.9, "computing": 0.88},
            ["no single limit, several at once: client CPU 90 %, server CPU 88 %"],
        ),
        ({"seconds": 0.2, "jobs": 1}, ["too short to say what limits: 1 job in 0.2 s", "-n", "--duration"]),
    ],
)
def test_one_sentence_says_it_with_its_figures(change: dict[str, object], words: list[str]) -> None:
    sentence = judge(replace(IDLE, **change)).sentence  # type: ignore[arg-type]  # as above
    for each in words:
        assert each in sentence, sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")


def test_shares_are_from_0_to_1_and_only_of_what_is_known() -> None:
    shares = find_shares(replace(IDLE, client_cpu=1.3, round_trip=9.0))
    assert all(0 <= share <= 1 for share in shares.values())
    assert set(shares) == set(THRESHOLDS)
    unknown = find_shares(Evidence(seconds=1.0, jobs=1, client_cpu=0.1))
    assert Suspect.MACHINE not in unknown
    assert Suspect.SERVER not in unknown
    assert Suspect.WAITS not in unknown


def test_the_evidence_is_what_was_measured() -> None:
    tally = Tally(jobs=100, completed=90, runs=95, claims=3, completions=4, worked_us=2_000_000)
    events = {"IO:WALSync": 9, "Lock:tuple": 2, "IO:DataFileRead": 1}
    observed = Observed(samples=40, computing=0.5, wal=0.2, waiting=0.1, events=events, cpu=0.7)
    figures = Figures(
        server=ServerFacts("16", "on", "on"),
        adapter="asyncpg",
        asynchronous=True,
        trips=Trips(round_trip=0.001, statement=0.002, commit=0.003, exchanges=5),
        one=Rate(1, 1),
        many=Rate(1, 1),
        copy=Rate(100, 1),
        work=Work(tally, 2.0, 0.4, 1.5, 2, 1000, observed),
        latency=Latency((0.1,), 1.0, listens=True),
    )
    assert Evidence.of(figures) == Evidence(
        seconds=2.0,
        jobs=90,
        client_cpu=0.4,
        server_cpu=0.7,
        machine_cpu=1.5,
        machine_cores=2,
        looks=40,
        computing=0.5,
        wal=0.2,
        waiting=0.1,
        event="Lock:tuple",
        statements=4,
        round_trip=0.001,
        exchanges=5,
        commit=0.003,
    )
    failed = replace(figures, work=replace(figures.work, observed=replace(observed, error="gone")))
    assert Evidence.of(failed).looks == 0
