"""The bench on a real server and every adapter: the figures are what the tables say, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier, Literal

from riverq.bench.plan import Phase
from riverq.bench.run import measure
from riverq.bench.verdict import Evidence, judge
from riverq.errors import ConfigError, DatabaseError, RiverqError, UnavailableError
from tests.bench.arrange import JOBS, Onlooker, Script, run, small, target
from tests.fix_database import ASYNC_ADAPTERS

MEASURED = [phase for phase in Phase if phase is not Phase.PREPARE]


@pytest.fixture
def onlooker(database_url: str) -> Iterator[Onlooker]:
    onlooker = Onlooker(database_url)
    with onlooker.conn:
        before = onlooker.schemas()
        yield onlooker
        assert onlooker.schemas() == before


async def test_the_figures_are_what_the_tables_say(database_url: str, adapter: str, onlooker: Onlooker) -> None:
    plan = small()
    seen: dict[str, dict[tuple[str, str], int]] = {}

    def look(name: str) -> Callable[[], None]:
        return lambda: seen.update({name: onlooker.counts(plan.schema)})

    script = Script(WORK=look("inserted"), LATENCY=look("worked"), DROP=look("all"))
    figures = await measure(target(database_url, adapter), plan, script)

    assert script.phases == list(Phase)
    assert all(0 <= share <= 1 for share in script.shares)
    inserted = ("bench_inserted", "available")
    backlog = ("bench_backlog", "available"), ("bench_backlog", "completed")
    assert seen["inserted"][inserted] == figures.one.jobs + figures.many.jobs
    assert seen["inserted"][backlog[0]] == figures.copy.jobs == figures.work.tally.jobs == JOBS
    assert seen["worked"].get(backlog[1]) == figures.work.tally.completed == figures.work.rate.jobs == JOBS
    assert backlog[0] not in seen["worked"]
    assert seen["all"][("bench_latency", "completed")] == len(figures.latency.seconds) + 1  # the first is not counted
    assert onlooker.schemas().isdisjoint({plan.schema})


async def test_the_figures_fit_together(database_url: str, adapter: str) -> None:
    figures = await run(database_url, adapter)
    work, observed = figures.work, figures.work.observed
    assert (figures.adapter, figures.asynchronous) == (adapter.removesuffix("_async"), adapter in ASYNC_ADAPTERS)
    assert 1 <= figures.one.jobs <= JOBS
    assert 1 <= figures.many.jobs <= JOBS
    assert all(rate.seconds > 0 for rate in (figures.one, figures.many, figures.copy, work.rate))
    assert 0 < figures.trips.round_trip <= figures.trips.statement
    assert figures.trips.commit >= 0
    assert work.tally.runs == JOBS
    assert 1 <= work.tally.claims <= JOBS
    assert 1 <= work.tally.completions <= JOBS
    assert work.client_cpu >= 0
    assert work.wal_bytes is not None
    assert work.wal_bytes > 0
    assert observed.error is None
    assert max(observed.computing, observed.wal, observed.waiting) <= 1
    assert all(seconds > 0 for seconds in figures.latency.seconds)
    assert figures.latency.listens
    assert judge(Evidence.of(figures)).sentence


async def test_a_backlog_that_is_too_long_for_the_time_is_left(database_url: str, onlooker: Onlooker) -> None:
    plan = small(jobs=None, seconds=0.2, workers=1)
    figures = await run(database_url, "asyncpg", plan)
    tally = figures.work.tally
    assert tally.jobs == figures.copy.jobs
    assert 0 < tally.completed <= tally.runs <= tally.jobs


async def test_the_defaults_are_measured_where_asked_for(database_url: str) -> None:
    figures = await run(database_url, "asyncpg", small(tuned=False))
    assert figures.cooldown == 0.1
    assert figures.work.tally.completed == JOBS


# -- what is not the bench's


@pytest.mark.parametrize("comment", [None, "made by riverq bench 0123abcd", "ours"])
async def test_a_schema_that_exists_is_refused_and_left_alone(
    database_url: str, adapter: str, onlooker: Onlooker, schema: str, comment: str | None
) -> None:
    onlooker.conn.execute(SQL("COMMENT ON SCHEMA {} IS {}").format(Identifier(schema), Literal(comment)))
    before = onlooker.counts(schema), onlooker.schemas()
    with pytest.raises(ConfigError, match=f"schema '{schema}' exists already") as caught:
        await run(database_url, adapter, small(schema=schema))
    assert ("was killed and left it" in str(caught.value)) is (comment == "made by riverq bench 0123abcd")
    assert "--schema" in str(caught.value)
    assert (onlooker.counts(schema), onlooker.schemas()) == before
    onlooker.conn.execute(SQL("COMMENT ON SCHEMA {} IS NULL").format(Identifier(schema)))


async def test_a_named_schema_is_made_and_dropped(database_url: str, onlooker: Onlooker) -> None:
    there: list[bool] = []
    plan = small(schema="riverq_bench_named")
    await run(database_url, "asyncpg", plan, ONE=lambda: there.append("riverq_bench_named" in onlooker.schemas()))
    assert there == [True]


async def test_a_schema_that_became_somebody_elses_is_not_dropped(database_url: str, onlooker: Onlooker) -> None:
    plan = small()

    def take_over() -> None:
        onlooker.conn.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(plan.schema)))
        onlooker.conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(plan.schema)))

    await run(database_url, "psycopg", plan, DROP=take_over)
    assert plan.schema in onlooker.schemas()
    onlooker.conn.execute(SQL("DROP SCHEMA {}").format(Identifier(plan.schema)))


# -- ways to end


@pytest.mark.parametrize("phase", MEASURED, ids=lambda phase: phase.name)
async def test_cancelled_anywhere_it_drops_its_schema(database_url: str, phase: Phase, onlooker: Onlooker) -> None:
    await cancel_at(database_url, "asyncpg", phase, onlooker)


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.ONE, Phase.COPY, Phase.WORK], ids=lambda phase: phase.name)
async def test_cancelled_on_any_adapter_it_drops_its_schema(
    database_url: str, adapter: str, phase: Phase, onlooker: Onlooker
) -> None:
    await cancel_at(database_url, adapter, phase, onlooker)


async def cancel_at(url: str, adapter: str, phase: Phase, onlooker: Onlooker) -> None:
    """Cancel a moment after the phase has begun, which may be at any of its awaits; at the drop's first one at once."""
    plan = small()
    loop, delay = asyncio.get_running_loop(), 0 if phase is Phase.DROP else 0.02
    task: asyncio.Task[Any] = asyncio.create_task(
        run(url, adapter, plan, **{phase.name: lambda: loop.call_later(delay, task.cancel)})
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    assert plan.schema not in onlooker.schemas()


@pytest.mark.parametrize("phase", ["TRIPS", "MANY", "LATENCY", "DROP"])
async def test_cut_connections_fail_it_and_the_schema_is_dropped_on_new_ones(
    database_url: str, adapter: str, phase: str, onlooker: Onlooker
) -> None:
    """At the drop itself it is done again on a new connection, and nothing has failed."""
    plan = small()

    def cut() -> None:
        onlooker.terminate(plan.application_name)

    if phase == "DROP":
        await run(database_url, adapter, plan, DROP=cut)
        return
    with pytest.raises(UnavailableError):
        await run(database_url, adapter, plan, **{phase: cut})
    assert plan.schema not in onlooker.schemas()


async def test_a_failure_of_its_own_drops_the_schema(database_url: str, adapter: str, onlooker: Onlooker) -> None:
    def fail() -> None:
        raise RiverqError("the disk is full")

    with pytest.raises(RiverqError, match="the disk is full"):
        await run(database_url, adapter, WORK=fail)


# -- roles with few rights


@pytest.fixture
def role(fresh_database: str) -> Iterator[tuple[str, str]]:
    """A role that may do nothing but connect, and its URL.

    Roles are the whole server's, so its name is this process's.
    """
    name = f"{sa.make_url(fresh_database).database}_role"
    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(SQL("DROP ROLE IF EXISTS {}").format(Identifier(name)))
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(Identifier(name)))
        yield name, sa.make_url(fresh_database).set(username=name, password="p").render_as_string(hide_password=False)
        admin.execute(SQL("DROP OWNED BY {} CASCADE").format(Identifier(name)))
        admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))


