"""What is measured, each for itself: the three ways of inserting, working a backlog, and the way from insert to start.

A queue for each, so that nothing works what another one counts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from riverq.bench.face import Face, Mark, Meter, Noop, Timed, make_face
from riverq.bench.figures import Latency, Rate, Work
from riverq.bench.plan import Countdown, Limit, Phase, Plan, Progress
from riverq.bench.processes import cores
from riverq.bench.watch import Watcher
from riverq.clock import SystemClock
from riverq.config import Config
from riverq.database import Database
from riverq.errors import DatabaseError, RiverqError, UnavailableError
from riverq.insert_opts import InsertItem
from riverq.query.measure import job_analyze, job_tally, wal_position

WARM_UP = "bench_warm_up"
INSERTED = "bench_inserted"
BACKLOG = "bench_backlog"
LATENCY = "bench_latency"

BATCH = 1000
COPIED = 5000
LOOK = 0.01
"""Seconds between two looks at how far the work is."""

STALLED = 30.0
"""Seconds without a single completed job after which the bench gives up."""

RATE = 100.0
"""Jobs a second for the way from insert to start: modest, so that most find their client at rest."""


@dataclass(frozen=True)
class Bench:
    """What every phase needs."""

    plan: Plan
    db: Database
    progress: Progress
    watcher: Watcher
    asynchronous: bool

    def begin(self, phase: Phase) -> Limit:
        """This phase begins; returns where it ends."""
        self.progress.begin(phase)
        return self.plan.limit(phase)

    def inserter(self) -> Face:
        """A client that only inserts, with an application's settings."""
        return make_face(self.db.driver, Config(schema=self.plan.schema), asynchronous=self.asynchronous)

    def worker(self, meter: Meter, queue: str) -> Face:
        """A client that works `queue` and tells `meter`."""
        config = Config(
            schema=self.plan.schema,
            fetch_cooldown=self.plan.cooldown,
            fetch_poll_interval=self.plan.poll_interval,
            workers=meter.workers(asynchronous=self.asynchronous),
            queues={queue: self.plan.queue_config()},
        )
        return make_face(self.db.driver, config, asynchronous=self.asynchronous)


# -- inserting


async def insert_one_by_one(bench: Bench, face: Face) -> Rate:
    """Each in a transaction of its own, the next when the one before has committed."""
    await face.insert(Noop(0), WARM_UP)
    limit = bench.begin(Phase.ONE)
    countdown, jobs, seconds = Countdown(limit), 0, 0.0
    while countdown.goes_on(jobs):
        seconds += (await face.insert(Noop(jobs), INSERTED)).seconds
        jobs += 1
        bench.progress.advance(countdown.share(jobs), jobs)
    return Rate(jobs, seconds)


async def insert_in_batches(bench: Bench, face: Face) -> Rate:
    """Batches of `BATCH`, each in a transaction of its own."""
    return await _insert_batches(bench, face, Phase.MANY)


async def insert_by_copy(bench: Bench, face: Face) -> Rate:
    """The backlog: batches of `COPIED`, each in a transaction of its own. The planner is told of them at the end."""
    rate = await _insert_batches(bench, face, Phase.COPY)
    await bench.db.run(job_analyze)
    return rate


async def _insert_batches(bench: Bench, face: Face, phase: Phase) -> Rate:
    insert, queue, size = (
        (face.insert_many_fast, BACKLOG, COPIED) if phase is Phase.COPY else (face.insert_many, INSERTED, BATCH)
    )
    countdown, jobs, seconds = Countdown(bench.begin(phase)), 0, 0.0
    while countdown.goes_on(jobs):
        items = [InsertItem(Noop(jobs + number), queue=queue) for number in range(countdown.left(jobs, size))]
        seconds += (await insert(items)).seconds
        jobs += len(items)
        bench.progress.advance(countdown.share(jobs), jobs)
    return Rate(jobs, seconds)


# -- working


