"""`riverq worker --processes N`: starts N workers, restarts the dead, passes signals on, renews them one by one.

Each worker is a fresh process in a process group of its own, so that a terminal's Ctrl-C reaches it once, through here.
A socket ties it to the supervisor (`riverq.cli.tether`): when the supervisor dies, its workers stop softly.

- SIGTERM, SIGINT: the first, second and third mean what they mean to a single worker; workers that still live three
  seconds after the third are killed. No worker is started any more, and a renewal that is under way is given up.
- SIGHUP: each worker in turn stops softly and is followed by a new one; the next one's turn comes when that is ready,
  and only while all the others are ready, so that at most one is missing. A SIGHUP during a renewal makes another
  follow it. When the terminal that it was started from hangs up, SIGHUP means SIGTERM.
- A worker that ends by itself is followed by another after 1 s, doubling up to 30 s while they do not live a minute.
- The first worker is started alone: if it says by exit code 2 that it was called wrongly, so would all the others, and
  the supervisor ends with that code.

Everything happens in one event loop; the health server's threads only read. Exit code: 0 if every worker's last end was
clean, 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

from riverq.cli.bench_progress import say
from riverq.cli.child import WRONG_CALL, Bell, Slot
from riverq.cli.health import Health, HealthServer
from riverq.cli.stopping import CANCEL, HARD_EXIT, LEAVE, SOFT
from riverq.errors import ConfigError

MILLISECOND = timedelta(milliseconds=1)
FIRST_ALONE = 10.0
"""Seconds after which the others are started though the first has neither failed nor become ready."""

KILL_AFTER = HARD_EXIT + 1.0


def supervise(args: argparse.Namespace) -> int:
    """Supervise workers with the options of `args` until stopped; returns the exit code."""
    if args.client_id == "":  # which a number behind it would hide
        raise ConfigError("expected --client-id to be a text of 1 to 100 characters, got: ''")
    return asyncio.run(_supervise(args))


async def _supervise(args: argparse.Namespace) -> int:
    supervisor = Supervisor(args.processes, lambda number: command(args, number))
    server = None if args.health is None else HealthServer(args.health, supervisor.health)
    try:
        if server is not None:
            supervisor.say(f"health at {server.url}")
        return await supervisor.run()
    finally:
        if server is not None:
            server.close()


def command(args: argparse.Namespace, number: int) -> list[str]:
    """The command of one worker: the same options, without those that are the supervisor's."""
    # As for the script, the current folder comes in with the client only: a queue.py there must not hide Python's.
    safely = ["-P"] if os.path.basename(sys.argv[0]) == "riverq" else []
    words = [sys.executable, *safely, "-m", "riverq"] + (["--debug"] if args.debug else []) + ["worker"]
    words += ["--log-level", args.log_level]
    for name, given in (("--no-leader", args.no_leader), ("--json-logs", args.json_logs)):
        words += [name] if given else []
    if args.queues is not None:
        words.append(f"--queues={args.queues}")
    if args.soft_stop_timeout is not None:
        words.append(f"--soft-stop-timeout={args.soft_stop_timeout / MILLISECOND:.3f}ms")
    if args.client_id is not None:
        words.append(f"--client-id={args.client_id}_{number}")
    return [*words, "--", args.client]