async def test_without_the_right_to_make_a_schema_it_says_which_is_missing(role: tuple[str, str], adapter: str) -> None:
    name, url = role
    with pytest.raises(DatabaseError, match="cannot make its schema") as caught:
        await run(url, adapter)
    database = sa.make_url(url).database
    assert f'GRANT CREATE ON DATABASE "{database}" TO "{name}"' in str(caught.value)


async def test_a_role_that_may_not_ask_for_the_wal_measures_the_rest(
    role: tuple[str, str], adapter: str, fresh_database: str
) -> None:
    name, url = role
    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(admin.info.dbname), Identifier(name)))
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_current_wal_insert_lsn FROM PUBLIC")
    figures = await run(url, adapter)
    assert figures.work.wal_bytes is None
    assert figures.work.tally.completed == JOBS


async def test_a_schema_that_cannot_be_dropped_is_named(role: tuple[str, str], fresh_database: str) -> None:
    name, url = role
    plan = small()
    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(admin.info.dbname), Identifier(name)))
        take = SQL("ALTER SCHEMA {} OWNER TO CURRENT_USER").format(Identifier(plan.schema))
        with pytest.raises(RiverqError, match="left behind") as caught:
            await run(url, "psycopg", plan, LATENCY=lambda: admin.execute(take))
    assert f'(run: DROP SCHEMA "{plan.schema}" CASCADE)' in str(caught.value)
