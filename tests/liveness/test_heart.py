"""The row: written, touched from a thread of its own whatever happens, and deleted at a clean end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from riverq.driver import AnyEngine
from riverq.errors import SchemaError, UnavailableError
from riverq.liveness import Liveness, heart
from riverq.query import client_registry
from riverq.testing.driver_suite.proxy import SilentProxy
from tests.fix_database import EngineMaker
from tests.liveness.conftest import FAST, GRACE, LivenessMaker
from tests.liveness.registry import HEART, PATIENCE_SECONDS, Registry, eventually, until
from tests.service.stress import stress_start_stop


def hearts() -> int:
    return sum(thread.name == heart.THREAD_NAME for thread in threading.enumerate())


async def test_the_row_is_there_when_start_returns(liveness: Liveness, registry: Registry) -> None:
    row = registry.row()
    assert (row["client_id"], row["uuid"], row["lock_taken"]) == ("me", liveness.incarnation, False)
    assert row["id"] == liveness.row_id == await liveness.registered.wait()
    stats = liveness.stats()
    assert stats.enabled
    assert stats.last_seen is not None
    assert not stats.holds_lock


async def test_heartbeats_touch_it(liveness: Liveness, registry: Registry) -> None:
    before = registry.row()
    seen = [await liveness.beaten.wait() for _ in range(3)]
    after = registry.row()
    assert seen == sorted(set(seen))
    assert before["seen_at"] < seen[-1] <= after["seen_at"]
    assert {**after, "seen_at": None} == {**before, "seen_at": None}
    assert liveness.stats().failures_in_a_row == 0


async def test_a_clean_stop_deletes_the_row(liveness: Liveness, registry: Registry) -> None:
    await liveness.stop()
    assert registry.rows() == []
    await eventually(lambda: hearts() == 0)  # the thread's last words are said before its last breath
    assert liveness.stats().last_seen is None


async def test_a_stop_that_leaves_jobs_leaves_the_row(liveness: Liveness, registry: Registry) -> None:
    liveness.keep_row = True
    await liveness.stop()
    row = registry.row()
    assert row["uuid"] == liveness.incarnation
    await liveness.start()
    assert [each["uuid"] for each in registry.rows()] == [row["uuid"], liveness.incarnation]
    await liveness.stop()
    assert registry.row() == row, "the next run is another incarnation, and ends cleanly"


async def test_start_stop_stress(make_liveness: LivenessMaker, registry: Registry) -> None:
    await stress_start_stop(make_liveness(), tasks=4, rounds=3)
    assert registry.rows() == []


@pytest.mark.own_session("a backend that only its heart has")
async def test_without_the_table_nothing_is_done(make_liveness: LivenessMaker, registry: Registry) -> None:
    liveness = make_liveness(enabled=False)
    await liveness.start()
    await liveness.on_proven(None)  # type: ignore[arg-type]  # it is not looked at
    assert (registry.rows(), registry.backends(HEART), hearts()) == ([], [], 0)
    assert (liveness.incarnation, liveness.row_id, liveness.sure_for()) == (None, None, timedelta(0))
    assert not liveness.stats().enabled
    await liveness.stop()


async def test_who_cannot_register_does_not_start(
    make_liveness: LivenessMaker, empty_schema: str, registry: Registry
) -> None:
    liveness = make_liveness(schema=empty_schema)
    with pytest.raises(SchemaError, match="riverq_client"):
        await liveness.start()
    assert not liveness.is_running
    assert liveness.sure_for() == timedelta(0)


async def test_a_blocked_event_loop_is_no_death(liveness: Liveness, registry: Registry) -> None:
    """The loop does not run at all while the row is seen to change five times."""
    seen = {registry.seen_at()}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(seen) < 5:
        seen.add(registry.seen_at())
        assert time.monotonic() < deadline, "no heartbeat while the event loop is blocked"


async def test_it_does_not_need_the_applications_pool(
    make_liveness: LivenessMaker, registry: Registry, heart_engine: AnyEngine
) -> None:
    """The only connection of the pool is in use all the time."""
    liveness = make_liveness()
    conn: Any = heart_engine.connect()
    if hasattr(conn, "__aenter__"):
        async with conn:
            await liveness.start()
            await liveness.beaten.wait()
    else:
        with conn:
            await liveness.start()
            await liveness.beaten.wait()


@pytest.mark.own_session("a backend that only its heart has")
async def test_a_terminated_backend_is_replaced(liveness: Liveness, registry: Registry) -> None:
    before = registry.row()
    assert registry.terminate(HEART) == 1
    await liveness.failed.wait()
    while liveness.beaten.waiting:
        await liveness.beaten.wait()
    await liveness.beaten.wait()
    after = registry.row()
    assert after["seen_at"] > before["seen_at"]
    assert {**after, "seen_at": None} == {**before, "seen_at": None}


async def test_a_deleted_row_is_written_again_with_its_time(liveness: Liveness, registry: Registry) -> None:
    """A new `started_at` would make every run claimed before it look like a dead incarnation's."""
    before = registry.row()
    assert await liveness.registered.wait() == before["id"]
    registry.sql("DELETE FROM {client}")
    assert await liveness.registered.wait() == liveness.row_id != before["id"]
    after = registry.row()
    assert [after[name] for name in ("started_at", "uuid")] == [before[name] for name in ("started_at", "uuid")]
    assert after["id"] == liveness.row_id


