"""Inserting through both clients: in a transaction of its own, and in every kind of the caller's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import riverq
from tests.client.faces import SESSION_KINDS, Ear, Greet, SyncAccount, jobs, open_session, settle
from tests.fix_server import audible

SYNC_ADAPTERS = ("psycopg", "pg8000")


async def test_inserts_in_a_transaction_of_its_own(client: Any, database_url: str, schema: str, ear: Ear) -> None:
    result = await settle(client.insert(Greet("Ada"), priority=2, tags=["first"], metadata={"trace": 7}))

    (row,) = jobs(database_url, schema)
    assert result.job.id == row["id"]
    assert (row["kind"], row["args"], row["state"], row["queue"]) == ("greet", {"name": "Ada"}, "available", "default")
    assert (row["priority"], row["max_attempts"], row["attempt"], row["tags"]) == (2, 25, 0, ["first"])
    assert (row["metadata"], row["unique_key"], row["attempted_by"], row["errors"]) == ({"trace": 7}, None, None, None)
    assert result.job.args == {"name": "Ada"}
    assert result.job.created_at == row["created_at"]
    assert not result.unique_skipped_as_duplicate
    assert ear.heard() == audible(['{"queue": "default"}'])


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_commit_makes_the_job_visible_and_tells_once(
    client: Any, engine_of: Any, kind: str, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, kind) as session:
        await settle(client.insert(Greet("a"), session=session))
        await settle(client.insert(Greet("b"), session=session))
        assert jobs(database_url, schema) == []
        assert ear.heard() == []
        await settle(session.commit())
    assert [row["args"] for row in jobs(database_url, schema)] == [{"name": "a"}, {"name": "b"}]
    assert ear.heard() == audible(['{"queue": "default"}'])


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_rollback_leaves_nothing_and_tells_nobody(
    client: Any, engine_of: Any, kind: str, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, kind) as session:
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.rollback())
    assert jobs(database_url, schema) == []
    assert ear.heard() == []


async def test_a_rollback_gives_the_notification_back(
    client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "connection") as conn:
        await settle(client.insert(Greet("lost"), session=conn))
        await settle(conn.rollback())
        await settle(client.insert(Greet("kept"), session=conn))
        await settle(conn.commit())
    assert ear.heard() == audible(['{"queue": "default"}'])


async def test_a_savepoint_takes_only_its_own_job_with_it(
    client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear
) -> None:
    async with open_session(engine_of, "session") as session:
        await settle(client.insert(Greet("kept"), session=session))
        inner = await settle(session.begin_nested())
        await settle(client.insert(Greet("lost"), session=session, queue="other"))
        await settle(inner.rollback())
        await settle(client.insert(Greet("late"), session=session, queue="other"))
        await settle(session.commit())
    assert [row["args"]["name"] for row in jobs(database_url, schema)] == ["kept", "late"]
    assert sorted(ear.heard()) == audible(['{"queue": "default"}', '{"queue": "other"}'])


async def test_a_duplicate_returns_the_job_that_is_there_and_harms_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    first = await settle(client.insert(SyncAccount(1)))
    async with open_session(engine_of, "session") as session:
        again = await settle(client.insert(SyncAccount(1), session=session))
        other = await settle(client.insert(SyncAccount(2), session=session))
        await settle(session.commit())
    assert again.unique_skipped_as_duplicate
    assert again.job.id == first.job.id
    assert not other.unique_skipped_as_duplicate
    assert len(jobs(database_url, schema)) == 2


async def test_equal_keys_in_one_batch_do_not_fail_it(client: Any, database_url: str, schema: str) -> None:
    batch = [SyncAccount(1), Greet("x"), riverq.InsertItem(SyncAccount(1), priority=3), SyncAccount(2)]
    results = await settle(client.insert_many(batch))
    assert [result.unique_skipped_as_duplicate for result in results] == [False, False, True, False]
    assert results[2].job.id == results[0].job.id
    assert [result.job.kind for result in results] == ["sync_account", "greet", "sync_account", "sync_account"]
    assert len(jobs(database_url, schema)) == 3


async def test_inserts_fast_by_copy(client: Any, engine_of: Any, database_url: str, schema: str, ear: Ear) -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    awkward = 'tab\t newline\n quote" backslash\\ \\N {brace} ünï 😀'
    batch = [
        Greet(awkward),
        riverq.InsertItem(Greet("later"), scheduled_at=at, tags=["a_tag", "b-tag"], metadata={"k": awkward}),
        riverq.InsertItem(Greet("other"), queue="other"),
    ]
    async with open_session(engine_of, "session") as session:
        assert await settle(client.insert_many_fast(batch, session=session)) == 3
        assert jobs(database_url, schema) == []
        await settle(session.commit())
    rows = {row["args"]["name"]: row for row in jobs(database_url, schema)}
    assert set(rows) == {awkward, "later", "other"}
    assert (rows["later"]["scheduled_at"], rows["later"]["state"]) == (at, "scheduled")
    assert (rows["later"]["tags"], rows["later"]["metadata"]) == (["a_tag", "b-tag"], {"k": awkward})
    assert (rows[awkward]["state"], rows[awkward]["unique_key"]) == ("available", None)
    assert sorted(ear.heard()) == audible(['{"queue": "default"}', '{"queue": "other"}'])


async def test_a_fast_insert_with_a_delay_counts_from_the_databases_clock(
    client: Any, database_url: str, schema: str
) -> None:
    batch = [Greet("now"), riverq.InsertItem(Greet("soon"), delay=timedelta(hours=1))]
    assert await settle(client.insert_many_fast(batch)) == 2
    now, soon = jobs(database_url, schema)
    assert (now["state"], soon["state"]) == ("available", "scheduled")
    assert soon["scheduled_at"] - now["scheduled_at"] == timedelta(hours=1)


async def test_a_fast_insert_that_is_rolled_back_leaves_nothing(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    async with open_session(engine_of, "connection") as conn:
        await settle(client.insert_many_fast([Greet("a"), Greet("b")], session=conn))
        await settle(conn.rollback())
    assert jobs(database_url, schema) == []


async def test_a_fast_insert_with_a_duplicate_does_not_fail(client: Any, database_url: str, schema: str) -> None:
    await settle(client.insert(SyncAccount(1)))
    assert await settle(client.insert_many_fast([SyncAccount(1), SyncAccount(2), Greet("x")])) == 2
    assert len(jobs(database_url, schema)) == 3


async def test_an_empty_batch_is_refused(client: Any) -> None:
    for insert in (client.insert_many, client.insert_many_fast):
        with pytest.raises(riverq.ConfigError, match="empty batch"):
            await settle(insert([]))
