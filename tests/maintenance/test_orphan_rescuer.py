from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any, Literal

import psycopg
import pytest
import sqlalchemy as sa

from riverq.errors import PoolExhaustedError
from riverq.maintenance.orphan_rescuer import OrphanTiming
from tests.fix_database import EngineMaker
from tests.maintenance.rescuing import GRACE, HOUR, LEADER, Setup
from tests.maintenance.rescuing import orphan_rescuer as rescuer
from tests.query.arrange import Table
from tests.service.stress import stress_start_stop

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


@pytest.mark.parametrize(("grace", "interval"), [(30, 10), (300, 10), (6, 2), (15, 5)])
def test_dead_clients_are_looked_for_at_least_three_times_per_grace(grace: int, interval: int) -> None:
    timing = OrphanTiming(grace=timedelta(seconds=grace))
    assert (timing.interval, timing.batch_size) == (timedelta(seconds=interval), 1_000)


@pytest.mark.parametrize("adapter", ["psycopg_async", "pg8000"])
async def test_start_stop_stress(setup: Setup, adapter: str) -> None:
    await stress_start_stop(rescuer(setup, adapter), rounds=10)


async def test_the_jobs_of_a_dead_client_are_available_at_once(
    setup: Setup, adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    setup.client("dead", MINUTE, lock_taken=True)
    setup.client("lives")
    mail = setup.run(span=MINUTE, queue="mail", scheduled_at=setup.ago(HOUR))
    long = setup.run("endless", span=MINUTE, queue="long")
    theirs, go = setup.run(client_id="lives"), setup.run(client_id="go-client")
    service = rescuer(setup, adapter)
    await service.start()
    assert await setup.notified.wait() == ["long", "mail"]
    await service.ticked.wait()
    assert setup.states() == {mail: "available", long: "available", theirs: "running", go: "running"}
    row = setup.table.get(mail)
    assert timedelta(0) <= setup.table.now() - row["scheduled_at"] < MINUTE
    assert (row["attempt"], row["metadata"], len(row["errors"])) == (1, {"river:rescue_count": 1}, 1)
    assert service.num_rescued == 2
    assert "OrphanRescuer: Rescued the jobs of a dead client (client_id=dead, num_jobs=2)" in caplog.text
    await service.stop()


async def test_there_is_one_line_for_each_dead_client(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    for name, jobs in (("a", 3), ("b", 1)):
        setup.client(name, HOUR)
        for _ in range(jobs):
            setup.run(client_id=name)
    service = rescuer(setup, timing=OrphanTiming(grace=GRACE, stagger=timedelta(0), batch_size=3, reduced_batch_size=1))
    await service.start()
    while not service.ticked.waiting:
        await setup.clock.until_sleeping(1)
        await setup.clock.advance(1)
    found = [line.rpartition("dead client ")[2] for line in caplog.text.splitlines() if "dead client" in line]
    assert found == ["(client_id=a, num_jobs=3)", "(client_id=b, num_jobs=1)"]
    await service.stop()


async def test_later_rescues_go_by_the_retry_policy(setup: Setup) -> None:
    setup.client("dead", HOUR)
    job = setup.run(metadata={"river:rescue_count": 1})
    await rescuer(setup).run_once()
    row = setup.table.get(job)
    assert (row["state"], row["metadata"]) == ("retryable", {"river:rescue_count": 2})
    assert timedelta(minutes=6) < row["scheduled_at"] - setup.table.now() < timedelta(minutes=8)
    assert setup.notified.waiting == 0


async def test_cancelled_and_spent_jobs_end(setup: Setup) -> None:
    setup.client("dead", HOUR)
    marked = setup.run(metadata={"cancel_attempted_at": "2026-01-01T00:00:00Z"})
    spent = setup.run(attempt=25, max_attempts=25)
    await rescuer(setup).run_once()
    assert setup.states() == {marked: "cancelled", spent: "discarded"}
    assert setup.notified.waiting == 0


async def test_undecodable_parts_keep_nobody_from_rescue(setup: Setup) -> None:
    setup.client("dead", HOUR)
    bad = [
        setup.run("patient", args={"hours": "many"}),
        setup.run("patient", args={"hours": "many"}, metadata={"river:rescue_count": 1}),
        setup.run(metadata="[]", errors=[{"at": "yesterday"}]),
    ]
    good = setup.run()
    await rescuer(setup).run_once()
    states = setup.states()
    assert [states[each] for each in (*bad, good)] == ["available", "retryable", "available", "available"]


@pytest.mark.parametrize("unknown", ["leave", "retry", "discard"])
async def test_unknown_kinds_are_left_to_others(setup: Setup, unknown: Literal["leave", "retry", "discard"]) -> None:
    setup.client("dead", HOUR)
    nobodys, mail = setup.run("nobody's"), setup.run()
    service = rescuer(setup, unknown=unknown)
    await service.run_once()
    assert setup.states() == {nobodys: "running", mail: "available"}
    assert service.left_unknown == ({nobodys} if unknown == "leave" else set())


async def test_left_kinds_are_told_once_and_forgotten_with_leadership(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.client("dead", HOUR)
    setup.run("nobody's")
    service = rescuer(setup)
    await service.start()
    await service.ticked.wait()
    await setup.clock.until_sleeping(1)
    await setup.clock.advance(10)
    await service.ticked.wait()
    assert len(service.left_unknown) == 1
    assert caplog.text.count("Left jobs of dead clients whose kinds have no worker here (num_jobs=1)") == 1
    await service.stop()
    assert service.left_unknown == frozenset()


async def test_unknown_jobs_keep_nobody_from_their_turn(setup: Setup) -> None:
    setup.client("dead", HOUR)
    for _ in range(4):
        setup.run("nobody's")
    mail = setup.run()
    service = rescuer(setup, timing=OrphanTiming(grace=GRACE, stagger=timedelta(0), batch_size=2, reduced_batch_size=1))
    await service.start()
    while not service.ticked.waiting:
        await setup.clock.until_sleeping(1)
        await setup.clock.advance(1)
    assert setup.states()[mail] == "available"
    await service.stop()


# -- what else may fail


async def test_a_notification_that_fails_leaves_the_jobs_available(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    setup.notify_error = PoolExhaustedError("no connection became free in 5 s")
    await rescuer(setup).run_once()
    assert setup.states() == {job: "available"}
    assert "OrphanRescuer: Could not notify, producers will poll" in caplog.text


@pytest.fixture
def plain_role(database_url: str, schema: str) -> Iterator[str]:
    """A role that may do everything in the schema and read no locks."""
    role = f"{sa.make_url(database_url).database}_plain"  # roles are the server's, not the database's
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"DROP ROLE IF EXISTS {role}")
        admin.execute(f"CREATE ROLE {role}")
        for text in (
            f'GRANT USAGE ON SCHEMA "{schema}" TO {role}',
            f'GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO {role}',
            "REVOKE SELECT ON pg_locks FROM PUBLIC",
        ):
            admin.execute(text)
        yield role
        admin.execute("GRANT SELECT ON pg_locks TO PUBLIC")
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


@pytest.mark.own_session("the role that its connection takes on")
@pytest.mark.parametrize("adapter", ["psycopg", "asyncpg"])
async def test_where_locks_cannot_be_read_silence_alone_counts(
    setup: Setup, plain_role: str, adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    setup.client("dead", 10 * GRACE + MINUTE, lock_taken=True)
    setup.client("silent", 10 * GRACE - MINUTE, lock_taken=True)
    dead, silent = setup.run(), setup.run(client_id="silent")
    service = rescuer(setup, adapter)
    await service._db.run(become, plain_role)
    await service.run_once()
    await service.run_once()
    assert setup.states() == {dead: "available", silent: "running"}
    assert caplog.text.count("Judging dead clients by their silence alone") == 1


def become(conn: Any, schema: str, role: str) -> None:
    """The engine has one connection in use at a time, and gives the same one again."""
    conn.exec_driver_sql(f"SET ROLE {role}")


@pytest.mark.own_session("the role that its connection takes on")
async def test_what_else_is_not_allowed_is_an_error(setup: Setup, plain_role: str, table: Table) -> None:
    setup.client("dead", HOUR)
    job = setup.run()
    table.sql("REVOKE ALL ON {schema}.riverq_client FROM " + plain_role)
    service = rescuer(setup)
    await service._db.run(become, plain_role)
    await service.start()
    error = await service.tick_failed.wait()
    assert "riverq_client" in str(error) or "permission denied" in str(error)
    assert service._read_locks
    assert setup.states() == {job: "running"}
    await service.stop()


# -- the registry


async def test_old_rows_are_forgotten_once_an_hour(setup: Setup) -> None:
    service = rescuer(setup)
    for hours, left in ((0, ["leader"]), (0.5, ["leader", "old"]), (1.1, ["leader"])):
        setup.client("old", timedelta(days=2))
        await setup.clock.advance(hours * 3600)
        await service.run_once()
        rows = setup.table.sql("SELECT DISTINCT client_id FROM {schema}.riverq_client ORDER BY client_id")
        assert [row["client_id"] for row in rows] == left


async def test_the_row_of_a_dead_client_stays_while_its_jobs_are_left(setup: Setup) -> None:
    month = timedelta(days=30)
    setup.client("dead", month, started=2 * month)
    setup.run("nobody's", span=month)
    service = rescuer(setup)
    await service.run_once()
    assert len(service.left_unknown) == 1
    rows = setup.table.sql("SELECT client_id FROM {schema}.riverq_client ORDER BY client_id")
    assert [row["client_id"] for row in rows] == ["dead", "leader"]
