"""The reindexer on real indexes: its schedule, what it leaves, and how it ends what takes too long."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from riverq.cron import CronSchedule
from riverq.database import Database
from riverq.driver import AnyEngine
from riverq.errors import UnavailableError
from riverq.maintenance import reindexer as module
from riverq.maintenance.reindexer import ReindexerConfig, next_run
from riverq.query.index import index_rebuild
from riverq.query.limits import statement_cancel
from riverq.schedule import every, never
from tests.fix_database import ASYNC_ADAPTERS, EngineMaker, adapter_url
from tests.fix_pgbouncer import PgBouncers
from tests.maintenance.reindexers import HOUR, KIND, PKEY, Setup
from tests.query.reindexing import SEVEN, Operator, until
from tests.service.stress import stress_start_stop

SHORT = timedelta(milliseconds=300)


@pytest.fixture
async def setup(make_engine: EngineMaker, database_url: str, scratch_schema: str) -> AsyncIterator[Setup]:
    operator = Operator(database_url, scratch_schema)
    setup = Setup(make_engine, operator)
    yield setup
    for reindexer in setup.reindexers:
        await reindexer.stop()
    for db in setup.databases:
        await db.close()
    operator.close()


# -- when


def test_next_run_follows_from_the_one_before() -> None:
    last = datetime(2026, 1, 1, tzinfo=UTC)
    assert next_run(every(HOUR), last, last + timedelta(minutes=50)) == last + HOUR
    assert next_run(CronSchedule("0 0 * * *"), last, last + HOUR) == last + timedelta(days=1)
    assert next_run(never(), last, last) is None


def test_runs_that_were_missed_are_not_made_up_one_by_one() -> None:
    last = datetime(2026, 1, 1, tzinfo=UTC)
    woken = last + timedelta(days=3, hours=8)
    assert next_run(CronSchedule("0 0 * * *"), last, woken) == datetime(2026, 1, 5, tzinfo=UTC)
    assert next_run(every(HOUR), last, last + HOUR) == last + 2 * HOUR


async def test_start_stop_stress(setup: Setup) -> None:
    await stress_start_stop(setup.reindexer(), rounds=10)


async def test_rebuilds_every_index_at_midnight_and_not_before(setup: Setup) -> None:
    reindexer = setup.reindexer("psycopg", *SEVEN, schedule=CronSchedule("0 0 * * *"))
    before = setup.operator.indexes()
    await reindexer.start()
    await setup.clock.until_sleeping()
    await setup.clock.advance(29 * 60)
    assert setup.operator.indexes() == before
    await setup.clock.advance(60)
    await reindexer.ticked.wait()
    assert [await reindexer.rebuilt.wait() for _ in SEVEN] == list(SEVEN)
    after = setup.operator.indexes()
    assert {name for name in after if after[name] != before[name]} == set(SEVEN)
    await setup.clock.until_sleeping()
    await setup.clock.advance(23.9 * 3600)
    assert reindexer.ticked.waiting == 0
    await setup.clock.advance(0.1 * 3600)
    await reindexer.ticked.wait()


async def test_schedule_that_never_comes_and_no_names_wait_for_the_stop(setup: Setup) -> None:
    for reindexer in (setup.reindexer(schedule=never()), setup.reindexer()):
        reindexer._config = ReindexerConfig(
            index_names=() if reindexer._config.schedule != never() else (KIND,), schedule=reindexer._config.schedule
        )
        await reindexer.start()
        await setup.clock.advance(2 * HOUR.total_seconds())
        assert (reindexer.is_running, reindexer.ticked.waiting) == (True, 0)
        await reindexer.stop()


async def test_failed_run_waits_for_the_next(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    reindexer = setup.reindexer()
    works = reindexer._open_database
    errors: list[Exception] = [UnavailableError("no connection to be had"), ValueError("a bug")]

    def fails() -> Database:
        if errors:
            raise errors.pop(0)
        return works()

    reindexer._open_database = fails
    await reindexer.start()
    for _ in range(2):
        await setup.clock.until_sleeping()
        await setup.clock.advance(HOUR.total_seconds())
        await reindexer.tick_failed.wait()
    await setup.clock.until_sleeping()
    await setup.clock.advance(HOUR.total_seconds())
    assert await reindexer.rebuilt.wait() == KIND
    assert "no connection to be had" in caplog.text
    assert "a bug" in caplog.text


# -- what


async def test_every_adapter_rebuilds_on_a_connection_that_exists_only_meanwhile(setup: Setup, adapter: str) -> None:
    before = setup.operator.indexes()[KIND]
    await setup.reindexer(adapter).run_once()
    assert setup.operator.indexes()[KIND] != before
    [own] = setup.databases
    assert isinstance(own.engine.pool, sa.QueuePool)
    assert (own.engine.pool.checkedin(), own.engine.pool.checkedout()) == (0, 0)


async def test_missing_index_is_said_and_the_others_are_rebuilt(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    reindexer = setup.reindexer("psycopg", "no_such_index", KIND)
    await reindexer.run_once()
    assert await reindexer.passed_over.wait() == "no_such_index"
    assert await reindexer.rebuilt.wait() == KIND
    assert "Found no index no_such_index in schema" in caplog.text


async def test_what_an_earlier_attempt_left_is_dropped_and_the_index_is_rebuilt(setup: Setup, adapter: str) -> None:
    left = [setup.operator.leave(KIND) for _ in range(2)]
    assert left == ["river_job_kind_ccnew", "river_job_kind_ccnew1"]
    reindexer = setup.reindexer(adapter)
    await reindexer.run_once()
    assert [await reindexer.dropped.wait() for _ in left] == left
    assert await reindexer.rebuilt.wait() == KIND
    assert setup.operator.invalid() == []


async def test_rebuild_under_way_elsewhere_is_left_alone(setup: Setup) -> None:
    """By another leader, or an operator: its half-built index looks just like a leftover."""
    first, second = setup.reindexer("psycopg_async"), setup.reindexer("psycopg", timeout=SHORT)
    with setup.operator.old_snapshot():
        running = asyncio.create_task(first.run_once())
        await until(lambda: setup.operator.waiting("REINDEX"))
        half_built = setup.operator.invalid()
        await second.run_once()
        assert await second.passed_over.wait() == KIND
        assert setup.operator.invalid() == half_built == ["river_job_kind_ccnew"]
        assert second.dropped.waiting == 0
    await running
    assert await first.rebuilt.wait() == KIND
    assert setup.operator.invalid() == []


async def test_two_leaders_at_once_are_harmless(setup: Setup) -> None:
    reindexers = [setup.reindexer(adapter, *SEVEN) for adapter in ("psycopg_async", "asyncpg", "pg8000")]
    await asyncio.gather(*(reindexer.run_once() for reindexer in reindexers))
    assert sum(reindexer.rebuilt.waiting for reindexer in reindexers) > 0
    await setup.reindexer("psycopg", *SEVEN).run_once()
    assert setup.operator.invalid() == []
    assert set(SEVEN) <= set(setup.operator.indexes())


# -- what takes too long


async def test_timeout_ends_it_on_the_server_and_what_it_left_is_dropped(
    setup: Setup, adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    reindexer = setup.reindexer(adapter, timeout=SHORT)
    with setup.operator.old_snapshot():
        await reindexer.run_once()
        assert setup.operator.statements("REINDEX") == []
        assert await reindexer.failed.wait() == KIND
        assert setup.operator.invalid() == []
    assert "took longer than 0:00:00.300000" in caplog.text
    assert "raise reindexer_timeout" in caplog.text
    reindexer._config = ReindexerConfig(index_names=(KIND,), schedule=every(HOUR))
    await reindexer.run_once()
    assert await reindexer.rebuilt.wait() == KIND


async def test_what_cannot_be_dropped_in_time_is_dropped_by_the_next_run(
    setup: Setup, adapter: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "DROP_LIMIT", SHORT)
    reindexer = setup.reindexer(adapter, timeout=SHORT)
    with setup.operator.old_reader():
        while not setup.operator.invalid():  # on a slow machine the limit may come before the statement
            await reindexer.run_once()
        assert setup.operator.statements("DROP INDEX") == []
        assert setup.operator.invalid() == ["river_job_kind_ccnew"]
        assert "the next run tries again" in caplog.text
        await reindexer.run_once()  # still in the way: nothing is piled up
        assert setup.operator.invalid() == ["river_job_kind_ccnew"]
    reindexer._config = ReindexerConfig(index_names=(KIND,), schedule=every(HOUR))
    await reindexer.run_once()
    assert await reindexer.dropped.wait() == "river_job_kind_ccnew"
    assert await reindexer.rebuilt.wait() == KIND
    assert setup.operator.invalid() == []


async def test_stop_ends_it_on_the_server_and_drops_what_it_left(setup: Setup, adapter: str) -> None:
    reindexer = setup.reindexer(adapter)
    with setup.operator.old_snapshot():
        await reindexer.start()
        await setup.clock.until_sleeping()
        await setup.clock.advance(HOUR.total_seconds())
        await until(lambda: setup.operator.waiting("REINDEX"))
        await reindexer.stop()
        assert setup.operator.statements("REINDEX") == []
        assert setup.operator.invalid() == []
    assert reindexer.rebuilt.waiting == 0


async def test_stop_that_comes_before_the_statement_reaches_the_server(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request finds nothing to end; the statement arrives after it."""
    on_its_way = threading.Event()
    found: list[int] = []

    def late(conn: sa.Connection, schema: str, index: str, *, mark: str) -> None:
        on_its_way.wait()
        index_rebuild(conn, schema, index, mark=mark)

    def cancel(conn: sa.Connection, schema: str, mark: str) -> int:
        found.append(statement_cancel(conn, schema, mark))
        on_its_way.set()
        return found[-1]

    monkeypatch.setattr(module, "index_rebuild", late)
    monkeypatch.setattr(module, "statement_cancel", cancel)
    reindexer = setup.reindexer()
    with setup.operator.old_snapshot():
        await reindexer.start()
        await setup.clock.until_sleeping()
        await setup.clock.advance(HOUR.total_seconds())
        await reindexer.began.wait()
        await reindexer.stop()
        assert (found[0], sum(found) >= 1) == (0, True)
        assert setup.operator.statements("REINDEX") == []
        assert setup.operator.invalid() == []


