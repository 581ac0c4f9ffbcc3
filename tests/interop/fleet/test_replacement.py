"""A Go fleet is replaced by a riverq fleet while it works, process by process, and then back: nothing lost or doubled.

Both sides go on inserting meanwhile. Of each fleet's three processes one stops softly, one is killed, one stops hard.
The database keeps the books: triggers write down every change of a job's state and of the leader's row.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.interop.conftest import ProcessMaker
from tests.interop.place import Place
from tests.interop.sides import Side, Working
from tests.interop.waiting import leader_of, until, until_leader

KINDS = ("plain", "ledger", "failing", "snoozing", "sleeping", "scheduled", "unique", "in_transaction")
ADAPTERS = ("asyncpg", "psycopg_async", "pg8000")
"""Of riverq's three processes; the test's own inserts are psycopg's."""
JOBS_AT_LEAST, JOBS_ENOUGH = 3_000, 5_000
LONG = 60.0
SETTINGS: dict[str, Any] = {
    "fetch_poll_seconds": 0.3,
    "job_timeout_seconds": 60,
    "max_workers": 20,
    "rescue_seconds": 60,
    "retry_seconds": 0.1,
}
FLEETS = ("go", "riverq", "last")
"""The first fleet, the one that replaces it, and the Go fleet that replaces that. A client's id is `go_0`, `go_1` …"""
STOPS_SOFTLY, IS_KILLED, STOPS_HARD = 0, 1, 2


# -- the books

AUDIT = """
    CREATE SCHEMA {schema}_audit;
    CREATE TABLE {schema}_audit.job_change (id bigint, old text, new text);
    CREATE FUNCTION {schema}_audit.job_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO {schema}_audit.job_change VALUES (NEW.id, OLD.state, NEW.state);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER UPDATE OF state ON {schema}.river_job FOR EACH ROW
        WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION {schema}_audit.job_change();
    CREATE TABLE {schema}_audit.leader_change (
        number bigint GENERATED ALWAYS AS IDENTITY, op text, who text, at timestamptz, old jsonb, new jsonb,
        had_expired boolean
    );
    CREATE FUNCTION {schema}_audit.leader_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO {schema}_audit.leader_change (op, who, at, old, new, had_expired) VALUES (
            TG_OP, current_setting('application_name'), clock_timestamp(), to_jsonb(OLD), to_jsonb(NEW),
            OLD.expires_at < clock_timestamp()
        );
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {schema}.river_leader FOR EACH ROW
        EXECUTE FUNCTION {schema}_audit.leader_change();
"""


@dataclass(frozen=True)
class Books:
    """What the triggers wrote."""

    place: Place

    def times_completed(self) -> Counter[int]:
        """How often each job became completed."""
        sql = "SELECT id FROM {schema}_audit.job_change WHERE new = 'completed'"
        return Counter(self.place.scalars(sql))

    def check_one_leader(self) -> list[str]:
        """No term began before the last one was given back by its holder, or had expired. Who led, in order."""
        terms: list[str] = []
        for change in self.place.scalars("SELECT to_jsonb(c) FROM {schema}_audit.leader_change c ORDER BY number"):
            old, new = change["old"], change["new"]
            if old is not None and new is not None and old["elected_at"] == new["elected_at"]:
                assert old["leader_id"] == new["leader_id"] == change["who"], (
                    f"a term was prolonged by another: {change}"
                )
                continue
            if old is not None:
                assert change["had_expired"] or old["leader_id"] == change["who"], f"a term was ended: {change}"
            if new is not None:
                assert new["leader_id"] == change["who"], f"a term was won for another: {change}"
                terms.append(new["leader_id"])
        return terms


@pytest.fixture
def books(fleet: Place) -> Iterator[Books]:
    """Triggers on the fleet's tables, while the test runs."""
    with fleet.engine.begin() as connection:
        connection.exec_driver_sql(AUDIT.format(schema=fleet.schema))
    yield Books(fleet)
    with fleet.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {fleet.schema}_audit CASCADE")


# -- those who insert


@dataclass
class Inserted:
    """What one side has inserted."""

    ids: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    rolled_back: list[int] = field(default_factory=list)

    @property
    def number(self) -> int:
        return sum(map(len, self.ids.values()))

    def all_ids(self) -> set[int]:
        return {job_id for ids in self.ids.values() for job_id in ids}


