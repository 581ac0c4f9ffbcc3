"""The lock on the listener's connection: taken once it is proven, gone with it, taken again on the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from riverq.driver import AnyEngine, Listener, load_driver
from riverq.errors import DatabaseError, UnavailableError
from riverq.liveness import Liveness
from riverq.notifier import Notifier
from riverq.query.client_registry import keepalives_text
from riverq.service import ServiceContext
from tests.fix_database import SESSION_APPLICATION
from tests.fix_pgbouncer import NO_PGBOUNCER, PgBouncers, find_pgbouncer, running_pgbouncer
from tests.fix_skips import skip_or_fail
from tests.listening import Scripted
from tests.liveness.conftest import LivenessMaker
from tests.liveness.registry import HEART, LISTENER, PATIENCE_SECONDS, Registry, eventually, until
from tests.smoke.test_pgbouncer import pooled_engine

pytestmark = [
    pytest.mark.own_session("the lock of a connection, which is anybody's in transaction mode"),
    pytest.mark.slow,  # sessions end, are cut off, or stand still for a while
]

MOST_FLOODS = 200
"""Of 4 MB each: no line takes as much without its reader."""

Notify = Callable[[str, str], Awaitable[None]]
ListenTo = Callable[[AnyEngine], Listener]


@pytest.fixture
async def notify(database_url: str) -> AsyncIterator[Notify]:
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=SESSION_APPLICATION
    ) as conn:

        async def notify(channel: str, payload: str) -> None:
            await conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))

        yield notify


@pytest.fixture
async def listener(listener_engine: AnyEngine) -> AsyncIterator[Listener]:
    """A connected one, as the notifier would hand it over."""
    listener = load_driver(listener_engine).listener(listener_engine)
    await listener.connect()
    yield listener
    await listener.close()


def make_notifier(ctx: ServiceContext, engine: AnyEngine, schema: str, notify: Notify) -> Notifier:
    driver = load_driver(engine)
    notifier = Notifier(ctx, make_listener=lambda: driver.listener(engine), schema=schema, notify=notify)
    notifier.delivering_changed.watch()
    notifier.probe_missed.watch()
    return notifier


@pytest.fixture
async def notifier(
    ctx: ServiceContext, listener_engine: AnyEngine, schema: str, notify: Notify
) -> AsyncIterator[Notifier]:
    notifier = make_notifier(ctx, listener_engine, schema, notify)
    yield notifier
    await notifier.stop()


@pytest.mark.hears
async def test_it_goes_with_the_connection_and_comes_back_with_the_next(
    liveness: Liveness, notifier: Notifier, registry: Registry
) -> None:
    notifier.on_proven = liveness.on_proven
    liveness.is_listening = lambda: notifier.is_connected
    row_id = registry.row()["id"]
    assert registry.holders(row_id) == []
    await notifier.start()
    assert await liveness.locked.wait() is True
    held_by = registry.holders(row_id)
    assert held_by == registry.backends(LISTENER)
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))
    assert liveness.stats().holds_lock

    assert registry.terminate(LISTENER) == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await liveness.locked.wait() is True
    again = registry.holders(row_id)
    assert again == registry.backends(LISTENER)
    assert again != held_by
    assert registry.row()["lock_taken"] is True
    await notifier.stop()
    await eventually(lambda: registry.holders(row_id) == [])
    assert not liveness.stats().holds_lock
    assert registry.row()["lock_taken"] is True, "so that the heartbeats' being late is enough from now on"


@pytest.mark.listens
async def test_while_the_listener_is_away_its_absence_is_no_sign_of_death(
    liveness: Liveness, notifier: Notifier, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that is suspended just then is taken for dead after one grace instead of ten."""
    notifier.on_proven, notifier.on_gone = liveness.on_proven, liveness.on_gone
    await notifier.start()
    assert await liveness.locked.wait() is True
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))
    with monkeypatch.context() as patch:
        patch.setattr(notifier, "_make_listener", _refused)
        assert registry.terminate(LISTENER) == 1
        await until(liveness, lambda: not registry.row()["lock_taken"])
        assert not liveness.stats().holds_lock
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await liveness.locked.wait() is True
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))
    await notifier.stop()
    while liveness.beaten.waiting:
        await liveness.beaten.wait()
    await liveness.beaten.wait()
    assert registry.row()["lock_taken"] is True, "a row that is kept after a stop is judged after one grace"


def _refused() -> Listener:
    listener = Scripted()
    listener.fail_on["connect"] = UnavailableError("refused")
    return listener


