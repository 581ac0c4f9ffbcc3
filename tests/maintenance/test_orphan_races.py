"""When the leader does not believe its own eyes, and what happens between looking and writing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from riverq.maintenance import orphan_rescuer
from tests.fix_database import EngineMaker
from tests.maintenance.rescuing import GRACE, HOUR, LEADER, Life, Setup
from tests.maintenance.rescuing import orphan_rescuer as rescuer
from tests.query.arrange import Table

MINUTE = timedelta(minutes=1)


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    yield table
    table.conn.close()


@pytest.fixture
async def setup(make_engine: EngineMaker, schema: str, table: Table) -> AsyncIterator[Setup]:
    setup = Setup(make_engine, schema, table)
    setup.client("leader", incarnation=LEADER)
    yield setup
    await setup.close()


# -- holding off


async def test_a_leader_that_has_just_started_declares_nobody_dead(setup: Setup) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    service = rescuer(setup, life=Life(2 * GRACE - timedelta(microseconds=1), 2 * GRACE))
    await service.start()
    await service.ticked.wait()
    assert await service.held_off.wait() == 2 * GRACE - timedelta(microseconds=1)
    assert setup.states() == {job: "running"}
    await setup.clock.until_sleeping(1)
    await setup.clock.advance(10)
    await service.ticked.wait()
    assert setup.states() == {job: "available"}
    await service.stop()


async def test_a_leader_without_a_row_of_its_own_declares_nobody_dead(setup: Setup) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    life = Life()
    life.incarnation = None
    service = rescuer(setup, life=life)
    await service.run_once()
    assert service.held_off.waiting == 1
    assert setup.states() == {job: "running"}


async def test_a_leader_that_slept_before_the_write_rescues_nothing(setup: Setup) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    service = rescuer(setup, life=Life(2 * GRACE, timedelta(0)))
    await service.run_once()
    assert service.judged.waiting == 1
    assert setup.states() == {job: "running"}


async def test_a_leader_that_slept_between_its_check_and_the_write_rescues_nothing(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own row has gone stale when the statement comes to run."""
    setup.client("dead", HOUR)
    job = setup.run()
    before_the_write(setup, monkeypatch, "UPDATE {schema}.riverq_client SET seen_at = seen_at - interval '11s'")
    await rescuer(setup).run_once()
    assert setup.states() == {job: "running"}


async def test_failover_kills_nobody(setup: Setup) -> None:
    """All locks are gone at once, and every client was seen within the grace."""
    for name in ("a", "b"):
        setup.client(name, GRACE - timedelta(seconds=5), lock_taken=True)
        setup.run(client_id=name, span=timedelta(seconds=40))
    await rescuer(setup).run_once()
    assert set(setup.states().values()) == {"running"}


async def test_a_connection_that_ends_is_noticed_by_the_next_tick(setup: Setup, database_url: str) -> None:
    """The client has been silent since the grace ended, but its listener's connection holds the lock until then."""
    client = setup.client("dead", MINUTE, lock_taken=True)
    job = setup.run(span=2 * MINUTE)
    service = rescuer(setup)
    with psycopg.connect(database_url, autocommit=True) as listener:
        name = f'"{setup.schema}".riverq_client'
        listener.execute("SELECT pg_advisory_lock_shared(to_regclass(%s)::oid::int4, %s)", (name, client))
        await service.run_once()
        assert setup.states() == {job: "running"}
        pid = listener.info.backend_pid
    setup.table.sql("SELECT pg_terminate_backend(%s, 5000)", pid)
    await service.run_once()
    assert setup.states() == {job: "available"}


# -- between looking and writing


def before_the_write(setup: Setup, monkeypatch: pytest.MonkeyPatch, text: str, *params: Any) -> None:
    """Somebody commits this after the orphans were selected and before they are written."""
    original = orphan_rescuer._rescue_orphans

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        setup.table.sql(text, *params)
        return original(*args, **kwargs)

    monkeypatch.setattr(orphan_rescuer, "_rescue_orphans", meanwhile)


async def test_a_client_that_comes_back_keeps_its_jobs(
    setup: Setup, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = setup.client("back", HOUR)
    setup.client("dead", HOUR)
    kept, lost = setup.run(client_id="back"), setup.run()
    before_the_write(setup, monkeypatch, "UPDATE {schema}.riverq_client SET seen_at = now() WHERE id = %s", back)
    await rescuer(setup, adapter).run_once()
    assert setup.states() == {kept: "running", lost: "available"}


async def test_a_job_that_completes_meanwhile_stays_completed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.client("dead", HOUR)
    done, lost = setup.run(), setup.run()
    complete = "UPDATE {job} SET state = 'completed', finalized_at = now() WHERE id = %s"
    before_the_write(setup, monkeypatch, complete, done)
    await rescuer(setup).run_once()
    assert setup.states() == {done: "completed", lost: "available"}
    assert setup.table.get(done)["errors"] is None


async def test_a_job_that_is_cancelled_meanwhile_is_cancelled(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    mark = """UPDATE {job} SET metadata = '{{"cancel_attempted_at": "2026-01-01T00:00:00Z"}}' WHERE id = %s"""
    before_the_write(setup, monkeypatch, mark, job)
    await rescuer(setup).run_once()
    assert setup.states() == {job: "cancelled"}
    assert setup.notified.waiting == 0


async def test_a_locked_job_waits_for_the_next_tick(setup: Setup) -> None:
    setup.client("dead", HOUR)
    locked, free = setup.run(), setup.run()
    service = rescuer(setup)
    with setup.table.conn.transaction():
        setup.table.sql("SELECT FROM {job} WHERE id = %s FOR UPDATE", locked)
        await service.run_once()
        assert setup.states() == {locked: "running", free: "available"}
    await service.run_once()
    assert setup.states() == {locked: "available", free: "available"}


async def test_two_leaders_for_a_moment_are_harmless(setup: Setup) -> None:
    setup.client("dead", HOUR)
    ids = [setup.run() for _ in range(20)]
    services = [rescuer(setup, "psycopg_async"), rescuer(setup, "asyncpg"), rescuer(setup, "pg8000")]
    for service in services:
        await service.start()
    for service in services:
        await service.ticked.wait()
        await service.stop()
    assert [setup.table.get(each)["metadata"] for each in ids] == [{"river:rescue_count": 1}] * 20
    assert sum(service.num_rescued for service in services) == 20
