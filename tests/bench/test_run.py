"""The bench on a real server and every adapter: the figures are what the tables say, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier, Literal

from riverq.bench import face, phases
from riverq.bench.place import Fate
from riverq.bench.plan import Phase
from riverq.bench.run import measure
from riverq.config import Config
from riverq.database import Database
from riverq.driver import Driver, load_driver
from riverq.errors import ConfigError, DatabaseError, RiverqError, UnavailableError
from riverq.migrate.run import LOCK_KEY
from tests.bench.arrange import JOBS, Onlooker, Script, place, run, small, target
from tests.fix_database import ASYNC_ADAPTERS

pytestmark = pytest.mark.slow  # whole measurements

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
    made = place(plan)
    assert made.sentence == "nothing was made"
    figures = await measure(target(database_url, adapter), plan, script, made)

    assert made.fate is Fate.DROPPED
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
    assert figures.trips.exchanges == (5 if adapter == "pg8000" else 1)
    assert work.tally.runs == JOBS
    assert 1 <= work.tally.claims <= JOBS
    assert 1 <= work.tally.completions <= JOBS
    assert work.wal_bytes is not None
    assert work.wal_bytes > 0
    assert observed.error is None
    assert all(seconds > 0 for seconds in figures.latency.seconds)
    assert figures.latency.listens


async def test_a_backlog_that_is_too_long_for_the_time_is_left(database_url: str, onlooker: Onlooker) -> None:
    plan = small(jobs=None, seconds=0.2, workers=1)
    figures = await run(database_url, "asyncpg", plan)
    tally = figures.work.tally
    assert tally.jobs == figures.copy.jobs
    assert 0 < tally.completed <= tally.runs < tally.jobs


@pytest.mark.parametrize("tuned", [True, False])
async def test_clients_have_the_settings_asked_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tuned: bool
) -> None:
    """Whoever inserts to be worked at once notifies as often as the worker claims; the others as an application."""
    started: list[Config] = []
    inserted: dict[str, Config] = {}

    class Recording(face.AsyncFace):
        def __init__(self, driver: Driver, config: Config) -> None:
            super().__init__(driver, config)
            self.config = config

        async def start(self) -> None:
            started.append(self.config)
            await super().start()

        async def insert(self, args: object, queue: str) -> face.Span:
            inserted[queue] = self.config
            return await super().insert(args, queue)

    monkeypatch.setattr(face, "AsyncFace", Recording)
    plan = small(tuned=tuned, workers=7)
    await run(database_url, "asyncpg", plan)
    assert [dict(each.queues) for each in started] == [
        {name: plan.queue_config()} for name in (phases.BACKLOG, phases.LATENCY)
    ]
    assert inserted[phases.LATENCY].fetch_cooldown == plan.cooldown
    assert inserted[phases.INSERTED].fetch_cooldown == Config().fetch_cooldown


async def test_a_server_that_went_away_is_not_one_that_does_not_tell(adapter: str) -> None:
    engine = target("postgresql://nobody@127.0.0.1:1/nowhere", adapter).make_engine("riverq_bench")
    db = Database(engine, load_driver(engine), schema="")
    with pytest.raises(UnavailableError):
        await phases._wal_position(db)
    await db.close()


# -- what is not the bench's

THEIRS = "riverq_bench_theirs"
OTHER_MARK = "made by riverq bench 0123abcd"


def make_theirs(conn: psycopg.Connection[Any], comment: str | None) -> None:
    conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(THEIRS)))
    conn.execute(SQL("COMMENT ON SCHEMA {} IS {}").format(Identifier(THEIRS), Literal(comment)))
    conn.execute(
        SQL("CREATE TABLE {} AS SELECT 'q' AS queue, 'running' AS state").format(Identifier(THEIRS, "river_job"))
    )


@pytest.fixture
def theirs(onlooker: Onlooker) -> Iterator[str]:
    """The name of a schema of somebody else's, which a test makes."""
    yield THEIRS
    onlooker.conn.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(THEIRS)))


@pytest.mark.parametrize("comment", [None, OTHER_MARK, "ours"])
async def test_a_schema_that_exists_is_refused_and_left_alone(
    database_url: str, adapter: str, onlooker: Onlooker, theirs: str, comment: str | None
) -> None:
    make_theirs(onlooker.conn, comment)
    before = onlooker.counts(theirs), onlooker.schemas()
    plan = small(schema=theirs)
    refused = place(plan)
    with pytest.raises(ConfigError, match=f"schema '{theirs}' exists already") as caught:
        await measure(target(database_url, adapter), plan, Script(), refused)
    assert ("was killed and left it" in str(caught.value)) is (comment == OTHER_MARK)
    assert "--schema" in str(caught.value)
    assert refused.sentence == "nothing was made"
    assert (onlooker.counts(theirs), onlooker.schemas()) == before