async def test_the_end_of_an_earlier_connection_says_nothing_of_the_present_one(
    liveness: Liveness, listener: Listener, registry: Registry
) -> None:
    await liveness.on_proven(listener)
    liveness.on_gone(Scripted())
    assert liveness.stats().holds_lock
    liveness.on_gone(listener)
    assert not liveness.stats().holds_lock
    await until(liveness, lambda: registry.row()["lock_taken"] is False and liveness.beaten.waiting == 0)


@pytest.mark.hears
@pytest.mark.slow  # the server is to be given the time in which it would have ended the session
async def test_a_suspended_client_keeps_it_however_much_it_is_told(database_url: str, registry: Registry) -> None:
    """It reads nothing, so the line fills up; its machine still answers, which must do."""
    within = timedelta(seconds=2)
    with psycopg.connect(database_url, autocommit=True, application_name=LISTENER) as suspended:
        suspended.execute("LISTEN flood")
        for statement in (keepalives_text(within), "SELECT pg_try_advisory_lock_shared(1, 1)"):
            suspended.execute(statement.encode())
        flood = "SELECT pg_notify('flood', repeat('x', 4000) || n) FROM generate_series(1, 1000) AS n"
        waits = "SELECT 1 AS one FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'ClientWrite'"
        for _ in range(MOST_FLOODS):
            registry.sql(flood)
            if registry.sql(waits, LISTENER):
                break
        assert registry.sql(waits, LISTENER)
        await asyncio.sleep(3 * within.total_seconds())
        locks = "SELECT 1 AS one FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"
        assert registry.sql(locks, suspended.info.backend_pid)


async def test_it_is_taken_when_the_row_comes_after_the_proof(
    make_liveness: LivenessMaker, listener: Listener, registry: Registry
) -> None:
    liveness = make_liveness()
    await liveness.on_proven(listener)
    assert liveness.locked.waiting == 0
    await liveness.start()
    assert await liveness.locked.wait() is True
    assert len(registry.holders(registry.row()["id"])) == 1


async def test_a_row_that_was_written_again_gets_its_own(
    liveness: Liveness, listener: Listener, registry: Registry
) -> None:
    await liveness.on_proven(listener)
    assert await liveness.locked.wait() is True
    old = registry.row()["id"]
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))
    registry.sql("DELETE FROM {client}")
    assert await liveness.locked.wait() is True
    new = registry.row()["id"]
    assert new != old
    assert (registry.holders(old), len(registry.holders(new))) == ([], 1)
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))


async def test_the_next_run_of_a_client_takes_its_own(
    liveness: Liveness, listener: Listener, registry: Registry
) -> None:
    """The listener may have outlived the first run."""
    await liveness.on_proven(listener)
    assert await liveness.locked.wait() is True
    old = registry.row()["id"]
    await liveness.stop()
    await liveness.start()
    assert await liveness.locked.wait() is True
    assert registry.row()["id"] != old
    assert (registry.holders(old), len(registry.holders(registry.row()["id"]))) == ([], 1)


