from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any, Literal

import pytest

from riverq.database import Database
from riverq.maintenance import job_rescuer
from riverq.maintenance.base import MaintenanceTiming
from riverq.maintenance.job_rescuer import JobRescuer
from riverq.service import ServiceContext
from tests.fix_database import EngineMaker
from tests.maintenance.rescuing import GRACE, HOUR, Fixed, Setup, make_rules
from tests.query.arrange import DEFAULT_MASK, Table
from tests.service.stress import stress_start_stop

AT_ONCE = MaintenanceTiming(stagger=timedelta(0))


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    yield table
    table.conn.close()


@pytest.fixture
async def setup(make_engine: EngineMaker, schema: str, table: Table) -> AsyncIterator[Setup]:
    setup = Setup(make_engine, schema, table)
    yield setup
    await setup.close()


def rescuer(
    setup: Setup,
    adapter: str = "psycopg_async",
    *,
    unknown: Literal["leave", "retry", "discard"] = "leave",
    grace: timedelta | None = GRACE,
    timing: MaintenanceTiming = AT_ONCE,
) -> JobRescuer:
    rules = make_rules(setup.ctx, unknown=unknown, policy=Fixed(timedelta(minutes=7)))
    found = JobRescuer(setup.ctx, setup.database(adapter), rules, horizon=HOUR, grace=grace, timing=timing)
    found.rescued.watch()
    found.ticked.watch()
    return found


def test_defaults(ctx: ServiceContext) -> None:
    timing = JobRescuer(ctx, None, None, horizon=HOUR, grace=None).timing  # type: ignore[arg-type]  # neither is asked
    assert (timing.interval, timing.batch_size) == (timedelta(seconds=30), 1_000)


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(setup: Setup, adapter: str) -> None:
    await stress_start_stop(rescuer(setup, adapter), rounds=10)


async def test_jobs_past_the_horizon_are_rescued(setup: Setup, adapter: str, caplog: pytest.LogCaptureFixture) -> None:
    stuck, fresh = setup.run(), setup.run(span=HOUR - timedelta(minutes=1))
    marked = setup.run(metadata={"cancel_attempted_at": "2026-01-01T00:00:00Z"})
    last, endless = setup.run(attempt=25, max_attempts=25), setup.run("endless", span=30 * 24 * HOUR)
    service = rescuer(setup, adapter)
    await service.start()
    await service.ticked.wait()
    assert setup.states() == {
        stuck: "retryable",
        fresh: "running",
        marked: "cancelled",
        last: "discarded",
        endless: "running",
    }
    row = setup.table.get(stuck)
    assert timedelta(minutes=6) < row["scheduled_at"] - setup.table.now() < timedelta(minutes=8)
    assert row["errors"][0]["error"] == "Stuck job rescued by JobRescuer"
    assert service.num_rescued == 3
    assert "JobRescuer: Rescued stuck jobs (num_jobs=3)" in caplog.text
    await service.stop()


async def test_a_job_that_completes_between_looking_and_writing_stays_completed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, stuck = setup.run(), setup.run()

    original = job_rescuer._rescue

    def complete_first(*args: Any) -> Any:
        setup.table.sql("UPDATE {job} SET state = 'completed', finalized_at = now() WHERE id = %s", done)
        return original(*args)

    monkeypatch.setattr(job_rescuer, "_rescue", complete_first)
    await rescuer(setup).run_once()
    assert setup.states() == {done: "completed", stuck: "retryable"}
    assert setup.table.get(done)["errors"] is None


async def test_ignored_jobs_keep_nobody_from_their_turn(setup: Setup) -> None:
    ignored = [setup.run("endless") for _ in range(6)]
    stuck = setup.run()
    timing = MaintenanceTiming(stagger=timedelta(0), batch_size=2, reduced_batch_size=1)
    service = rescuer(setup, timing=timing)
    await service.start()
    while not service.ticked.waiting:
        await setup.clock.until_sleeping(1)
        await setup.clock.advance(1)
    assert setup.states() == {**dict.fromkeys(ignored, "running"), stuck: "retryable"}
    await service.stop()