async def test_a_schema_that_another_bench_makes_at_the_same_moment_is_refused(
    database_url: str, adapter: str, onlooker: Onlooker, theirs: str
) -> None:
    plan = small(schema=theirs)
    with psycopg.connect(database_url) as other:
        make_theirs(other, OTHER_MARK)
        bench = asyncio.create_task(run(database_url, adapter, plan))
        await until_waiting(bench, onlooker, plan.application_name)
        other.commit()
        with pytest.raises(ConfigError, match=r"exists already, .*another riverq bench is at work in it"):
            await bench
    assert onlooker.counts(theirs)


async def until_waiting(bench: asyncio.Task[Any], onlooker: Onlooker, application_name: str) -> None:
    """Until the bench waits for a lock, or has ended without."""
    for _ in range(3000):
        if bench.done() or onlooker.is_waiting(application_name):
            break
        await asyncio.sleep(0.01)


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

    lost = place(plan)
    await measure(target(database_url, "psycopg"), plan, Script(DROP=take_over), lost)
    assert plan.schema in onlooker.schemas()
    assert lost.sentence == f"schema '{plan.schema}' is left: its comment is not '{plan.mark}'"
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


@pytest.mark.parametrize("phase", ["PREPARE", "TRIPS", "MANY", "LATENCY", "DROP"])
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


async def test_a_schema_that_comes_about_after_its_answer_was_lost_is_dropped(
    database_url: str, adapter: str, onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bench's connection is lost while the server is still at its COMMIT; another connection plays that server."""

    def cut(_conn: object, _schema: str, _mark: str) -> None:
        raise UnavailableError("the connection broke")

    monkeypatch.setattr("riverq.bench.place._create", cut)
    plan = small()
    with psycopg.connect(database_url) as maker:
        maker.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        maker.execute(SQL("CREATE SCHEMA {}").format(Identifier(plan.schema)))
        maker.execute(SQL("COMMENT ON SCHEMA {} IS {}").format(Identifier(plan.schema), Literal(plan.mark)))
        bench = asyncio.create_task(run(database_url, adapter, plan))
        await until_waiting(bench, onlooker, plan.application_name)
        maker.commit()
        with pytest.raises(UnavailableError, match="the connection broke"):
            await bench
    assert plan.schema not in onlooker.schemas()


@pytest.mark.parametrize("phase", ["WORK", "DROP"])
async def test_a_failure_of_its_own_drops_the_schema(
    database_url: str, adapter: str, phase: str, onlooker: Onlooker
) -> None:
    """At the drop it is whoever shows the progress that fails."""

    def fail() -> None:
        raise RiverqError("the disk is full")

    plan = small()
    with pytest.raises(RiverqError, match="the disk is full"):
        await measure(target(database_url, adapter), plan, Script(**{phase: fail}), place(plan))
    assert plan.schema not in onlooker.schemas()


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
    assert f"GRANT CREATE ON DATABASE {sa.make_url(url).database} TO {name})" in str(caught.value)


async def test_the_missing_right_is_named_where_the_url_names_nobody(
    role: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, url = role
    full = sa.make_url(url)
    for variable, value in (("PGUSER", name), ("PGPASSWORD", "p"), ("PGDATABASE", full.database)):
        monkeypatch.setenv(variable, str(value))
    bare = sa.URL.create("postgresql", host=full.host, port=full.port, query=full.query)
    with pytest.raises(DatabaseError, match=f"GRANT CREATE ON DATABASE {full.database} TO {name}"):
        await run(bare.render_as_string(), "psycopg")


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


@pytest.mark.parametrize(("phase", "first"), [("DROP", ""), ("LATENCY", "the disk is full")])
async def test_a_schema_that_cannot_be_dropped_is_named(
    role: tuple[str, str], fresh_database: str, phase: str, first: str
) -> None:
    """Behind what went wrong first."""
    name, url = role
    plan = small()

    def take() -> None:
        admin.execute(SQL("ALTER SCHEMA {} OWNER TO CURRENT_USER").format(Identifier(plan.schema)))
        if first:
            raise RiverqError(first)

    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(admin.info.dbname), Identifier(name)))
        with pytest.raises(RiverqError, match="must be owner of schema") as caught:
            await measure(target(url, "psycopg"), plan, Script(**{phase: take}), place(plan))
    said = str(caught.value)
    assert said.startswith(
        f"{first}; and the schema cannot be dropped: " if first else "the schema cannot be dropped: "
    )
    assert said.endswith(
        f"schema '{plan.schema}' may be left behind "
        f"(if its comment is '{plan.mark}': DROP SCHEMA \"{plan.schema}\" CASCADE)"
    )