async def test_stop_while_the_connection_is_closed_waits_for_the_end_of_that(setup: Setup) -> None:
    reindexer = setup.reindexer()
    opens = reindexer._open_database
    closing, go_on = asyncio.Event(), asyncio.Event()
    closed: list[Database] = []

    def open_database() -> Database:
        db = opens()
        closes = db.close

        async def close() -> None:
            closing.set()
            await go_on.wait()
            await closes()
            closed.append(db)

        db.close = close  # type: ignore[method-assign]
        return db

    reindexer._open_database = open_database
    await reindexer.start()
    await setup.clock.until_sleeping()
    await setup.clock.advance(HOUR.total_seconds())
    await closing.wait()
    stopping = asyncio.create_task(reindexer.stop())
    await setup.clock.advance(0)
    waited = not stopping.done()
    go_on.set()
    await stopping
    assert (waited, closed) == (True, setup.databases)


async def test_jobs_go_on_while_an_index_is_rebuilt(setup: Setup) -> None:
    reindexer = setup.reindexer("psycopg", PKEY)
    with setup.operator.old_snapshot():
        running = asyncio.create_task(reindexer.run_once())
        await until(lambda: setup.operator.waiting("REINDEX"))
        table = f'"{setup.operator.schema}".river_job'
        setup.operator.conn.execute("SET lock_timeout = '2s'")
        setup.operator.conn.execute(f"INSERT INTO {table} (args, kind, max_attempts) VALUES ('{{}}', 'k', 25)")
        setup.operator.conn.execute(f"UPDATE {table} SET kind = 'l'")
        setup.operator.conn.execute(f"DELETE FROM {table}")
    await running
    assert await reindexer.rebuilt.wait() == PKEY