async def test_bad_rows_are_isolated(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """Args, metadata and errors that cannot be read, a key that is taken: the neighbours are rescued."""
    undecodable = setup.run("patient", args={"hours": "many"})
    odd = setup.run(metadata="[]", errors=[{"at": "yesterday"}])
    setup.table.add(unique_key=b"key", unique_states=DEFAULT_MASK, kind="mail")
    taken = setup.run(unique_key=b"key", unique_states=DEFAULT_MASK & ~64)
    good = setup.run()
    service = rescuer(setup)
    await service.run_once()
    states = setup.states()
    assert [states[each] for each in (undecodable, odd, taken, good)] == [
        "retryable",
        "retryable",
        "running",
        "retryable",
    ]
    assert f"JobRescuer: Could not rescue a job (job_id={taken}, error=23505)" in caplog.text


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_two_leaders_for_a_moment_are_harmless(setup: Setup, adapter: str) -> None:
    ids = [setup.run() for _ in range(20)]
    services = [rescuer(setup, adapter), rescuer(setup, "asyncpg")]
    for service in services:
        await service.start()
    for service in services:
        await service.ticked.wait()
        await service.stop()
    assert [setup.table.get(each)["metadata"] for each in ids] == [{"river:rescue_count": 1}] * 20
    assert sum(service.num_rescued for service in services) == 20


# -- whose client lives


async def test_a_living_clients_job_past_its_timeout_comes_back(setup: Setup) -> None:
    """Its claim's answer may have been lost; the horizon is the only rescue it has."""
    setup.client("lives")
    stuck, endless = setup.run(client_id="lives"), setup.run("endless", client_id="lives")
    await rescuer(setup).run_once()
    assert setup.states() == {stuck: "retryable", endless: "running"}


@pytest.mark.parametrize("grace", [GRACE, None])
@pytest.mark.parametrize("unknown", ["leave", "retry", "discard"])
async def test_unknown_kinds(
    setup: Setup, unknown: Literal["leave", "retry", "discard"], grace: timedelta | None
) -> None:
    setup.client("lives")
    setup.client("dead", silent=HOUR)
    theirs, dead, go = (setup.run("nobody's", client_id=each) for each in ("lives", "dead", "go-client"))
    service = rescuer(setup, unknown=unknown, grace=grace)
    await service.run_once()
    becomes = {"leave": "running", "retry": "retryable", "discard": "discarded"}[unknown]
    spared = unknown != "discard" and grace is not None
    assert setup.states() == {theirs: "running" if spared else becomes, dead: becomes, go: becomes}
    left = {dead, go} | (set() if spared else {theirs})
    assert service.left_unknown == (left if unknown == "leave" else set())


async def test_left_kinds_are_told_once_and_forgotten_with_leadership(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.run("nobody's")
    service = rescuer(setup)
    await service.start()
    await service.ticked.wait()
    await setup.clock.until_sleeping(1)
    await setup.clock.advance(30)
    await service.ticked.wait()
    assert len(service.left_unknown) == 1
    assert caplog.text.count("Left stuck jobs of kinds that have no worker here (num_jobs=1)") == 1
    await service.stop()
    assert service.left_unknown == frozenset()


async def test_args_that_a_newer_client_may_understand_are_left_to_it_while_it_lives(setup: Setup) -> None:
    setup.client("newer")
    theirs = setup.run("patient", client_id="newer", args={"days": 2})
    dead = setup.run("patient", client_id="go-client", args={"days": 2})
    service = rescuer(setup)
    await service.run_once()
    assert setup.states() == {theirs: "running", dead: "retryable"}
    assert service.left_unknown == frozenset()


async def test_without_the_registry_the_horizon_works(setup: Setup, table: Table) -> None:
    stuck = setup.run("patient", args={"days": 2})
    table.sql("ALTER TABLE {schema}.riverq_client RENAME TO was_riverq_client")
    try:
        await rescuer(setup, grace=None).run_once()
    finally:
        table.sql("ALTER TABLE {schema}.was_riverq_client RENAME TO riverq_client")
    assert setup.states() == {stuck: "retryable"}


async def test_an_error_waits_for_the_next_tick(setup: Setup) -> None:
    stuck = setup.run()
    service = rescuer(setup, timing=MaintenanceTiming(stagger=timedelta(0), timeout=timedelta(milliseconds=50)))
    service.tick_failed.watch()
    with setup.table.conn.transaction():
        setup.table.sql("LOCK TABLE {job} IN ACCESS EXCLUSIVE MODE")
        await service.start()
        await service.tick_failed.wait()
    await setup.clock.until_sleeping(1)
    await setup.clock.advance(30)
    assert isinstance(service._db, Database)
    while not service.ticked.waiting:
        await setup.clock.until_sleeping(1)
        await setup.clock.advance(30)
    assert setup.states() == {stuck: "retryable"}
    await service.stop()
