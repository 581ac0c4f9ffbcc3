"""Retrying, deleting, updating and counting jobs by call, on both clients and every adapter."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

import riverq
from riverq.client import job_changes
from riverq.errors import JobConflictError, JobNotFoundError, JobRunningError
from tests.client.faces import SESSION_KINDS, Ear, Greet, SyncAccount, jobs, open_session, settle
from tests.fix_server import audible
from tests.query.arrange import DEFAULT_MASK, Table

S = riverq.JobState


@pytest.fixture
def table(database_url: str, schema: str) -> Any:
    table = Table(database_url, schema)
    yield table
    table.conn.close()


def states(table: Table) -> list[str]:
    return [row["state"] for row in table.sql("SELECT state::text FROM {job} ORDER BY id")]


# -- own transactions


async def test_a_job_is_retried_and_its_workers_told(client: Any, table: Table, ear: Ear) -> None:
    job_id = table.add(
        state="cancelled", queue="mail", metadata={"a": 1, "cancel_attempted_at": "2026-01-01T00:00:00Z"}
    )
    row = await settle(client.job_retry(job_id))
    assert (row.id, row.state, row.finalized_at, row.metadata) == (job_id, S.AVAILABLE, None, {"a": 1})
    assert await settle(client.job_retry(job_id)) == row
    assert ear.heard() == audible(['{"queue": "mail"}'])


async def test_a_job_is_told_of_although_another_of_its_queue_was_just_inserted(
    client: Any, table: Table, ear: Ear
) -> None:
    """The limit of inserts would make it wait for a poll."""
    job_id = table.add(state="completed")
    await settle(client.insert(Greet("a")))
    await settle(client.job_retry(job_id))
    assert ear.heard() == audible(['{"queue": "default"}'] * 2)


async def test_a_job_is_deleted(client: Any, table: Table, ear: Ear) -> None:
    job_id, running = table.add(state="completed", metadata={"a": 1}), table.add_running().job_id
    row = await settle(client.job_delete(job_id))
    assert (row.id, row.state, row.metadata) == (job_id, S.COMPLETED, {"a": 1})
    with pytest.raises(JobNotFoundError) as missing:
        await settle(client.job_delete(job_id))
    with pytest.raises(JobRunningError) as runs:
        await settle(client.job_delete(running))
    assert (missing.value.job_id, runs.value.job_id) == (job_id, running)
    assert (states(table), ear.heard()) == (["running"], [])


async def test_many_jobs_are_deleted(client: Any, table: Table) -> None:
    made = [table.add(kind=kind, state=state) for kind in "ab" for state in ("available", "completed", "running")]
    assert [row.id for row in await settle(client.job_delete_many(kinds=["a"], states={"completed"}))] == [made[1]]
    assert [row.id for row in await settle(client.job_delete_many(ids=made, limit=2))] == [made[0], made[3]]
    assert [row.id for row in await settle(client.job_delete_many(unfiltered=True))] == [made[4]]
    assert states(table) == ["running"] * 2


@pytest.mark.parametrize("name", ["ids", "kinds", "priorities", "queues", "states"])
async def test_an_empty_filter_deletes_nothing(client: Any, table: Table, name: str) -> None:
    table.add()
    assert await settle(client.job_delete_many(**{name: []})) == []
    assert await settle(client.job_delete_many(**{"kinds": ["k"], name: ()})) == []
    assert states(table) == ["available"]


async def test_an_output_is_stored_at_once(client: Any, table: Table) -> None:
    job_id = table.add_running(metadata={"a": 1}).job_id
    row = await settle(client.job_update(job_id, output={"url": "a&b", "at": [1.0, None]}))
    assert (row.state, row.output) == (S.RUNNING, {"url": "a&b", "at": [1, None]})
    assert table.get(job_id)["metadata"] == {"a": 1, "output": row.output}
    assert await settle(client.job_update(job_id)) == row
    assert (await settle(client.job_update(job_id, output=None))).metadata == {"a": 1, "output": None}


async def test_an_output_has_a_limit(client: Any, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_changes, "METADATA_LIMIT", 29)
    job_id = table.add()
    most = "é" * 9  # two bytes each, the quotes, and the key's nine
    assert (await settle(client.job_update(job_id, output=most))).output == most
    with pytest.raises(riverq.ConfigError, match="expected output to be at most 29 bytes of JSON, got: 30"):
        await settle(client.job_update(job_id, output=most + "e"))
    assert table.get(job_id)["metadata"] == {"output": most}


async def test_jobs_are_counted(client: Any, table: Table) -> None:
    for state in ("available", "available", "running", "completed"):
        table.add(state=state, kind=state[0])
    by_state = await settle(client.job_count_by_state())
    assert by_state == dict.fromkeys(S, 0) | {S.AVAILABLE: 2, S.RUNNING: 1, S.COMPLETED: 1}
    assert await settle(client.job_count_by_queue()) == {"default": riverq.JobCounts(available=2, running=1)}
    assert await settle(client.job_count_by_queue(["x"])) == {"x": riverq.JobCounts(available=0, running=0)}
    by_kind = await settle(client.job_count_by_kind())
    assert by_kind == {"a": by_state | {S.RUNNING: 0, S.COMPLETED: 0}, "c": by_kind["c"], "r": by_kind["r"]}
    assert await settle(client.job_count_by_kind({"x", "a"})) == {"a": by_kind["a"], "x": dict.fromkeys(S, 0)}


# -- sessions


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_a_retry_is_heard_at_the_commit_of_its_session(
    client: Any, engine_of: Any, table: Table, ear: Ear, kind: str
) -> None:
    job_id = table.add(state="discarded", queue="mail")
    async with open_session(engine_of, kind) as session:
        await settle(client.job_retry(job_id, session=session))
        assert (ear.heard(), states(table)) == ([], ["discarded"])
        await settle(session.rollback())
        assert (ear.heard(), states(table)) == ([], ["discarded"])
        await settle(client.job_retry(job_id, session=session))
        await settle(session.commit())
    assert (ear.heard(), states(table)) == (audible(['{"queue": "mail"}']), ["available"])


async def refused(client: Any, session: Any, verb: str, job_id: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        await settle(getattr(client, verb)(job_id, session=session))


async def test_what_is_refused_leaves_the_session_whole(
    client: Any, engine_of: Any, table: Table, ear: Ear, database_url: str, schema: str
) -> None:
    held = table.add(state="discarded", unique_key=b"k", unique_states=DEFAULT_MASK)
    table.add(state="running", unique_key=b"k", unique_states=DEFAULT_MASK)
    worn = table.add(state="discarded", attempt=32_767, max_attempts=32_767)
    before = table.sql("SELECT * FROM {job} ORDER BY id")
    async with open_session(engine_of, "session") as session:
        await settle(client.insert(Greet("a"), session=session))
        await refused(client, session, "job_retry", held, JobConflictError)
        await refused(client, session, "job_retry", worn, riverq.UsageError)
        await refused(client, session, "job_delete", held + 1, JobRunningError)
        await refused(client, session, "job_update", 7_000, JobNotFoundError)
        await settle(client.insert(Greet("b"), session=session))
        await settle(session.commit())
    assert len(jobs(database_url, schema)) == 5
    assert table.sql("SELECT * FROM {job} ORDER BY id LIMIT 3") == before
    assert ear.heard() == audible(['{"queue": "default"}'])


async def test_a_conflict_leaves_the_applications_savepoint_whole(client: Any, engine_of: Any, table: Table) -> None:
    held = table.add(state="discarded", unique_key=b"k", unique_states=DEFAULT_MASK)
    table.add(unique_key=b"k", unique_states=DEFAULT_MASK)
    async with open_session(engine_of, "session") as session:
        savepoint = await settle(session.begin_nested())
        await settle(client.insert(Greet("a"), session=session))
        await refused(client, session, "job_retry", held, JobConflictError)
        await settle(savepoint.commit())
        await settle(session.commit())
    assert states(table) == ["discarded", "available", "available"]


async def test_a_conflict_in_a_transaction_of_ones_own(client: Any, table: Table, ear: Ear) -> None:
    held = table.add(state="cancelled", unique_key=b"k", unique_states=DEFAULT_MASK)
    table.add(unique_key=b"k", unique_states=DEFAULT_MASK)
    with pytest.raises(JobConflictError, match=f"job {held} cannot be retried") as error:
        await settle(client.job_retry(held))
    assert isinstance(error.value.__cause__, Exception)
    assert (states(table), ear.heard()) == (["cancelled", "available"], [])


async def test_a_conflict_in_autocommit(client: Any, engine_of: Any, table: Table, ear: Ear) -> None:
    held, free = (table.add(state="cancelled", unique_key=key, unique_states=DEFAULT_MASK) for key in (b"k", b"f"))
    table.add(unique_key=b"k", unique_states=DEFAULT_MASK)
    async with open_session(engine_of, "connection") as conn:
        autocommit = await settle(conn.execution_options(isolation_level="AUTOCOMMIT"))
        await refused(client, autocommit, "job_retry", held, JobConflictError)
        await settle(client.job_retry(free, session=autocommit))
        assert states(table) == ["cancelled", "available", "available"]
    assert ear.heard() == audible(['{"queue": "default"}'])


async def test_a_unique_job_of_the_same_session_is_a_conflict_too(client: Any, engine_of: Any, table: Table) -> None:
    """The application inserts the job anew and then retries the old one: the new one stays."""
    old = (await settle(client.insert(SyncAccount(1)))).job
    await settle(client.job_cancel(old.id))
    async with open_session(engine_of, "session") as session:
        new = (await settle(client.insert(SyncAccount(1), session=session))).job
        await refused(client, session, "job_retry", old.id, JobConflictError)
        assert (await settle(client.job_cancel(new.id, session=session))).state is S.CANCELLED
        assert (await settle(client.job_retry(old.id, session=session))).state is S.AVAILABLE
        await settle(session.commit())
    assert states(table) == ["available", "cancelled"]


async def test_a_row_that_was_read_for_update_stays_until_the_end(
    client: Any, engine_of: Any, table: Table, database_url: str, schema: str
) -> None:
    job_id = table.add(metadata={"output": {"done": 1}})
    async with open_session(engine_of, "session") as session:
        row = await settle(client.job_update(job_id, session=session))
        with psycopg.connect(database_url, autocommit=True) as conn, pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute(f'SELECT FROM "{schema}".river_job FOR UPDATE NOWAIT')
        output = {"done": row.output["done"] + 1}
        await settle(client.job_update(job_id, output=output, session=session))
        await settle(session.commit())
    assert table.get(job_id)["metadata"] == {"output": {"done": 2}}


# -- what cannot be


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("job_retry", {"job_id": "1"}, "expected job_id to be an integer from 1"),
        ("job_delete", {"job_id": 0}, "expected job_id to be an integer from 1"),
        ("job_update", {"job_id": True}, "expected job_id to be an integer from 1"),
        ("job_update", {"job_id": 1, "output": float("nan")}, "cannot encode metadata.output: nan is no JSON number"),
        ("job_update", {"job_id": 1, "output": {"a": "\ud800"}}, "cannot encode metadata.output"),
        ("job_update", {"job_id": 1, "output": "a\0"}, "cannot encode metadata.output"),
        ("job_delete_many", {}, "expected a filter, got: none .*unfiltered=True"),
        ("job_delete_many", {"kinds": None, "ids": None}, "expected a filter, got: none"),
        (
            "job_delete_many",
            {"kinds": ["k"], "unfiltered": True},
            "expected no filter beside unfiltered=True, got: kinds",
        ),
        ("job_delete_many", {"ids": [], "unfiltered": True}, "expected no filter beside unfiltered=True, got: ids"),
        ("job_delete_many", {"unfiltered": 1}, "expected unfiltered to be True or False, got: 1"),
        ("job_delete_many", {"kinds": "k"}, "expected kinds to be a list of texts, got: 'k'"),
        ("job_delete_many", {"kinds": ["a\0"]}, r"expected kinds\[0\] to be a text that Postgres can store"),
        ("job_delete_many", {"ids": 1}, "expected ids to be a list of integers, got: 1"),
        ("job_delete_many", {"ids": ["1"]}, r"expected ids\[0\] to be an integer from 1"),
        ("job_delete_many", {"priorities": [5]}, r"expected priorities\[0\] to be an integer from 1 to 4"),
        ("job_delete_many", {"states": ["finished"]}, r"expected states\[0\] to be a state of a job, got: 'finished'"),
        ("job_delete_many", {"unfiltered": True, "limit": 0}, "expected limit to be an integer from 1 to 10000"),
        ("job_delete_many", {"unfiltered": True, "limit": 10_001}, "expected limit to be an integer from 1 to 10000"),
        ("job_delete_many", {"tags_all": ["x"]}, "unknown filter 'tags_all'"),
        ("job_delete_many", {"kind": ["k"]}, "unknown filter 'kind' .did you mean 'kinds'"),
        ("job_count_by_queue", {"names": "mail"}, "expected names to be a list of texts, got: 'mail'"),
        ("job_count_by_queue", {"names": [1]}, "expected names to be a list of texts that Postgres can store, got: 1"),
        ("job_count_by_kind", {"kinds": ["a\0"]}, "expected kinds to be a list of texts that Postgres can store"),
        ("job_count_by_queue", {"names": ["a\ud800"]}, "expected names to be a list of texts that Postgres can store"),
        ("job_count_by_kind", {"kinds": 5}, "expected kinds to be a list of texts, got: 5"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_done(
    client: Any, table: Table, verb: str, arguments: dict[str, Any], message: str
) -> None:
    table.add()
    before = table.sql("SELECT *, xmin FROM {job}")
    with pytest.raises(riverq.ConfigError, match=message):
        await settle(getattr(client, verb)(**arguments))
    assert table.sql("SELECT *, xmin FROM {job}") == before