class Stream:
    """Inserts a batch of everything again and again, from one side, until it is told to end."""

    PAUSE = 0.1

    def __init__(self, side: Side, ended: threading.Event) -> None:
        self.inserted = Inserted()
        self._side = side
        self._ended = ended

    def run(self) -> None:
        number = 0
        while not (self._ended.is_set() and self.inserted.number >= JOBS_AT_LEAST / 2):
            self._insert(number)
            number += 1
            self._ended.wait(self.PAUSE if self.inserted.number < JOBS_ENOUGH / 2 else 10 * self.PAUSE)

    def _insert(self, number: int) -> None:
        due = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        batch: list[dict[str, Any]] = [
            *[{"kind": "plain"}] * 6,
            *[{"kind": "ledger", "args": {"outcome": "complete_tx"}}] * 2,
            {"kind": "failing", "args": {"acts": in_each_fleet(1, {"outcome": "error", "message": "not here"})}},
            {"kind": "snoozing", "args": {"acts": in_each_fleet(0, {"outcome": "snooze", "seconds": 0.2})}},
            *[{"kind": "sleeping", "args": {"outcome": "sleep", "seconds": 0.3}}] * 2,
            {"kind": "scheduled", "scheduled_at": due},
            # The other side inserts the same one at about the same time.
            {"kind": "unique", "args": {"message": f"number {number}"}, "unique": {"by_args": True}},
        ]
        self._note(self._side.insert_rows(batch))
        with self._side.transaction() as tx:
            self._note(self._side.insert_rows([{"kind": "in_transaction"}] * 2, tx=tx))
        with self._side.transaction() as tx:
            self.inserted.rolled_back.append(self._side.insert("in_transaction", tx=tx))
            tx.rollback()

    def _note(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.inserted.ids[row["job"]["kind"]].append(row["job"]["id"])


def in_each_fleet(number: int, act: dict[str, Any]) -> dict[str, Any]:
    """What a job does on the process of this number of each fleet; elsewhere it completes."""
    return {f"{name}_{number}": act for name in FLEETS}


# -- those who work


@dataclass
class Member:
    """A process of the fleet. Its client's id is its name, and the script by which jobs know it."""

    side: Side
    client: Working

    @property
    def name(self) -> str:
        return self.client.id


class Fleet:
    """The processes that work, and how one takes another's place."""

    def __init__(self, place: Place, giver: Side, process_of: ProcessMaker) -> None:
        self.place = place
        self._giver = giver
        self._process_of = process_of
        self.members: list[Member] = []
        self.long_jobs: dict[str, list[int]] = {}

    def begin(self, fleet: str, number: int) -> Member:
        """A new process, once it has completed a job."""
        name = f"{fleet}_{number}"
        language, own = ("riverq", {"grace_seconds": 6}) if fleet == "riverq" else ("river", {})
        side = self._process_of(language, adapter=ADAPTERS[number], application=name)
        member = Member(side, side.start(*KINDS, client_id=name, script=name, **SETTINGS, **own))
        member.client.events(1, kinds=["job_completed"], seconds=LONG)
        return member

    def replace(self, number: int, fleet: str) -> None:
        """The new one begins, then the old one ends in its own way, in the middle of jobs."""
        old, self.members[number] = self.members[number], self.begin(fleet, number)
        if number == STOPS_SOFTLY:
            old.client.stop(seconds=LONG)
        else:
            self._occupy(old, {"outcome": "hold" if number == IS_KILLED else "wait"})
            if number == IS_KILLED:
                old.side.process.kill()
            else:
                old.client.stop(cancel=True, seconds=LONG)
        old.side.process.close()

    def _occupy(self, member: Member, act: dict[str, Any]) -> None:
        """Have it run a job that does not end there."""
        mine = self.long_jobs.setdefault(member.name, [])

        def occupied() -> list[Any]:
            mine.append(self._giver.insert("plain", {"acts": {member.name: act}}))
            runs = f"attempted_by[cardinality(attempted_by)] = '{member.name}' AND id IN ({', '.join(map(str, mine))})"
            return self.place.scalars(f"SELECT id FROM {{schema}}.river_job WHERE state = 'running' AND {runs}")

        until(occupied, f"{member.name} to run a long job", seconds=LONG)

    def let_the_dead_be_found(self, *names: str) -> None:
        """Let an hour pass: what the dead left running began long ago, and a new leader looks at it at once."""
        left = "state = 'running' AND attempted_by[cardinality(attempted_by)] = ANY(:names)"
        aged = "UPDATE {schema}.river_job SET attempted_at = attempted_at - interval '1 hour' WHERE "
        with self.place.engine.begin() as connection:
            connection.execute(sa.text((aged + left).format(schema=self.place.schema)), {"names": list(names)})
        term = "SELECT elected_at FROM {schema}.river_leader WHERE expires_at > clock_timestamp()"
        [before] = until(lambda: self.place.scalars(term), "somebody to lead", seconds=LONG)
        self._giver.request_resign()
        until(lambda: self.place.scalars(term) not in ([], [before]), "another term", seconds=LONG)


# -- the scenario


@pytest.mark.scenario(
    "fleets", "a Go fleet is replaced by a riverq fleet and back, under load: nothing lost or doubled"
)
def test_rolling_replacement(
    fleet: Place, books: Books, river: Side, riverq_side: Side, process_of: ProcessMaker
) -> None:
    ended = threading.Event()
    streams = [Stream(side, ended) for side in (river, riverq_side)]
    processes = Fleet(fleet, riverq_side, process_of)
    with ThreadPoolExecutor(2) as threads:
        inserting = [threads.submit(stream.run) for stream in streams]
        try:
            replace_all(processes, inserting)
        finally:
            ended.set()
    for each in inserting:
        each.result()
    processes.let_the_dead_be_found("go_1", "riverq_1")
    until(lambda: not unfinished(fleet), "every job to be completed", seconds=LONG)

    check_jobs(fleet, books, [stream.inserted for stream in streams], processes.long_jobs)
    check_who_worked(fleet, processes.long_jobs)
    terms = books.check_one_leader()
    assert {term.partition("_")[0] for term in terms} == set(FLEETS)
    assert leader_of(fleet) in {member.name for member in processes.members}
    [queue] = river.queues()
    assert (queue["name"], queue["paused_at"]) == ("default", None)
    assert fleet.scalars("SELECT client_id FROM {schema}.riverq_client") == ["riverq_1"]  # the others said goodbye


def replace_all(processes: Fleet, inserting: list[Future[None]]) -> None:
    processes.members = [processes.begin("go", number) for number in range(3)]
    for fleet in ("riverq", "last"):
        for number in range(3):
            processes.replace(number, fleet)
            for each in inserting:
                if each.done():
                    each.result()
        until_leader(processes.place, *(member.name for member in processes.members), seconds=LONG)


def unfinished(place: Place) -> list[Any]:
    return place.scalars(
        "SELECT to_jsonb(j) FROM {schema}.river_job j WHERE state <> 'completed' AND kind <> 'side_effect' LIMIT 5"
    )


def check_jobs(place: Place, books: Books, inserted: list[Inserted], long_jobs: dict[str, list[int]]) -> None:
    """What was inserted is there and completed once; what was rolled back is not; each ledger entry was made once."""
    expected = {job_id for each in inserted for job_id in each.all_ids()} | {
        i for ids in long_jobs.values() for i in ids
    }
    assert len(expected) >= JOBS_AT_LEAST * 0.9  # the unique jobs are the same ones on both sides
    assert books.times_completed() == Counter(expected)
    assert set(place.scalars("SELECT id FROM {schema}.river_job WHERE kind <> 'side_effect'")) == expected
    entries = place.scalars("SELECT count(*) FROM {schema}.river_job WHERE kind = 'side_effect'")
    assert entries == [sum(len(each.ids["ledger"]) for each in inserted)]
    by_go, by_riverq = (each.ids["unique"] for each in inserted)
    shared = min(len(by_go), len(by_riverq))
    assert by_go[:shared] == by_riverq[:shared]
    assert all(each.rolled_back and not expected & set(each.rolled_back) for each in inserted)


def check_who_worked(place: Place, long_jobs: dict[str, list[int]]) -> None:
    """Every process did; the jobs of a killed one came back with an error, those of a hard stop uncounted."""
    worked = "SELECT DISTINCT attempted_by[cardinality(attempted_by)] FROM {schema}.river_job WHERE state = 'completed'"
    assert set(place.scalars(worked)) == {f"{fleet}_{number}" for fleet in FLEETS for number in range(3)}
    for name, ids in long_jobs.items():
        rows = [place.column_values(job_id) for job_id in ids]
        came_back = [row for row in rows if name in row["attempted_by"]]
        assert came_back
        for row in came_back:
            counted = (row["attempt"], len(row["errors"] or []))
            assert counted == ((2, 1) if name.endswith(f"_{IS_KILLED}") else (1, 0)), row