async def work_backlog(bench: Bench, jobs: int) -> Work:
    """Work what was copied, to its end or for as long as there is time.

    The time begins with the first claim, as its rows tell; the client's CPU and what the server is seen to do are
    counted from the first job's start.
    """
    limit = bench.begin(Phase.WORK)
    meter = Meter()
    face = bench.worker(meter, BACKLOG)
    async with bench.watcher.watching():
        wal_before = await _wal_position(bench.db)
        try:
            await face.start()
            ended = await _until_worked(bench, face, Limit(jobs, limit.seconds))
            # At once, so that the WAL is that of the jobs counted; more of them are being completed.
            tally, wal_after = await asyncio.gather(bench.db.run_single(job_tally, BACKLOG), _wal_position(bench.db))
        finally:
            await face.stop()
    first = meter.first or ended
    return Work(
        tally=tally,
        seconds=(tally.worked_us or 0) / 1_000_000,
        client_cpu=_cores(first.cpu, ended.cpu, ended.at - first.at) or 0.0,
        machine_cpu=_cores(first.everybody, ended.everybody, ended.at - first.at),
        machine_cores=cores(),
        wal_bytes=None if wal_before is None or wal_after is None else wal_after - wal_before,
        observed=bench.watcher.between(first.at, ended.at),
    )


def _cores(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None or seconds <= 0 else (after - before) / seconds


async def _until_worked(bench: Bench, face: Face, limit: Limit) -> Mark:
    assert limit.jobs is not None
    clock, countdown = SystemClock(), Countdown(limit)
    stats = face.runtime.services.completer.stats
    seen, moved = 0, clock.monotonic()
    while stats.written < limit.jobs:
        if stats.written > 0 and countdown.share(0) >= 1.0:
            break
        if stats.written != seen:
            seen, moved = stats.written, clock.monotonic()
        elif clock.monotonic() - moved > STALLED:
            raise RiverqError(
                f"no job was completed for {STALLED:g} s, after {seen} of {limit.jobs} "
                "(riverq --debug bench … shows what was tried, pg_stat_activity what the server is at)"
            )
        bench.progress.advance(countdown.share(stats.written), stats.written)
        await clock.sleep(LOOK)
    return Mark.now()


async def _wal_position(db: Database) -> int | None:
    try:
        return await db.run_single(wal_position)
    except UnavailableError:
        raise
    except DatabaseError:
        return None


# -- from insert to start


async def measure_latency(bench: Bench) -> Latency:
    """Single jobs at a modest rate, not in step with anything, by and to a client that has nothing else to do.

    It inserts them itself because a client notifies a queue at most once in its `fetch_cooldown`, which is the plan's
    here.
    """
    limit = bench.begin(Phase.LATENCY)
    clock, meter, rng = SystemClock(), Meter(), random.Random()
    face = bench.worker(meter, LATENCY)
    called: list[float] = []
    try:
        await face.start()
        await face.insert(Timed(-1), LATENCY)
        await _until(lambda: -1 in meter.arrived)
        countdown, began = Countdown(limit), perf_counter()
        while countdown.goes_on(len(called)):
            called.append((await face.insert(Timed(len(called)), LATENCY)).began)
            bench.progress.advance(countdown.share(len(called)), len(called))
            await clock.sleep(rng.uniform(0.5, 1.5) / RATE)
        per_second = len(called) / (perf_counter() - began)
        await _until(lambda: len(meter.arrived) > len(called))
        listens = face.runtime.services.notifier.is_delivering
    finally:
        await face.stop()
    seconds = tuple(meter.arrived[number] - at for number, at in enumerate(called))
    return Latency(seconds, per_second, listens)


async def _until(is_so: Callable[[], bool]) -> None:
    clock = SystemClock()
    limit = clock.monotonic() + STALLED
    while not is_so():
        if clock.monotonic() > limit:
            raise RiverqError(
                f"a job that was inserted did not begin within {STALLED:g} s "
                "(riverq --debug bench … shows what was tried, pg_stat_activity what the server is at)"
            )
        await clock.sleep(LOOK)