async def test_a_locked_row_does_not_collect_backends(
    make_liveness: LivenessMaker,
    registry: Registry,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server ends the waiting statement itself, before the client gives up on it."""
    liveness = make_liveness()
    await liveness.start()
    await liveness.beaten.wait()  # so that the next is not under way when the lock is taken
    with psycopg.connect(database_url) as other, monkeypatch.context() as patch:
        other.execute(f'LOCK TABLE "{registry.schema}".riverq_client IN EXCLUSIVE MODE')
        # Half a second, long before the client does; only while the table is locked, or a slow server is an outage too.
        patch.setattr(heart, "SERVERS_SHARE", 0.05)
        for _ in range(2):
            assert "timeout" in await liveness.failed.wait(PATIENCE_SECONDS)
        assert liveness.stats().failures_in_a_row >= 2
        await eventually(lambda: len(registry.backends(HEART)) <= 1)  # the one before it may be on its way out
    while liveness.beaten.waiting:
        await liveness.beaten.wait()
    await liveness.beaten.wait()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("Could not show that this client lives" in line for line in told) == 1, "once per outage"


async def test_a_failure_that_nobody_foresaw_does_not_end_it(
    liveness: Liveness, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = client_registry.client_heartbeat

    def fail_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(heart, "client_heartbeat", original)
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(heart, "client_heartbeat", fail_once)
    assert await liveness.failed.wait() == "a mistake"
    await until(liveness, lambda: liveness.stats().failures_in_a_row == 0)
    assert "in a way nobody foresaw" in caplog.text


async def test_two_clients_with_one_id_are_told(
    make_liveness: LivenessMaker, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    other, first, second = make_liveness(client_id="other"), make_liveness(), make_liveness()
    await other.start()
    await first.start()
    assert "Another client" not in caplog.text
    await second.start()
    assert "Another client with this id was seen" in caplog.text
    assert len(registry.rows()) == 3
    await second.stop()
    await until(first, lambda: first.beaten.waiting == 0)
    assert [row["uuid"] for row in registry.rows()] == [other.incarnation, first.incarnation]


async def test_of_two_with_one_id_that_start_at_once_one_is_told(
    make_liveness: LivenessMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a deployment starts them: neither row is committed when the other is written."""
    both_written = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def register(*args: Any, **options: Any) -> Any:
        entered = client_registry.client_register(*args, **options)
        both_written.wait()
        return entered

    monkeypatch.setattr(heart, "client_register", register)
    await asyncio.gather(*(make_liveness().start() for _ in range(2)))
    assert "Another client with this id was seen" in caplog.text


async def test_a_look_for_twins_that_fails_does_not_cost_the_start(
    make_liveness: LivenessMaker, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise UnavailableError("cut")

    monkeypatch.setattr(heart, "client_living_twins", fail)
    liveness = make_liveness()
    await liveness.start()
    await liveness.beaten.wait()
    assert registry.row()["uuid"] == liveness.incarnation


async def test_an_attempt_that_was_cancelled_by_itself_does_not_end_it(
    liveness: Liveness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter may have it when its connection goes; it must not look like our own stop."""
    original = client_registry.client_heartbeat

    def cancel_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(heart, "client_heartbeat", original)
        raise asyncio.CancelledError

    monkeypatch.setattr(heart, "client_heartbeat", cancel_once)
    assert "cut short" in await liveness.failed.wait()
    await until(liveness, lambda: liveness.stats().failures_in_a_row == 0)


async def test_in_a_forked_process_there_is_no_heart(liveness: Liveness, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(liveness, lambda: liveness.sure_for() > timedelta(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        assert liveness.sure_for() == timedelta(0)
        assert liveness.row_id is None
        assert liveness.stats().last_seen is None
    await until(liveness, lambda: liveness.sure_for() > timedelta(0))


# -- the network at its worst


def proxied_engine(make_engine: EngineMaker, adapter: str, database_url: str, port: int) -> AnyEngine:
    url = make_url(database_url).set(host="127.0.0.1", port=port)
    return make_engine(adapter, url=url.render_as_string(hide_password=False))


@pytest.fixture
def needs_tcp(database_url: str) -> str:
    host = make_url(database_url).host
    if host is None or host.startswith("/"):
        pytest.skip("a proxy needs a database that is reached by TCP")
    return host


def limit_attempts(liveness: Liveness, limit: timedelta) -> None:
    """From the next one on."""
    running = liveness._heart
    assert running is not None
    running._timing = replace(running._timing, limit=limit)


@pytest.mark.direct("a proxy of its own leads straight to the server")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_a_silent_network_costs_one_connection_not_the_heart(
    make_liveness: LivenessMaker, make_engine: EngineMaker, adapter: str, database_url: str, needs_tcp: str
) -> None:
    """The heartbeat under way is given up by its own limit; when packets arrive again, a new connection is made."""
    async with SilentProxy(needs_tcp, make_url(database_url).port or 5432) as proxy:
        engine = proxied_engine(make_engine, adapter, database_url, proxy.port)
        liveness = make_liveness(engine=engine)
        await liveness.start()
        await until(liveness, lambda: liveness.sure_for() > timedelta(0))
        limit_attempts(liveness, timedelta(seconds=1))
        proxy.silence()
        assert "took longer" in await liveness.failed.wait(PATIENCE_SECONDS)
        assert liveness.sure_for() == timedelta(0)
        proxy.speak()
        limit_attempts(liveness, FAST.limit)  # after it, as what begins in silence must be given up soon
        while liveness.beaten.waiting:
            await liveness.beaten.wait()
        await liveness.beaten.wait(PATIENCE_SECONDS)
        assert liveness.stats().failures_in_a_row == 0
        await liveness.stop()


@pytest.mark.direct("a proxy of its own leads straight to the server")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("under_way", [False, True])
async def test_a_silent_network_does_not_hold_up_stop(
    make_liveness: LivenessMaker,
    make_engine: EngineMaker,
    adapter: str,
    database_url: str,
    needs_tcp: str,
    registry: Registry,
    under_way: bool,
) -> None:
    """Whether a heartbeat waits for its answer just then or the next statement would be the one that unregisters."""
    async with SilentProxy(needs_tcp, make_url(database_url).port or 5432) as proxy:
        engine = proxied_engine(make_engine, adapter, database_url, proxy.port)
        interval = timedelta(0) if under_way else GRACE * 100
        liveness = make_liveness(engine=engine, interval=interval, limit=GRACE * 100, stop_limit=timedelta(seconds=1))
        await liveness.start()
        proxy.silence()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await liveness.stop()
        assert registry.row()["uuid"] == liveness.incarnation
        await eventually(lambda: hearts() == 0)


@pytest.mark.direct("a proxy of its own leads straight to the server")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_a_silent_network_does_not_hold_up_a_failing_start(
    make_liveness: LivenessMaker, make_engine: EngineMaker, adapter: str, database_url: str, needs_tcp: str
) -> None:
    async with SilentProxy(needs_tcp, make_url(database_url).port or 5432) as proxy:
        engine = proxied_engine(make_engine, adapter, database_url, proxy.port)
        proxy.silence()
        liveness = make_liveness(engine=engine, limit=timedelta(milliseconds=200))
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(UnavailableError, match="took longer"):
                await liveness.start()
