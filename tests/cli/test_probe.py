"""What makes a worker live, ready and leader: seconds are counted by ticks that the test makes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.cli.probe import LONGEST_BLOCK, LONGEST_TROUBLE, Probe
from riverq.stats import ClientStats, LeaderStats, LivenessStats, LoopStats, QueueStats

QUEUE = QueueStats(
    name="default", max_workers=1, running=0, stuck=0, paused=False, claims=0, claimed=0, ended=0, failed_claims=0
)
ZERO = timedelta(0)
STATS = ClientStats(
    client_id="a",
    queues=(QUEUE,),
    leader=LeaderStats(
        takes_part=True, is_leader=False, elected_at=None, last_renewal=None, failures_in_a_row=0, trust_left=ZERO
    ),
    liveness=LivenessStats(enabled=True, last_seen=None, failures_in_a_row=0, holds_lock=False),
    loop=LoopStats(blocked=0, longest_block=ZERO, blocked_now=ZERO),
    listening=True,
    delivering=True,
    poll_only=False,
    written=0,
    lost=0,
    unknown_stuck=0,
)


class Running:
    """What the probe knows of a runtime."""

    def __init__(self) -> None:
        self.found: ClientStats | None = STATS
        self.is_stopping = False

    def stats(self) -> ClientStats:
        if self.found is None:
            raise RuntimeError("the counters are being changed")
        return self.found

    def counted(self, claims: int, failed: int) -> None:
        self.found = replace(STATS, queues=(replace(QUEUE, claims=claims, failed_claims=failed),))


async def begun() -> tuple[Probe, Running]:
    probe, running = Probe(asyncio.get_running_loop()), Running()
    started: Any = running
    probe.started(started)
    return probe, running


async def tick(probe: Probe) -> None:
    """A second passes, in which the loop answers."""
    probe.tick(1.0)
    await asyncio.sleep(0)


async def test_a_worker_is_ready_between_its_start_and_its_stop() -> None:
    probe = Probe(asyncio.get_running_loop())
    assert (probe.health().live, probe.health().ready, probe.health().why) == (True, False, "starting")
    probe, running = await begun()
    assert (probe.health().live, probe.health().ready, probe.health().why) == (True, True, "")
    assert probe.health().figures["queues"][0]["name"] == "default"
    running.is_stopping = True
    assert (probe.health().live, probe.health().ready, probe.health().why) == (True, False, "stopping")


async def test_it_leads_when_its_client_believes_so() -> None:
    probe, running = await begun()
    assert not probe.health().leader
    running.found = replace(STATS, leader=replace(STATS.leader, is_leader=True))
    assert probe.health().leader


async def test_a_loop_that_does_not_answer_is_not_live_after_a_while() -> None:
    probe, _ = await begun()
    probe.tick(1.0)
    for _ in range(int(LONGEST_BLOCK) - 1):
        probe.tick(1.0)
        assert probe.health().live
    probe.tick(1.0)
    assert not probe.health().live
    assert not probe.health().ready
    assert probe.health().why == "the event loop has not run for 30 s"
    await asyncio.sleep(0)
    assert probe.health().ready


async def test_a_process_that_was_stopped_is_not_dead_when_it_goes_on() -> None:
    probe, _ = await begun()
    probe.tick(1.0)
    probe.tick(3600.0)  # the clock went on, nobody ticked
    assert probe.health().live


async def test_failures_alone_make_it_unready_after_a_while_and_a_success_ends_that() -> None:
    probe, running = await begun()
    await tick(probe)
    for number in range(1, int(LONGEST_TROUBLE)):
        running.counted(0, number)
        await tick(probe)
        assert probe.health().ready
    running.counted(0, 99)
    await tick(probe)
    assert probe.health().why == "trouble with the database for 10 s"
    assert probe.health().live
    running.counted(1, 100)
    await tick(probe)
    assert probe.health().ready


@pytest.mark.parametrize("sign", ["claim", "renewal", "proof of life"])
async def test_any_success_between_failures_is_enough(sign: str) -> None:
    probe, running = await begun()
    for number in range(60):
        running.counted(number if sign == "claim" else 0, number)
        assert running.found is not None
        at = datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC)
        if sign == "renewal":
            running.found = replace(running.found, leader=replace(STATS.leader, last_renewal=at))
        elif sign == "proof of life":
            running.found = replace(running.found, liveness=replace(STATS.liveness, last_seen=at))
        await tick(probe)
        assert probe.health().ready


@pytest.mark.parametrize(("poll_only", "ready"), [(False, False), (True, True)])
async def test_a_client_that_neither_hears_nor_polls_is_in_trouble(poll_only: bool, ready: bool) -> None:
    probe, running = await begun()
    running.found = replace(STATS, listening=False, poll_only=poll_only)
    for _ in range(30):
        await tick(probe)
    assert probe.health().ready is ready


async def test_a_single_failure_of_an_idle_client_is_forgotten() -> None:
    probe, running = await begun()
    running.counted(0, 1)
    for _ in range(70):
        await tick(probe)
    assert probe.health().ready


async def test_figures_that_cannot_be_had_are_left_out() -> None:
    probe, running = await begun()
    running.found = None
    await tick(probe)
    assert (probe.health().live, probe.health().ready, probe.health().figures) == (True, True, {})
