"""Jobs, queues and the leader by call: own transactions and sessions, on both clients and every adapter.

What the verbs for jobs do to them is tried in `test_job_verbs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.orm import Session

import riverq
from riverq.client.control_verbs import ControlVerbs
from riverq.client.job_verbs import JobVerbs
from riverq.errors import JobNotFoundError, QueueNotFoundError
from riverq.query.queue import queue_create_or_touch
from tests.client.faces import SESSION_KINDS, Greet, jobs, make_client, open_session, settle
from tests.fix_database import EngineMaker, Transact
from tests.fix_server import audible, hears
from tests.query.arrange import Table, payloads

VERBS: dict[str, tuple[Any, ...]] = {
    "job_cancel": (1,),
    "job_count_by_kind": (),
    "job_count_by_queue": (),
    "job_count_by_state": (),
    "job_delete": (1,),
    "job_delete_many": (),
    "job_retry": (1,),
    "job_update": (1,),
    "queue_get": ("mail",),
    "queue_list": (),
    "queue_pause": ("mail",),
    "queue_resume": ("mail",),
    "queue_update": ("mail",),
    "request_resign": (),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "job_delete_many": {"unfiltered": True},
    "job_update": {"output": 1},
    "queue_update": {"metadata": {}},
}
"""What a verb needs to change anything."""

SILENT = {name for name in VERBS if name.startswith("job_count")} | {
    "job_delete",
    "job_delete_many",
    "job_update",
    "queue_get",
    "queue_list",
}
"""The verbs that nobody is told of."""


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    for topic in ("control", "leadership"):
        table.conn.execute(f'LISTEN "{schema}.river_{topic}"')
    yield table
    table.conn.close()


@pytest.fixture
def mail(transact: Transact, schema: str) -> None:
    """A queue of that name."""
    transact("psycopg", queue_create_or_touch, schema, "mail")


def rows(table: Table) -> Any:
    """Everything the verbs may change."""
    queues = table.sql("SELECT name, paused_at, metadata FROM {queue}")
    return queues, table.sql("SELECT name, until FROM {schema}.riverq_queue"), table.sql("SELECT state FROM {job}")


def test_every_verb_is_tried_here() -> None:
    found = {name for name in (*vars(ControlVerbs), *vars(JobVerbs)) if not name.startswith("_")} - {"stats"}
    assert found == set(VERBS)
    assert all(inspect.iscoroutinefunction(getattr(riverq.AsyncClient, name)) for name in VERBS)


async def test_verbs_in_transactions_of_their_own(client: Any, table: Table, mail: None) -> None:
    job = (await settle(client.insert(Greet("a"), queue="mail"))).job
    cancelled = await settle(client.job_cancel(job.id))
    assert (cancelled.state, cancelled.finalized_at is not None) == (riverq.JobState.CANCELLED, True)
    assert (await settle(client.job_cancel(job.id))) == cancelled

    assert (await settle(client.queue_get("mail"))).paused_at is None
    assert await settle(client.queue_pause("mail")) is None
    assert (await settle(client.queue_get("mail"))).paused_at is not None
    assert await settle(client.queue_resume("mail")) is None
    updated = await settle(client.queue_update("mail", metadata={"url": "a&b", "n": [1, 2.0]}))
    assert [updated] == await settle(client.queue_list()) == await settle(client.queue_list(limit=1))
    assert updated.metadata == {"url": "a&b", "n": [1, 2]}
    assert (await settle(client.queue_update("mail"))).metadata == updated.metadata
    if hears():
        await settle(client.request_resign())
    expected = [
        f'{{"action" : "cancel", "job_id" : {job.id}, "queue" : "mail"}}',
        '{"action":"pause","queue":"mail"}',
        '{"action":"resume","queue":"mail"}',
        '{"action":"metadata_changed","metadata":{"n":[1,2],"url":"a\\u0026b"},"queue":"mail"}',
        '{"action":"request_resign","leader_id":""}',
    ]
    assert payloads(table) == audible(expected)


async def use_every_verb(client: Any, session: Any, job_id: int) -> None:
    assert (await settle(client.job_cancel(job_id, session=session))).state is riverq.JobState.CANCELLED
    assert (await settle(client.job_retry(job_id, session=session))).state is riverq.JobState.AVAILABLE
    assert (await settle(client.job_update(job_id, output=[1], session=session))).output == [1]
    assert (await settle(client.job_count_by_state(session=session)))[riverq.JobState.AVAILABLE] == 1
    assert (await settle(client.job_count_by_kind(session=session)))["greet"][riverq.JobState.AVAILABLE] == 1
    assert (await settle(client.job_count_by_queue(session=session)))["default"] == (1, 0)
    assert (await settle(client.job_delete(job_id, session=session))).id == job_id
    assert await settle(client.job_delete_many(ids=[job_id], session=session)) == []
    await settle(client.queue_pause("mail", timedelta(hours=1), session=session))
    await settle(client.queue_pause("*", session=session))
    await settle(client.queue_update("mail", metadata={"a": 1}, session=session))
    [queue] = await settle(client.queue_list(session=session))
    assert queue == await settle(client.queue_get("mail", session=session))
    assert (queue.metadata, queue.paused_at is not None) == ({"a": 1}, True)
    await settle(client.queue_resume("*", session=session))
    if hears():
        await settle(client.request_resign(session=session))


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_verbs_in_a_session_are_its_transactions(
    client: Any, engine_of: Any, table: Table, mail: None, kind: str
) -> None:
    job = (await settle(client.insert(Greet("a")))).job
    before = rows(table)
    async with open_session(engine_of, kind) as session:
        await use_every_verb(client, session, job.id)
        assert (rows(table), payloads(table)) == (before, [])
        await settle(session.rollback())
        assert (rows(table), payloads(table)) == (before, [])
        await use_every_verb(client, session, job.id)
        await settle(session.commit())
    assert rows(table) != before
    assert len(payloads(table)) == (6 if hears() else 0)


async def test_what_cannot_be_found_leaves_the_session_whole(
    client: Any, engine_of: Any, database_url: str, schema: str
) -> None:
    async with open_session(engine_of, "session") as session:
        for verb in ("job_cancel", "job_delete", "job_retry", "job_update"):
            with pytest.raises(JobNotFoundError, match="job not found: 7 "):
                await settle(getattr(client, verb)(7, session=session))
        for verb in ("queue_get", "queue_pause", "queue_resume", "queue_update"):
            with pytest.raises(QueueNotFoundError, match="queue not found: 'none'"):
                await settle(getattr(client, verb)("none", session=session))
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.commit())
    assert len(jobs(database_url, schema)) == 1


async def test_a_unique_conflict_leaves_the_session_whole(
    client: Any, engine_of: Any, table: Table, database_url: str, schema: str
) -> None:
    """The job's mask holds cancelled and not retryable, and another job has its key."""
    trapped = table.add(state="retryable", unique_key=b"k", unique_states=0b11010111)
    table.add(unique_key=b"k", unique_states=245)
    async with open_session(engine_of, "session") as session:
        await settle(client.job_cancel(trapped, session=session))
        await settle(client.insert(Greet("a"), session=session))
        await settle(session.commit())
    assert [row["state"] for row in jobs(database_url, schema)] == ["cancelled", "available", "available"]


