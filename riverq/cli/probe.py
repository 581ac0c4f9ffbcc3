"""What a worker process says of its own health: three answers, and the figures of its client.

Live: the event loop has answered within the last 30 seconds. A thread asks it every second and counts the seconds of
its own ticks without an answer, not those of a clock: a process that was stopped (SIGSTOP, a suspended machine) did not
tick either, and is not called dead in the moment in which it goes on.

Ready: started, not stopping, and no trouble with the database that has lasted for 10 seconds. Trouble is a failed
claim, bid or proof of life, or a client that neither hears nor polls; a claim, renewal or proof that succeeds ends it.

Leader: the client believes that it leads, as `riverq.elector` means it.

Figures that cannot be had are left out; the three answers do not depend on them, but for that of the leader.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from riverq.cli.health import Health

if TYPE_CHECKING:
    from riverq.client.lifecycle import Runtime
    from riverq.stats import ClientStats

TICK = 1.0
LONGEST_BLOCK = 30.0
"""Seconds without an answer of the loop after which the process is not live."""

LONGEST_TROUBLE = 10.0
"""Seconds of trouble with the database after which the process is not ready."""

FORGET = 60.0
"""Seconds without another failure after which a client that hears again is believed, though it had nothing to do."""


class Probe:
    """Made in the loop that it watches. `health()` may be called from any thread, and does not wait for the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_tick: Callable[[Health], None] | None = None) -> None:
        self._loop = loop
        self._on_tick = on_tick
        self._runtime: Runtime | None = None
        self._reach = Reach()
        self._silent = 0.0
        self._asked = False
        self._told = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="riverq_probe", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def started(self, runtime: Runtime) -> None:
        """The client works: tell at once, not a second later."""
        self._runtime = runtime
        self._told.set()

    def close(self) -> None:
        """Watch no more."""
        self._closed = True
        self._told.set()
        if self._thread.ident is not None:
            self._thread.join(TICK)

    def health(self) -> Health:
        """As of now."""
        runtime = self._runtime
        stats = None if runtime is None else _stats(runtime)
        why_not_live = f"the event loop has not run for {self._silent:.0f} s" if self._silent >= LONGEST_BLOCK else ""
        why_not_ready = why_not_live
        if runtime is None:
            why_not_ready = why_not_ready or "starting"
        elif runtime.is_stopping:
            why_not_ready = why_not_ready or "stopping"
        elif trouble := self._reach.trouble:
            why_not_ready = why_not_ready or f"trouble with the database for {trouble:.0f} s"
        leads = stats is not None and stats.leader.is_leader
        figures: dict[str, Any] = {} if stats is None else asdict(stats)
        return Health(not why_not_live, not why_not_ready, leads, why_not_live or why_not_ready, figures)

    def tick(self, passed: float) -> None:
        """Ask the loop, or count how long it owes the answer; look at the client's luck with its database."""
        if self._asked:
            self._silent += min(passed, 2 * TICK)
        else:
            self._asked = True
            with suppress(RuntimeError):  # the loop is closed: the process is at its end
                self._loop.call_soon_threadsafe(self._answer)
        stats = None if self._runtime is None else _stats(self._runtime)
        if stats is not None:
            self._reach.look(stats, passed)

    def _answer(self) -> None:
        self._asked = False
        self._silent = 0.0

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closed:
            now = time.monotonic()
            self.tick(now - before)
            if self._on_tick is not None:
                self._on_tick(self.health())
            before = now
            self._told.wait(TICK)
            self._told.clear()


def _stats(runtime: Runtime) -> ClientStats | None:
    try:
        return runtime.stats()
    except Exception:  # noqa: BLE001  # counters change while they are read; a probe must not fail for it
        return None


class Reach:
    """Whether the database is there, as far as the figures tell. `trouble` is for how many seconds it is not."""

    def __init__(self) -> None:
        self._failures = 0
        self._successes: tuple[int, datetime | None, datetime | None] = (0, None, None)
        self._lasted = 0.0
        self._quiet = 0.0
        self._in_trouble = False

    @property
    def trouble(self) -> float:
        """Seconds, once they are too many; 0.0 while all is well."""
        return self._lasted if self._lasted >= LONGEST_TROUBLE else 0.0

    def look(self, stats: ClientStats, passed: float) -> None:
        """Compare with the last look, `passed` seconds ago."""
        failures = (
            sum(queue.failed_claims for queue in stats.queues)
            + stats.leader.failures_in_a_row
            + stats.liveness.failures_in_a_row
        )
        successes = (
            sum(queue.claims for queue in stats.queues),
            stats.leader.last_renewal,
            stats.liveness.last_seen,
        )
        failed = failures > self._failures or not (stats.listening or stats.poll_only)
        succeeded = successes != self._successes
        self._failures, self._successes = failures, successes
        self._quiet = 0.0 if failed else self._quiet + passed
        if succeeded or (stats.listening and self._quiet >= FORGET):
            self._in_trouble = False
        elif failed:
            self._in_trouble = True
        self._lasted = self._lasted + passed if self._in_trouble else 0.0
