from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from riverq.query.orphans import (
    Judge,
    OrphanedRun,
    orphans_get,
    orphans_lock,
    registry_forget,
    runs_of_living,
)
from tests.query.arrange import CLAIMED_AT, CLAIMED_US, ME, Caller, Table

GRACE = timedelta(seconds=30)
NOW = CLAIMED_AT + timedelta(minutes=30)
STARTED = CLAIMED_AT - timedelta(minutes=1)
LONG = timedelta(minutes=29)
"""Ago: after the claim, and long enough to be dead."""
INSTANT = timedelta(microseconds=1)
LEADER = str(uuid.UUID(int=1))
JUDGE = Judge(GRACE, LEADER)


class Registry:
    """The registry, and the connections that hold locks."""

    def __init__(self, table: Table, url: str) -> None:
        self.table = table
        self._url = url
        self._listeners: list[psycopg.Connection[Any]] = []
        self.leader = self.add("leader", incarnation=LEADER)

    def add(self, client_id: str = ME, silent: timedelta = timedelta(0), **columns: Any) -> int:
        """An incarnation that was last seen `silent` ago."""
        values: dict[str, Any] = {
            "client_id": client_id,
            "incarnation": str(uuid.uuid4()),
            "started_at": STARTED,
            "seen_at": NOW - silent,
            "lock_taken": False,
            **columns,
        }
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        text = f"INSERT INTO {{schema}}.riverq_client ({names}) VALUES ({marks}) RETURNING id"
        return int(self.table.sql(text, *values.values())[0]["id"])

    def listen(self, client: int, database: str | None = None) -> psycopg.Connection[Any]:
        """A listener's connection that has taken the client's lock."""
        url = self._url if database is None else sa.make_url(self._url).set(database=database).render_as_string(False)
        listener = psycopg.connect(url, autocommit=True)
        self._listeners.append(listener)
        key = self.table.sql("SELECT 'riverq_client'::text AS name, to_regclass(%s)::oid::int4 AS key", self.name)[0]
        taken = listener.execute("SELECT pg_try_advisory_lock_shared(%s, %s)", (key["key"], client)).fetchone()
        assert taken == (True,)
        return listener

    @property
    def name(self) -> str:
        return f'"{self.table.schema}".riverq_client'

    def ids(self) -> list[int]:
        return [row["id"] for row in self.table.sql("SELECT id FROM {schema}.riverq_client ORDER BY id")]

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


@pytest.fixture
def registry(table: Table, database_url: str) -> Iterator[Registry]:
    registry = Registry(table, database_url)
    yield registry
    registry.close()