async def test_an_autocommit_connection_does_at_once(client: Any, engine_of: Any, table: Table, mail: None) -> None:
    trapped = table.add(state="retryable", unique_key=b"k", unique_states=0b11010111)
    table.add(unique_key=b"k", unique_states=245)
    async with open_session(engine_of, "connection") as conn:
        autocommit = await settle(conn.execution_options(isolation_level="AUTOCOMMIT"))
        await settle(client.job_cancel(trapped, session=autocommit))
        assert table.get(trapped)["state"] == "cancelled"
        await settle(client.queue_pause("mail", timedelta(hours=1), session=autocommit))
    assert [len(part) for part in rows(table)] == [1, 1, 2]
    assert len(payloads(table)) == (2 if hears() else 0)


@pytest.mark.hears
@pytest.mark.parametrize("verb", sorted(VERBS.keys() - SILENT))
def test_a_two_phase_transaction_is_refused_before_anything_is_written(
    engine: sa.Engine, table: Table, schema: str, mail: None, verb: str
) -> None:
    table.add()
    before = rows(table)
    client = riverq.Client(engine, riverq.Config(schema=schema))
    with Session(engine, twophase=True) as session:
        with pytest.raises(riverq.SessionError, match="two-phase transaction cannot notify"):
            getattr(client, verb)(*VERBS[verb], session=session, **OPTIONS.get(verb, {}))
        session.prepare()
        session.commit()
    assert (rows(table), payloads(table)) == (before, [])