class Supervisor:
    """Its slots, numbered from 1, and what it has been told."""

    def __init__(self, processes: int, command: Callable[[int], list[str]]) -> None:
        self._bell = Bell()
        self._slots = [Slot(number, command(number), self._bell, self.say) for number in range(1, processes + 1)]
        self._keepers: list[asyncio.Task[None]] = []
        self._level = 0
        self._renewals = 0
        self._renewing: asyncio.Task[None] | None = None
        self._had_terminal = _has_terminal()

    def say(self, text: str) -> None:
        """Print a line, if anybody reads it."""
        say(f"riverq supervisor: {text}", sys.stdout)

    # -- health

    def health(self) -> Health:
        """All live, all ready, any leads; each worker's figures. From any thread."""
        each = [slot.health() for slot in self._slots]
        why = next((f"worker {number}: {one.why}" for number, one in enumerate(each, 1) if one.why), "")
        workers = [
            {"number": slot.number, "pid": slot.pid, "restarts": slot.restarts, "live": one.live, "ready": one.ready}
            | {"leader": one.leader, "why": one.why, "figures": one.figures}
            for slot, one in zip(self._slots, each, strict=True)
        ]
        figures = {
            "processes": len(each),
            "ready": sum(one.ready for one in each),
            "renewing": self._renewing is not None,
            "stopping": self._level >= SOFT,
            "workers": workers,
        }
        if self._level >= SOFT:
            why = why or "stopping"
        return Health(
            live=all(one.live for one in each),
            ready=all(one.ready for one in each) and self._level < SOFT,
            leader=any(one.leader for one in each),
            why=why,
            figures=figures,
        )

    # -- the whole run

    async def run(self) -> int:
        """Until every worker has ended for good; the exit code."""
        self._take_signals()
        self.say(f"starting {_workers(len(self._slots))}")
        first, *others = self._slots
        first.may_refuse = True
        self._keep(first)
        await self._first_has_shown_itself(first)
        first.may_refuse = False
        if first.refused:
            return WRONG_CALL
        for slot in others if self._level < SOFT else ():
            self._keep(slot)
        told = asyncio.create_task(self._tell_when_ready())
        await asyncio.gather(*self._keepers)
        told.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
        failed = [slot for slot in self._slots if slot.last_code]
        if failed:
            self.say(f"stopped; {_workers(len(failed))} of {len(self._slots)} did not end cleanly")
            return 1
        self.say(f"stopped: {_workers(len(self._slots))}")
        return 0

    def _keep(self, slot: Slot) -> None:
        self._keepers.append(asyncio.create_task(slot.keep(lambda: self._level)))

    async def _first_has_shown_itself(self, first: Slot) -> None:
        try:
            async with asyncio.timeout(FIRST_ALONE):
                await self._bell.until(lambda: first.is_ready or first.ends > 0 or self._level >= SOFT)
        except TimeoutError:
            self.say("worker 1 is slow to start; starting the others")

    async def _tell_when_ready(self) -> None:
        await self._bell.until(self._all_ready)
        self.say(f"ready: {_workers(len(self._slots))}")

    def _all_ready(self) -> bool:
        return all(slot.is_ready for slot in self._slots)

    # -- signals

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _stop(self) -> None:
        self._level += 1
        if self._level == SOFT:
            self.say("stopping; waiting for running jobs (again to cancel them)")
            if self._renewing is not None:
                self._renewing.cancel()
        elif self._level == CANCEL:
            self.say("cancelling running jobs (again to leave at once)")
        elif self._level == LEAVE:
            asyncio.get_running_loop().call_later(KILL_AFTER, self._kill)
        for slot in self._slots:
            slot.order(min(self._level, LEAVE))
        self._bell.ring()

    def _kill(self) -> None:
        for slot in self._slots:
            slot.kill()

    def _hang_up(self) -> None:
        if self._had_terminal and not _has_terminal():
            self._had_terminal = False
            self._stop()
        elif self._level < SOFT:
            self._renewals += 1
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew())
            else:
                self.say("renewing once more after this")

    # -- renewing

    async def _renew(self) -> None:
        try:
            while self._renewals:
                self._renewals = 0
                self.say(f"renewing {_workers(len(self._slots))}, one by one")
                for slot in self._slots:
                    await self._renew_one(slot)
                self.say(f"renewed {_workers(len(self._slots))}")
        except asyncio.CancelledError:
            self.say("renewing is given up")
            raise
        finally:
            self._renewing = None

    async def _renew_one(self, slot: Slot) -> None:
        await self._bell.until(lambda: all(other.is_ready for other in self._slots if other is not slot))
        before = slot.starts
        slot.replace()
        await self._bell.until(lambda: slot.starts > before and slot.is_ready)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _has_terminal() -> bool:
    """Whether this process is on a terminal that has not hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