@pytest.fixture
def other(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        yield connection


def run_of(table: Table, client_id: str = ME, **columns: Any) -> OrphanedRun:
    return OrphanedRun(table.add_running(attempted_by=["before", client_id], **columns).job_id, CLAIMED_US, client_id)


def orphans(call: Caller, judge: Judge = JUDGE, **options: Any) -> list[OrphanedRun]:
    return call(orphans_get, judge, **{"limit": 100, "now": NOW, **options})


def confirmed(call: Caller, *runs: OrphanedRun, judge: Judge = JUDGE) -> set[int]:
    return call(orphans_lock, judge, runs=runs, now=NOW)


def both(call: Caller, run: OrphanedRun) -> bool:
    """Whether the run is orphaned; finding and confirming must agree."""
    found, sure = orphans(call), confirmed(call, run)
    assert (found, sure) in (([run], {run.job_id}), ([], set()))
    return bool(found)


# -- who is dead


@pytest.mark.parametrize(
    ("silent", "lock_taken", "held", "dead"),
    [
        (timedelta(0), True, False, False),  # a failover: every lock is gone, and everybody was seen
        (GRACE, True, False, False),
        (GRACE + INSTANT, True, False, True),
        (GRACE + INSTANT, True, True, False),  # a paused process: its connection is still there
        (10 * GRACE, True, True, False),
        (10 * GRACE + INSTANT, True, True, True),  # a cut cable: the lock may be held for hours
        (GRACE + INSTANT, False, False, False),  # never had a lock, behind a transaction pooler
        (10 * GRACE, False, False, False),
        (10 * GRACE + INSTANT, False, False, True),
    ],
)
def test_who_is_dead(
    call: Caller, table: Table, registry: Registry, silent: timedelta, lock_taken: bool, held: bool, dead: bool
) -> None:
    client = registry.add(silent=silent, lock_taken=lock_taken)
    if held:
        registry.listen(client)
    assert both(call, run_of(table)) is dead


def test_a_lock_dies_with_its_connection(call: Caller, table: Table, registry: Registry) -> None:
    client = registry.add(silent=2 * GRACE, lock_taken=True)
    listener, run = registry.listen(client), run_of(table)
    assert not both(call, run)
    pid = listener.info.backend_pid
    listener.close()
    while table.sql("SELECT pid FROM pg_stat_activity WHERE pid = %s", pid):
        pass
    assert both(call, run)


def test_other_locks_are_no_proof(
    call: Caller, table: Table, registry: Registry, other: sa.Connection, fresh_database: str
) -> None:
    """The neighbour's lock, an exclusive one, one part of another kind, and the same key in another database."""
    client, neighbour = registry.add(silent=2 * GRACE, lock_taken=True), registry.add("neighbour", lock_taken=True)
    registry.listen(neighbour)
    registry.listen(client, sa.make_url(fresh_database).database)
    other.exec_driver_sql(f"SELECT pg_advisory_lock('{registry.name}'::regclass::oid::int4, {client})")
    other.exec_driver_sql(f"SELECT pg_advisory_lock_shared(({client})::bigint), pg_advisory_lock_shared(1, {client})")
    other.exec_driver_sql(f"SELECT pg_advisory_lock_shared(('{registry.name}'::regclass::oid::int8 << 32) | {client})")
    assert both(call, run_of(table))
    other.exec_driver_sql("SELECT pg_advisory_unlock_all()")


def test_without_locks_silence_alone_counts(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=10 * GRACE, lock_taken=True)
    registry.add("gone", silent=10 * GRACE + INSTANT, lock_taken=True)
    run_of(table)
    gone = run_of(table, "gone")
    blind = JUDGE._replace(read_locks=False)
    assert orphans(call, blind) == [gone]
    assert confirmed(call, gone, judge=blind) == {gone.job_id}


# -- what is orphaned


def test_ids_that_were_never_registered_are_never_judged(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=timedelta(days=1))
    table.add_running(attempted_by=[ME, "go-client"])
    table.add_running(attempted_by=None)
    table.add_running(attempted_by=[])
    assert orphans(call) == []


def test_the_last_of_attempted_by_counts(call: Caller, table: Table, registry: Registry) -> None:
    registry.add("dead", silent=timedelta(days=1))
    registry.add("lives")
    table.add_running(attempted_by=["dead", "lives"])
    assert orphans(call) == []


@pytest.mark.parametrize(("started", "orphaned"), [(-INSTANT, False), (timedelta(0), False), (INSTANT, True)])
def test_a_new_incarnation_answers_for_the_runs_it_claimed(
    call: Caller, table: Table, registry: Registry, started: timedelta, orphaned: bool
) -> None:
    registry.add(silent=LONG, started_at=STARTED, lock_taken=True)
    registry.add(started_at=CLAIMED_AT + started)
    assert both(call, run_of(table)) is orphaned


@pytest.mark.parametrize("silent", [timedelta(0), LONG])
def test_a_run_from_before_every_incarnation_is_somebody_elses(
    call: Caller, table: Table, registry: Registry, silent: timedelta
) -> None:
    """A Go client's that had the id before, or this one's, if the database's clock went back."""
    registry.add(started_at=CLAIMED_AT + INSTANT, silent=silent)
    assert not both(call, run_of(table))


@pytest.mark.parametrize(("after", "orphaned"), [(10 * GRACE, True), (10 * GRACE + INSTANT, False)])
def test_a_run_from_long_after_the_last_incarnation_is_somebody_elses(
    call: Caller, table: Table, registry: Registry, after: timedelta, orphaned: bool
) -> None:
    """A Go client's that has the id of one that died."""
    registry.add(started_at=STARTED - after, seen_at=CLAIMED_AT - after)
    assert both(call, run_of(table)) is orphaned


def test_of_two_living_clients_with_one_id_the_elder_answers(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(started_at=STARTED)
    registry.add(started_at=CLAIMED_AT + GRACE)
    assert not both(call, run_of(table))


def test_jobs_that_do_not_run_are_nobodys_orphans(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=LONG)
    for state in ("available", "retryable", "completed", "cancelled", "discarded", "scheduled", "pending"):
        table.add(state=state, attempt=1, attempted_at=CLAIMED_AT, attempted_by=[ME])
    table.add(state="running", attempted_by=[ME])
    assert orphans(call) == []


def test_pages_go_by_id(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=LONG)
    runs = [run_of(table) for _ in range(5)]
    assert orphans(call, limit=2) == runs[:2]
    assert orphans(call, limit=2, after_id=runs[1].job_id) == runs[2:4]


# -- who judges


@pytest.mark.parametrize(("silent", "judges"), [(GRACE / 3, True), (GRACE / 3 + INSTANT, False)])
def test_a_judge_whose_own_row_is_stale_finds_nobody_dead(
    call: Caller, table: Table, registry: Registry, silent: timedelta, judges: bool
) -> None:
    registry.add(silent=LONG)
    run = run_of(table)
    table.sql("UPDATE {schema}.riverq_client SET seen_at = %s WHERE id = %s", NOW - silent, registry.leader)
    assert both(call, run) is judges


def test_a_judge_that_is_not_registered_finds_nobody_dead(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=LONG)
    run = run_of(table)
    assert orphans(call, JUDGE._replace(incarnation=None)) == []
    table.sql("DELETE FROM {schema}.riverq_client WHERE id = %s", registry.leader)
    assert not both(call, run)


def test_time_is_the_databases(call: Caller, table: Table, registry: Registry) -> None:
    now = table.now()
    registry.add(seen_at=now - 10 * GRACE - timedelta(minutes=1))
    registry.add("lives", seen_at=now - 10 * GRACE + timedelta(minutes=1))
    table.sql("UPDATE {schema}.riverq_client SET seen_at = now() WHERE id = %s", registry.leader)
    run = run_of(table)
    run_of(table, "lives")
    assert orphans(call, now=None) == [run]


# -- confirming


def test_a_client_that_came_back_keeps_its_jobs(call: Caller, table: Table, registry: Registry) -> None:
    client = registry.add(silent=LONG)
    run = run_of(table)
    assert orphans(call) == [run]
    table.sql("UPDATE {schema}.riverq_client SET seen_at = %s WHERE id = %s", NOW, client)
    assert confirmed(call, run) == set()


def test_a_run_that_ended_meanwhile_is_not_confirmed(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=LONG)
    done, claimed = run_of(table), run_of(table)
    table.sql("UPDATE {job} SET state = 'completed', finalized_at = now() WHERE id = %s", done.job_id)
    table.sql("UPDATE {job} SET attempted_at = attempted_at + interval '1us' WHERE id = %s", claimed.job_id)
    assert confirmed(call, done, claimed) == set()
    assert confirmed(call) == set()


def test_confirming_holds_the_rows_and_waits_for_nobody(
    call: Caller, table: Table, registry: Registry, other: sa.Connection
) -> None:
    registry.add(silent=LONG)
    held, free = run_of(table), run_of(table)
    other.exec_driver_sql(f'SELECT FROM "{call.schema}".river_job WHERE id = {held.job_id} FOR UPDATE')

    def confirm_and_look(conn: sa.Connection, schema: str) -> tuple[set[int], list[int]]:
        found = orphans_lock(conn, schema, JUDGE, runs=[held, free], now=NOW)
        left = table.sql("SELECT id FROM {job} FOR UPDATE SKIP LOCKED")
        return found, [row["id"] for row in left]

    assert call(confirm_and_look) == ({free.job_id}, [])


# -- who lives


def test_runs_of_living_clients(call: Caller, table: Table, registry: Registry) -> None:
    registry.add(silent=10 * GRACE, lock_taken=True)
    registry.add("dead", silent=10 * GRACE + INSTANT)
    registry.add("newer", started_at=CLAIMED_AT + INSTANT)
    lives = run_of(table)
    runs = [lives, run_of(table, "dead"), run_of(table, "newer"), run_of(table, "go-client")]
    nobody = (table.add_running(attempted_by=None).job_id, CLAIMED_US, None)
    assert call(runs_of_living, grace=GRACE, runs=[*runs, nobody], now=NOW) == {lives.job_id}
    assert call(runs_of_living, grace=GRACE, runs=[], now=NOW) == set()


# -- forgetting


def test_old_rows_are_forgotten_when_no_running_job_names_them(call: Caller, table: Table, registry: Registry) -> None:
    day = timedelta(hours=24)
    old, fresh = registry.add("old", silent=day + INSTANT), registry.add("fresh", silent=day)
    named = registry.add("named", silent=2 * day)
    done = registry.add("done", silent=2 * day)
    run_of(table, "named")
    table.add(state="completed", attempted_by=["done"])
    assert call(registry_forget, grace=GRACE, now=NOW) == 2
    assert registry.ids() == [registry.leader, fresh, named]
    assert not {old, done} & set(registry.ids())


def test_a_long_grace_keeps_rows_for_longer(call: Caller, registry: Registry) -> None:
    registry.add(silent=timedelta(hours=49))
    assert call(registry_forget, grace=timedelta(hours=5), now=NOW) == 0
    assert call(registry_forget, grace=timedelta(hours=4), now=NOW) == 1