@pytest.mark.direct("goes through PgBouncers of its own")
@pytest.mark.pgbouncer
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_behind_a_pooler_it_ends_in_time_and_leaves_nothing_in_the_session(
    setup: Setup, adapter: str, mode: str, pgbouncers: PgBouncers
) -> None:
    unprepared: dict[str, Any] = {"prepare_threshold": None}
    options = {"psycopg": unprepared, "psycopg_async": unprepared, "asyncpg": {"statement_cache_size": 0}}
    engine = create_engine_like(pgbouncers.url(mode), adapter, options.get(adapter, {}))
    setup.engines = lambda *_: engine
    reindexer = setup.reindexer(adapter, timeout=SHORT)
    with setup.operator.old_snapshot():
        await reindexer.run_once()
        assert await reindexer.failed.wait() == KIND
        assert setup.operator.statements("REINDEX") == []
        assert setup.operator.invalid() == []
    reindexer._config = ReindexerConfig(index_names=(KIND,), schedule=every(HOUR))
    await reindexer.run_once()
    assert await reindexer.rebuilt.wait() == KIND
    assert await reindexer._open_database().run(statement_timeout) == "0"
    await (engine.dispose() if isinstance(engine, AsyncEngine) else asyncio.to_thread(engine.dispose))


def create_engine_like(url: str, adapter: str, connect_args: dict[str, Any]) -> AnyEngine:
    """An engine as docs/operations/pgbouncer.md says; nothing is set on its connections."""
    make = create_async_engine if adapter in ASYNC_ADAPTERS else sa.create_engine
    engine: AnyEngine = make(adapter_url(url, adapter), connect_args=connect_args)
    return engine


