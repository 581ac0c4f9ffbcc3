"""Reading jobs by call: own transactions and sessions, pages and iterations, on both clients and every adapter."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import riverq
from riverq.client.list_verbs import AsyncListVerbs, ListVerbs
from tests.client.faces import SESSION_KINDS, Greet, make_client, open_session, settle
from tests.client.working import Watch
from tests.fix_database import EngineMaker
from tests.query.arrange import CLAIMED_AT, Table

SEVEN = [f"n{number}" for number in range(7)]


@pytest.fixture
def table(database_url: str, schema: str) -> Iterator[Table]:
    table = Table(database_url, schema)
    yield table
    table.conn.close()


@pytest.fixture
async def seven(client: Any) -> list[int]:
    """The ids of seven jobs."""
    results = await settle(client.insert_many([Greet(name) for name in SEVEN]))
    return [result.job.id for result in results]


async def take(iteration: Any, count: int) -> list[riverq.JobRow]:
    """The first few of an iterator of either face, leaving the iteration as it is then."""
    if not isinstance(iteration, AsyncIterator):
        return list(itertools.islice(iteration, count))
    found: list[riverq.JobRow] = []
    while len(found) < count and (job := await anext(iteration, None)) is not None:
        found.append(job)
    return found


async def drain(iteration: Any) -> list[riverq.JobRow]:
    """All of it, which is not much."""
    found = await take(iteration, 100)
    assert len(found) < 100, "it goes round in circles"
    return found


def test_every_verb_is_tried_here() -> None:
    found = {name for name in vars(ListVerbs) if not name.startswith("_")}
    assert found == {"job_get", "job_list", "job_iter"}
    assert found == {name for name in vars(AsyncListVerbs) if not name.startswith("_")}
    assert inspect.iscoroutinefunction(AsyncListVerbs.job_list)
    assert not inspect.iscoroutinefunction(AsyncListVerbs.job_iter)  # iterated, not awaited


async def test_one_job(client: Any) -> None:
    job = (await settle(client.insert(Greet("a"), tags=["abc"], metadata={"m": 1}))).job
    found = await settle(client.job_get(job.id))
    assert found == job
    assert (found.args, found.tags, found.metadata) == ({"name": "a"}, ("abc",), {"m": 1})


@pytest.mark.parametrize("state", riverq.JobState)
async def test_a_job_in_every_state(client: Any, table: Table, state: riverq.JobState) -> None:
    job_id = table.add(state=str(state))
    assert (await settle(client.job_get(job_id))).state is state
    [listed] = await settle(client.job_list(states=[state]))
    assert listed.id == job_id
    assert not await settle(client.job_list(states=[other for other in riverq.JobState if other is not state]))


async def test_a_job_that_is_not_there(client: Any, engine_of: Any) -> None:
    async with open_session(engine_of, "session") as session:
        with pytest.raises(riverq.JobNotFoundError, match="job not found: 9223372036854775807 ") as raised:
            await settle(client.job_get(2**63 - 1, session=session))
        assert raised.value.job_id == 2**63 - 1
        await settle(client.insert(Greet("a"), session=session))  # the transaction is whole
    for wrong in (0, -1, 2**63, "1", True, 1.0, None):
        with pytest.raises(riverq.ConfigError, match="expected job_id to be an integer from 1"):
            await settle(client.job_get(wrong))


async def test_pages_by_their_cursors(client: Any, seven: list[int]) -> None:
    pages = [await settle(client.job_list(limit=3))]
    while pages[-1].has_more:
        pages.append(await settle(client.job_list(limit=3, after=pages[-1].cursor)))
    assert [[job.id for job in page] for page in pages] == [seven[:3], seven[3:6], seven[6:]]
    assert len(await settle(client.job_list())) == 7
    assert [job.id for job in await settle(client.job_list(after=pages[1][0], limit=2))] == seven[4:6]
    nothing = await settle(client.job_list(after=pages[-1].cursor))
    assert (list(nothing), nothing.cursor, nothing.has_more) == ([], None, False)


async def test_filters_and_orderings_arrive(client: Any, table: Table) -> None:
    wanted = table.add(state="completed", kind="a", queue="q", priority=3, tags=["abc", "def"], metadata={"x": [1, 2]})
    table.add(state="completed", kind="a", queue="q", priority=3, tags=["abc"], metadata={"x": [1]})
    options: dict[str, Any] = {
        "ids": [wanted, 10**9],
        "kinds": ["a"],
        "priorities": [3],
        "queues": ["q"],
        "states": ["completed"],
        "tags_all": ["abc", "def"],
        "tags_any": ["def", "xyz"],
        "metadata": {"x": [2]},
    }
    assert set(options) == set(riverq.JobListOptions.__annotations__) - {"order_by", "descending"}
    for given in (options, *({name: value} for name, value in options.items())):
        assert wanted in [job.id for job in await settle(client.job_list(**given))]
        assert wanted in [job.id for job in await drain(client.job_iter(**given))]
    assert [job.id for job in await settle(client.job_list(**options))] == [wanted]
    late = table.add(state="completed", finalized_at=CLAIMED_AT.replace(year=2030))
    by_time = await settle(client.job_list(order_by="finalized_at", descending=True, limit=1))
    assert [job.id for job in by_time] == [late]


@pytest.mark.parametrize("page_size", [1, 3, 7, 1000])
async def test_an_iteration_goes_over_all_pages(client: Any, seven: list[int], page_size: int) -> None:
    assert [job.id for job in await drain(client.job_iter(page_size=page_size))] == seven
    back = await drain(
        client.job_iter(page_size=page_size, descending=True, after=await settle(client.job_get(seven[4])))
    )
    assert [job.id for job in back] == seven[3::-1]


async def test_an_iteration_reads_a_page_when_it_is_needed(client: Any, table: Table, seven: list[int]) -> None:
    """Each with one statement; what is read is as of then, and what was inserted meanwhile is met."""
    iteration = client.job_iter(page_size=3, states=["available"])
    assert [job.id for job in await take(iteration, 4)] == seven[:4]
    table.sql("UPDATE {job} SET state = 'running' WHERE id = ANY(%s)", [seven[0], seven[5], seven[6]])
    new = table.add()
    assert [job.id for job in await drain(iteration)] == [*seven[4:6], new]  # the sixth was read with the fourth


async def test_jobs_may_be_changed_while_they_are_iterated(client: Any, seven: list[int]) -> None:
    met = []
    iteration = client.job_iter(page_size=2, states=["available"])
    for _ in seven:
        [job] = await take(iteration, 1)
        met.append((await settle(client.job_cancel(job.id))).id)
    assert met == seven
    assert await drain(iteration) == []


async def test_an_iteration_takes_one_connection_a_page_and_keeps_none(
    client: Any, engine_of: Any, seven: list[int]
) -> None:
    statements: list[str] = []
    sync_engine: Any = engine_of.sync_engine if isinstance(engine_of, AsyncEngine) else engine_of

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(sync_engine, "before_cursor_execute", note)
    iteration = client.job_iter(page_size=3)
    for count, read in ((1, 1), (2, 1), (1, 2), (3, 3)):
        await take(iteration, count)
        assert len(statements) == read
        assert sync_engine.pool.checkedout() == 0
    assert await drain(iteration) == []
    assert len(statements) == 3  # the last page knew that it was the last


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_in_a_session_what_is_uncommitted_there_is_read(
    client: Any, engine_of: Any, seven: list[int], kind: str
) -> None:
    async with open_session(engine_of, kind) as session:
        job = (await settle(client.insert(Greet("new"), session=session))).job
        assert (await settle(client.job_get(job.id, session=session))).args == {"name": "new"}
        assert [each.id for each in await settle(client.job_list(session=session))] == [*seven, job.id]
        iterated = await drain(client.job_iter(page_size=2, session=session))
        assert [each.id for each in iterated] == [*seven, job.id]
        assert len(await settle(client.job_list())) == 7
        with pytest.raises(riverq.JobNotFoundError):
            await settle(client.job_get(job.id))
        await settle(session.rollback())
        assert len(await settle(client.job_list(session=session))) == 7


async def test_a_connection_that_streams_and_commits_by_itself(client: Any, engine_of: Any, seven: list[int]) -> None:
    async with open_session(engine_of, "connection") as conn:
        streaming = await settle(conn.execution_options(isolation_level="AUTOCOMMIT", stream_results=True))
        assert [job.id for job in await settle(client.job_list(session=streaming))] == seven
        assert [job.id for job in await drain(client.job_iter(page_size=2, session=streaming))] == seven


async def test_a_session_of_the_wrong_kind_is_refused(client: Any) -> None:
    wrong: Any = Session() if isinstance(client, riverq.AsyncClient) else object()
    for call in (client.job_get, client.job_list):
        with pytest.raises(riverq.SessionError):
            await settle(call(*([1] if call == client.job_get else []), session=wrong))
    with pytest.raises(riverq.SessionError):
        await drain(client.job_iter(session=wrong))


async def test_what_cannot_be_is_refused_before_there_is_a_connection(adapter: str, make_engine: EngineMaker) -> None:
    """The engine leads nowhere, and an iteration tells at the call."""
    client = make_client(make_engine(adapter, url="postgresql://nobody@127.0.0.1:1/none"), riverq.Config(schema="s"))
    for options, message in (
        ({"kinds": "k"}, "expected kinds to be a list of texts"),
        ({"after": "garbage"}, "expected after to be the cursor of a page, got: 'garbage'"),
        ({"after": 7}, "expected after to be the cursor of a page, or a JobRow, got: 7"),
        ({"queue": "q"}, "unknown list option 'queue' .did you mean 'queues'"),
    ):
        with pytest.raises(riverq.ConfigError, match=message):
            await settle(client.job_list(**options))
        with pytest.raises(riverq.ConfigError, match=message):
            client.job_iter(**options)
    with pytest.raises(riverq.ConfigError, match="expected limit to be an integer from 1 to 10000, got: 10001"):
        await settle(client.job_list(limit=10_001))
    with pytest.raises(riverq.ConfigError, match="expected page_size to be an integer from 1 to 10000, got: 0"):
        client.job_iter(page_size=0)


async def test_a_job_reads_jobs(
    adapter: str, make_engine: EngineMaker, schema: str, database_url: str, watch: Watch
) -> None:
    """Through either face of the client that runs it."""
    workers, read = riverq.Workers(), {}

    @workers.work
    async def greet(job: riverq.Job[Greet]) -> None:
        face = job.async_client
        page = await face.job_list(limit=1)
        read["async"] = [
            (await face.job_get(job.id)).id,
            page[0].id,
            *[each.id async for each in face.job_iter(page_size=1)],
        ]

    @workers.work(kind="sync_greet")
    def sync_greet(job: riverq.Job[dict[str, Any]]) -> None:
        face = job.client
        page = face.job_list(limit=1)
        read["sync"] = [face.job_get(job.id).id, page[0].id, *[each.id for each in face.job_iter(page_size=1)]]

    queues = {"default": riverq.QueueConfig(max_workers=2)}
    client = make_client(
        make_engine(adapter), riverq.Config(schema=schema, workers=workers, queues=queues, max_attempts=1)
    )
    items = [Greet("a"), riverq.RawArgs("sync_greet", {})]
    first, second = (result.job.id for result in await settle(client.insert_many(items)))
    await settle(client.start())
    try:
        await watch.until(lambda rows: all(row["state"] == "completed" for row in rows))
    finally:
        await settle(client.stop())
    assert read == {"async": [first, first, first, second], "sync": [second, first, first, second]}