@pytest.mark.parametrize("verb", sorted(SILENT))
def test_a_two_phase_transaction_may_do_what_nobody_is_told_of(
    engine: sa.Engine, table: Table, schema: str, mail: None, verb: str
) -> None:
    table.add()
    client = riverq.Client(engine, riverq.Config(schema=schema))
    with Session(engine, twophase=True) as session:
        getattr(client, verb)(*VERBS[verb], session=session, **OPTIONS.get(verb, {}))
        session.prepare()
        session.commit()
    assert payloads(table) == []
    assert len(table.sql("SELECT id FROM {job}")) == (0 if "delete" in verb else 1)


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("job_cancel", {"job_id": "1"}, "expected job_id to be an integer from 1"),
        ("job_cancel", {"job_id": 2**63}, "expected job_id to be an integer from 1"),
        ("queue_get", {"name": ""}, "expected name to be the name of a queue"),
        ("queue_get", {"name": "a\0"}, "expected name to be the name of a queue"),
        ("queue_get", {"name": "a\ud800"}, "expected name to be the name of a queue"),
        ("queue_list", {"limit": 0}, "expected limit to be an integer from 1 to 10000"),
        ("queue_pause", {"name": None}, "expected name to be the name of a queue"),
        ("queue_pause", {"name": "mail", "until": 5}, "expected until to be a datetime or a timedelta, got: 5"),
        ("queue_pause", {"name": "mail", "until": timedelta(0)}, "expected until to be at least 0.001 s"),
        ("queue_pause", {"name": "mail", "until": datetime(2030, 1, 1)}, "expected until to be aware of its zone"),  # noqa: DTZ001  # that is the mistake
        ("queue_update", {"name": "mail", "metadata": []}, r"expected metadata to be a dict, got: \[\]"),
        ("queue_update", {"name": "mail", "metadata": {"a": float("nan")}}, "nan is no JSON number"),
        ("queue_update", {"name": "mail", "metadata": {"a": "x" * 8000}}, "less than 8000 bytes"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_written(
    client: Any, mail: None, table: Table, verb: str, arguments: dict[str, Any], message: str
) -> None:
    before = rows(table)
    with pytest.raises(riverq.ConfigError, match=message):
        await settle(getattr(client, verb)(**arguments))
    assert (rows(table), payloads(table)) == (before, [])


async def test_a_pause_may_end_at_a_time(client: Any, table: Table, mail: None) -> None:
    end = datetime(2040, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    await settle(client.queue_pause("mail", until=end))
    assert rows(table)[1] == [{"name": "mail", "until": end}]
    await settle(client.queue_pause("*", end - timedelta(1)))
    assert rows(table)[1] == [{"name": "mail", "until": end - timedelta(1)}]
    await settle(client.queue_resume("mail"))
    assert rows(table)[1] == []


async def test_without_own_tables_a_pause_has_no_end_and_the_message_names_the_command(
    adapter: str, make_engine: EngineMaker, transact: Transact, database_url: str, scratch_schema: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(SQL("DROP TABLE {}").format(Identifier(scratch_schema, "riverq_queue")))
    engine = make_engine(adapter)
    client = make_client(engine, riverq.Config(schema=scratch_schema))
    async with open_session(engine, "session") as session:
        conn_of = await settle(session.connection())
        make: Any = conn_of.run_sync if hasattr(conn_of, "run_sync") else lambda fn: fn(conn_of)
        await settle(make(lambda sync_conn: queue_create_or_touch(sync_conn, scratch_schema, "mail")))
        with pytest.raises(riverq.SchemaError, match="riverq migrate-up"):
            await settle(client.queue_pause("mail", timedelta(hours=1), session=session))
        await settle(client.queue_pause("mail", session=session))
        await settle(client.queue_resume("*", session=session))
        await settle(session.commit())


async def test_figures_need_a_running_client(client: Any) -> None:
    with pytest.raises(riverq.UsageError, match="not running"):
        client.stats()