async def test_it_is_taken_once_for_each_connection(
    liveness: Liveness, listener: Listener, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = listener.query

    async def query(statement: str, timeout: float) -> str | None:
        asked.append(statement)
        return await original(statement, timeout)

    monkeypatch.setattr(listener, "query", query)
    await asyncio.gather(liveness.on_proven(listener), liveness._retake_lock(listener))
    assert ["tcp_keepalives_idle" in text for text in asked] == [True, False]
    assert "pg_try_advisory_lock_shared" in asked[1]


async def test_a_lock_that_cannot_be_had_is_not_waited_for(
    liveness: Liveness, listener: Listener, registry: Registry
) -> None:
    """Then `lock_taken` is false, and only heartbeats count; the next connection may do better."""
    [key] = registry.sql(f"SELECT '{registry.schema}.riverq_client'::regclass::oid::int4 AS oid")
    row_id = registry.row()["id"]
    registry.sql("SELECT pg_advisory_lock(%s, %s)", key["oid"], row_id)
    await liveness.on_proven(listener)
    assert await liveness.locked.wait() is False
    assert not liveness.stats().holds_lock
    registry.sql("SELECT pg_advisory_unlock(%s, %s)", key["oid"], row_id)
    await liveness.on_proven(listener)
    assert await liveness.locked.wait() is True
    await until(liveness, lambda: bool(registry.row()["lock_taken"]))
    registry.sql("SELECT pg_terminate_backend(%s)", registry.holders(row_id)[0])
    with pytest.raises(UnavailableError):
        await liveness.on_proven(listener)
    assert not liveness.stats().holds_lock


async def test_a_statement_that_fails_leaves_the_notifier_its_connection(
    liveness: Liveness, listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(statement: str, timeout: float) -> str | None:
        raise DatabaseError("permission denied", "42501")

    monkeypatch.setattr(listener, "query", refuse)
    await liveness.on_proven(listener)
    assert await liveness.locked.wait() is False
    assert "only heartbeats count: permission denied" in caplog.text


async def test_two_clients_hold_one_each(
    make_liveness: LivenessMaker, listener_engine: AnyEngine, registry: Registry
) -> None:
    both = [make_liveness(), make_liveness(client_id="other")]
    driver = load_driver(listener_engine)
    listeners = [driver.listener(listener_engine) for _ in both]
    try:
        for liveness, listener in zip(both, listeners, strict=True):
            await liveness.start()
            await listener.connect()
            await liveness.on_proven(listener)
        holders = [registry.holders(row["id"]) for row in registry.rows()]
        assert sorted(pid for pids in holders for pid in pids) == sorted(registry.backends(LISTENER))
        await listeners[0].close()
        await eventually(lambda: len(registry.backends(LISTENER)) == 1)
        assert [len(registry.holders(row["id"])) for row in registry.rows()] == [0, 1]
    finally:
        for listener in listeners:
            await listener.close()


@pytest.mark.hears
@pytest.mark.direct("goes through PgBouncers of its own")
@pytest.mark.pgbouncer
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_through_pgbouncer(
    pool_mode: str,
    adapter: str,
    pgbouncers: PgBouncers,
    ctx: ServiceContext,
    schema: str,
    notify: Notify,
    make_liveness: LivenessMaker,
    registry: Registry,
) -> None:
    """In session mode the lock is there for as long as the server connection is ours; in transaction mode never."""
    engine: Any = pooled_engine(pgbouncers.url(pool_mode), adapter)
    liveness = make_liveness(engine=engine)
    notifier = make_notifier(ctx, engine, schema, notify)
    notifier.on_proven = liveness.on_proven
    try:
        await liveness.start()
        row_id = registry.row()["id"]
        await notifier.start()
        if pool_mode == "session":
            assert await liveness.locked.wait() is True
            assert len(registry.holders(row_id)) == 1
            await until(liveness, lambda: bool(registry.row()["lock_taken"]))
        else:
            while await notifier.probe_missed.wait() < 2:
                pass
            assert (liveness.locked.waiting, registry.row()["lock_taken"]) == (0, False)
        while liveness.beaten.waiting:
            await liveness.beaten.wait()
        await liveness.beaten.wait()
        await notifier.stop()
        await eventually(lambda: registry.holders(row_id) == [])
        await liveness.stop()
        assert registry.rows() == []
        assert registry.backends(HEART) == []
    finally:
        await notifier.stop()
        await liveness.stop()
        await _dispose(engine)


@pytest.mark.hears
@pytest.mark.direct("goes through PgBouncers of its own")
@pytest.mark.pgbouncer
async def test_through_a_pgbouncer_that_resets_nothing(
    adapter: str,
    database_url: str,
    ctx: ServiceContext,
    schema: str,
    notify: Notify,
    make_liveness: LivenessMaker,
    registry: Registry,
) -> None:
    """The lock outlives its client on the pooler's connection, so silence decides; whoever comes next is not harmed."""
    command = find_pgbouncer()
    if command is None:
        skip_or_fail(NO_PGBOUNCER)
    with running_pgbouncer(command, database_url, "session", server_reset_query="") as url:
        engine: Any = pooled_engine(url, adapter)
        liveness = make_liveness(engine=engine)
        first, second = (make_notifier(ctx, engine, schema, notify) for _ in range(2))
        first.on_proven = second.on_proven = liveness.on_proven
        try:
            await liveness.start()
            old = registry.row()["id"]
            await first.start()
            assert await liveness.locked.wait() is True
            await until(liveness, lambda: bool(registry.row()["lock_taken"]))
            await first.stop()
            assert len(registry.holders(old)) == 1
            registry.sql("DELETE FROM {client}")
            while registry.rows() == [] or registry.row()["id"] == old:
                await liveness.beaten.wait()
            await second.start()
            while not liveness.stats().holds_lock:
                assert await liveness.locked.wait() is True
            new = registry.row()["id"]
            assert len(registry.holders(new)) == 1
            await until(liveness, lambda: bool(registry.row()["lock_taken"]))
        finally:
            for each in (first, second, liveness):
                await each.stop()
            await _dispose(engine)


async def _dispose(engine: Any) -> None:
    ended = engine.dispose()
    if ended is not None:
        await ended