def statement_timeout(conn: sa.Connection, _schema: str) -> str:
    return str(conn.exec_driver_sql("SHOW statement_timeout").scalar_one())


# -- when things break


async def test_connection_that_ends_in_the_middle_leaves_nothing(setup: Setup, adapter: str) -> None:
    reindexer = setup.reindexer(adapter)
    with setup.operator.old_snapshot():
        running = asyncio.create_task(reindexer.run_once())
        await until(lambda: setup.operator.waiting("REINDEX"))
        [pid] = setup.operator.waiting("REINDEX")
        setup.operator.conn.execute("SELECT pg_terminate_backend(%s)", [pid])
        await running
        assert await reindexer.failed.wait() == KIND
        assert setup.operator.invalid() == []


async def test_statement_that_the_server_does_not_end_is_left_and_seen_by_the_next_run(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server cannot be asked, and a thread cannot be cancelled: nobody waits for it, and nobody drops its index."""

    def unreachable(_conn: sa.Connection, _schema: str, _mark: str) -> int:
        raise UnavailableError("the network is gone")

    monkeypatch.setattr(module, "statement_cancel", unreachable)
    monkeypatch.setattr(module, "CANCEL_LIMIT", 0.3)
    caplog.set_level(logging.DEBUG)
    reindexer = setup.reindexer("psycopg", KIND, PKEY, timeout=timedelta(seconds=2))
    with setup.operator.old_snapshot():
        await reindexer.run_once()
        assert "Stopped waiting for a statement that the server does not end" in caplog.text
        assert "the network is gone" in caplog.text
        assert setup.operator.waiting("REINDEX")
        assert setup.operator.invalid() == ["river_job_kind_ccnew"]
        assert await reindexer.failed.wait() == KIND
        assert await reindexer.passed_over.wait() == PKEY
    await until(lambda: not setup.operator.statements("REINDEX"))
    assert setup.operator.invalid() == []
