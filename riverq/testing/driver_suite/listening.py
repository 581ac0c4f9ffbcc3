"""Conformance: LISTEN and NOTIFY, and every way in which a listener's connection ends.

No test measures time. Where something must happen at once, the test waits much longer than any right answer takes, and
it is the outcome that shows which path was taken: what arrived, or which exception was raised.
"""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
import sqlalchemy as sa

from riverq.driver import Listener, Notification
from riverq.driver.threaded import THREAD_NAME
from riverq.errors import ConfigError, DatabaseError, UnavailableError
from riverq.testing.driver_suite.case import Conformance

LONG = 20.0
"""Seconds that nothing right ever takes."""

SHORT = 0.05
"""Seconds to see that nothing comes."""

_WAITS = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND NOT granted")


async def gather(listener: Listener, count: int) -> list[Notification]:
    """The next `count` notifications."""
    found: list[Notification] = []
    async with asyncio.timeout(LONG):
        while len(found) < count:
            found += await listener.wait(LONG)
    return found


@pytest.mark.asyncio
class TestListening:
    """`Driver.listener`."""

    @pytest.fixture(autouse=True)
    def _needs_listen(self, conformance: Conformance) -> None:
        if not conformance.driver.capabilities.listen:
            pytest.skip("this driver cannot listen")

    async def test_several_channels(self, conformance: Conformance) -> None:
        """Each notification says on which channel it came; other channels are not heard."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_a")
            await listener.listen("riverq_b")
            await conformance.notify("riverq_a", "1")
            await conformance.notify("riverq_c", "2")
            await conformance.notify("riverq_b", "3")
            assert await gather(listener, 2) == [Notification("riverq_a", "1"), Notification("riverq_b", "3")]

    @pytest.mark.parametrize("channel", ["public.river_insert", "We%s:ird.\"Q\" 'x'", "schéma.river_insert", "select"])
    async def test_channel_names_are_quoted(self, conformance: Conformance, channel: str) -> None:
        """Dots, capitals, quotes and letters of any alphabet are part of the name."""
        async with conformance.listening() as listener:
            await listener.listen(channel)
            await conformance.notify(channel, "x")
            assert await gather(listener, 1) == [Notification(channel, "x")]
            await listener.unlisten(channel)
            await conformance.notify(channel, "y")
            await listener.ping(LONG)
            assert await listener.wait(SHORT) == []

    @pytest.mark.parametrize("payload", ["", '{"key":"é 日本 🐍"}', "x" * 7999, 'tab\t "quoted" \\ \n line'])
    async def test_payloads_arrive_unchanged(self, conformance: Conformance, payload: str) -> None:
        """UTF-8, as River's own payloads may be, up to Postgres's limit of 8000 bytes."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_payload")
            await conformance.notify("riverq_payload", payload)
            assert await gather(listener, 1) == [Notification("riverq_payload", payload)]

    async def test_burst(self, conformance: Conformance) -> None:
        """Hundreds in one transaction, then hundreds while nobody waits: none is lost, their order is kept."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_burst")
            for start in (0, 500):
                payloads = [f"{n} é" for n in range(start, start + 500)]
                await conformance.notify("riverq_burst", *payloads)
                assert [n.payload for n in await gather(listener, 500)] == payloads

    async def test_notifications_during_commands(self, conformance: Conformance) -> None:
        """What arrives with the answer to another statement is heard too."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_busy")
            for n in range(50):
                await asyncio.gather(conformance.notify("riverq_busy", str(n)), listener.ping(LONG))
            assert [n.payload for n in await gather(listener, 50)] == [str(n) for n in range(50)]

    async def test_notification_in_one_packet_with_an_answer(self, conformance: Conformance) -> None:
        """What an adapter read too much of stays in a buffer, where the socket does not show it; it is heard at once.

        Without TLS only, because the test looks into the stream.
        """
        ready_for_query = b"Z\x00\x00\x00\x05I"
        async with conformance.proxied() as (proxy, engine), conformance.listening(engine) as listener:
            await listener.listen("riverq_packet")
            async with asyncio.timeout(LONG):
                proxy.hold()
                ping = asyncio.create_task(listener.ping(LONG))
                await proxy.until_held(ready_for_query)
                await conformance.notify("riverq_packet", "in the same packet")
                await proxy.until_held(b"in the same packet")
                proxy.release()
                await ping
                assert await listener.wait(3600) == [Notification("riverq_packet", "in the same packet")]

    async def test_unlisten(self, conformance: Conformance) -> None:
        """After UNLISTEN nothing is heard on that channel, the others go on, and LISTEN starts again."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_a")
            await listener.listen("riverq_b")
            await listener.unlisten("riverq_a")
            await listener.unlisten("riverq_never")
            await conformance.notify("riverq_a", "lost")
            await conformance.notify("riverq_b", "heard")
            assert await gather(listener, 1) == [Notification("riverq_b", "heard")]
            await listener.listen("riverq_a")
            await conformance.notify("riverq_a", "again")
            assert await gather(listener, 1) == [Notification("riverq_a", "again")]

    async def test_wait_returns_when_something_arrives(self, conformance: Conformance) -> None:
        """A task that waits is woken by the notification, not by its timeout."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_wake")
            waiting = asyncio.create_task(listener.wait(3600))
            await asyncio.sleep(0)  # noqa: TID251  # let it begin to wait
            await conformance.notify("riverq_wake", "now")
            assert await asyncio.wait_for(waiting, LONG) == [Notification("riverq_wake", "now")]

    async def test_wait_times_out_empty(self, conformance: Conformance) -> None:
        """Nothing arrived is an empty list, and the listener goes on."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_quiet")
            assert await listener.wait(SHORT) == []
            assert await listener.wait(0) == []
            await conformance.notify("riverq_quiet", "x")
            assert await gather(listener, 1) == [Notification("riverq_quiet", "x")]

    async def test_cancelled_wait_loses_nothing(self, conformance: Conformance) -> None:
        """Cancelling a wait leaves the connection usable and what arrives later for the next one."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_cancel")
            waiting = asyncio.create_task(listener.wait(LONG))
            await asyncio.sleep(0)  # noqa: TID251  # let it begin to wait
            waiting.cancel()
            await asyncio.wait({waiting})
            await conformance.notify("riverq_cancel", "x")
            assert await gather(listener, 1) == [Notification("riverq_cancel", "x")]

    async def test_listen_while_another_task_waits(self, conformance: Conformance) -> None:
        """A command does not wait for the wait: it has hours left, the command seconds."""
        async with conformance.listening() as listener:
            waiting = asyncio.create_task(listener.wait(3600))
            await asyncio.sleep(0)  # noqa: TID251  # let it begin to wait
            async with asyncio.timeout(LONG):
                await listener.listen("riverq_meanwhile")
                await listener.ping(LONG)
                await conformance.notify("riverq_meanwhile", "x")
                assert await waiting == [Notification("riverq_meanwhile", "x")]

    async def test_refused_command_leaves_it_usable(self, conformance: Conformance) -> None:
        """A name with NUL is refused; the connection is none the worse."""
        async with conformance.listening() as listener:
            with pytest.raises(ConfigError, match="without NUL"):
                await listener.listen("a\x00b")
            await listener.listen("riverq_after")
            await conformance.notify("riverq_after", "x")
            assert await gather(listener, 1) == [Notification("riverq_after", "x")]

    async def test_query(self, conformance: Conformance) -> None:
        """The first value of the first row as text, `%` and any letter as they are; NULL, no row and no result."""
        async with conformance.listening() as listener:
            assert await listener.query("SELECT 'é 🐍 %s %% :x'::text, 'second' UNION ALL SELECT 'b', 'c'", LONG) == (
                "é 🐍 %s %% :x"
            )
            assert await listener.query("SELECT NULL::text", LONG) is None
            assert await listener.query("SELECT 'x'::text WHERE false", LONG) is None
            assert await listener.query("SET work_mem = '1234kB'", LONG) is None

    async def test_query_leaves_its_state_on_the_listeners_session(self, conformance: Conformance) -> None:
        """Outside a transaction: what is set, or locked, stays until the connection ends."""
        async with conformance.listening() as listener:
            assert await listener.query("SELECT set_config('work_mem', '1234kB', false)", LONG) == "1234kB"
            await listener.ping(LONG)
            assert await listener.query("SELECT current_setting('work_mem')", LONG) == "1234kB"
            transactions = [await listener.query("SELECT txid_current()::text", LONG) for _ in range(2)]
            assert len(set(transactions)) == 2

    async def test_query_that_fails_leaves_it_usable(self, conformance: Conformance) -> None:
        """The server's own error, with its SQLSTATE; LISTEN and what is heard are none the worse."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_after_error")
            with pytest.raises(DatabaseError) as caught:
                await listener.query("SELECT (1 / (random() * 0)::int)::text", LONG)
            assert caught.value.sqlstate == "22012"
            assert not isinstance(caught.value, UnavailableError)
            assert await listener.query("SELECT 'x'::text", LONG) == "x"
            await conformance.notify("riverq_after_error", "x")
            assert await gather(listener, 1) == [Notification("riverq_after_error", "x")]

    async def test_notification_during_a_query(self, conformance: Conformance) -> None:
        """What arrives while a query's answer is awaited is heard by whoever waits meanwhile."""
        async with conformance.listening() as listener, conformance.stepping() as steps:
            await listener.listen("riverq_query")
            await steps.call(lambda conn: conn.execute(sa.text("SELECT pg_advisory_xact_lock(7, 7)")).all())
            waiting = asyncio.create_task(listener.wait(LONG))
            query = asyncio.create_task(listener.query("SELECT pg_advisory_xact_lock(7, 7)::text", LONG))
            async with asyncio.timeout(LONG):
                while not await steps.call(lambda conn: conn.execute(_WAITS).scalar_one()):
                    pass
                await conformance.notify("riverq_query", "meanwhile")
                assert not query.done()
                await steps.call(lambda conn: conn.rollback())
                assert await query == ""
                assert await waiting == [Notification("riverq_query", "meanwhile")]

    async def test_terminated_backend_is_noticed_while_waiting(self, conformance: Conformance) -> None:
        """The wait ends with the error; it does not run to its timeout, nor need a ping."""
        engine = conformance.make_engine(conformance.case.url)
        async with conformance.listening(engine) as listener:
            await listener.listen("riverq_end")
            waiting = asyncio.create_task(listener.wait(3600))
            await asyncio.sleep(0)  # noqa: TID251  # let it begin to wait
            assert await conformance.terminate(engine) >= 1
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(waiting, LONG)
            commands = (listener.wait(LONG), listener.listen("x"), listener.unlisten("x"), listener.ping(LONG))
            for command in (*commands, listener.query("SELECT 'x'::text", LONG)):
                with pytest.raises(UnavailableError):
                    await command

    async def test_what_arrived_before_the_end_is_handed_over(self, conformance: Conformance) -> None:
        """First what was heard, then the error."""
        engine = conformance.make_engine(conformance.case.url)
        async with conformance.listening(engine) as listener:
            await listener.listen("riverq_last")
            await conformance.notify("riverq_last", "words")
            await listener.ping(LONG)
            await conformance.terminate(engine)
            with pytest.raises(UnavailableError):
                await listener.ping(LONG)
            assert await listener.wait(LONG) == [Notification("riverq_last", "words")]
            with pytest.raises(UnavailableError):
                await listener.wait(LONG)

    async def test_close_twice(self, conformance: Conformance) -> None:
        """Closing what is closed is nothing."""
        async with conformance.listening() as listener:
            await listener.close()
            await listener.close()
            with pytest.raises(UnavailableError):
                await listener.wait(LONG)
            with pytest.raises(UnavailableError):
                await listener.ping(LONG)

    async def test_close_when_never_connected(self, conformance: Conformance) -> None:
        """Nor is closing what was never open; using it says so."""
        listener = conformance.driver.listener(conformance.engine)
        for command in (listener.wait(LONG), listener.listen("x"), listener.ping(LONG), listener.query("", LONG)):
            with pytest.raises(UnavailableError):
                await command
        await listener.close()

    async def test_close_while_another_task_waits(self, conformance: Conformance) -> None:
        """The wait ends with the error."""
        async with conformance.listening() as listener:
            await listener.listen("riverq_close")
            waiting = asyncio.create_task(listener.wait(3600))
            await asyncio.sleep(0)  # noqa: TID251  # let it begin to wait
            async with asyncio.timeout(LONG):
                await listener.close()
                with pytest.raises(UnavailableError):
                    await waiting

    async def test_close_ends_the_backend(self, conformance: Conformance) -> None:
        """The connection is really closed, not given back to a pool."""
        engine = conformance.make_engine(conformance.case.url)
        async with conformance.listening(engine) as listener:
            await listener.listen("riverq_gone")
        async with asyncio.timeout(LONG):
            while await conformance.terminate(engine):
                pass

    async def test_close_after_the_backend_ended(self, conformance: Conformance) -> None:
        """Never raises."""
        engine = conformance.make_engine(conformance.case.url)
        async with conformance.listening(engine) as listener:
            await conformance.terminate(engine)
            await listener.close()

    async def test_leaves_the_pool_its_slot(self, conformance: Conformance) -> None:
        """The listener's connection does not count: a pool of one still has one."""
        engine = conformance.make_engine(conformance.case.url, pool_size=1, max_overflow=0, pool_timeout=LONG)
        async with conformance.listening(engine), conformance.listening(engine) as listener:
            await listener.ping(LONG)
            assert await conformance.connected(lambda conn: conn.get_isolation_level(), engine) == "READ COMMITTED"

    async def test_connecting_in_vain(self, conformance: Conformance) -> None:
        """A server that is not there is UnavailableError, and close still works."""
        async with conformance.proxied() as (proxy, engine):
            await proxy.close()
            listener = conformance.driver.listener(engine)
            with pytest.raises(UnavailableError):
                await listener.connect()
            await listener.close()

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    async def test_cancelled_connecting(self, conformance: Conformance) -> None:
        """A server that accepts and says nothing holds up neither the cancellation nor the close."""
        async with conformance.proxied() as (proxy, engine):
            proxy.silence()
            listener = conformance.driver.listener(engine)
            connecting = asyncio.create_task(listener.connect())
            await proxy.until_accepted()
            async with asyncio.timeout(LONG):
                connecting.cancel()
                await asyncio.wait({connecting})
                assert connecting.cancelled()
                await listener.close()
                with pytest.raises(UnavailableError):
                    await listener.ping(LONG)
        # pg8000 leaves the socket of a login that failed to the garbage collector: let it be found here.
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                await asyncio.to_thread(thread.join, LONG)
        gc.collect()

    async def test_silent_network_ends_a_ping(self, conformance: Conformance) -> None:
        """Packets vanish: the ping fails by its own limit, and the listener is over at once."""
        async with conformance.proxied() as (proxy, engine), conformance.listening(engine) as listener:
            await listener.listen("riverq_silence")
            await listener.ping(LONG)
            proxy.silence()
            waiting = asyncio.create_task(listener.wait(3600))
            async with asyncio.timeout(LONG):
                with pytest.raises(UnavailableError):
                    await listener.ping(SHORT)
                with pytest.raises(UnavailableError):
                    await waiting
                await listener.close()

    async def test_silent_network_ends_a_query(self, conformance: Conformance) -> None:
        """As it does a ping: by the query's own limit, and the listener is over."""
        async with conformance.proxied() as (proxy, engine), conformance.listening(engine) as listener:
            assert await listener.query("SELECT 'x'::text", LONG) == "x"
            proxy.silence()
            async with asyncio.timeout(LONG):
                with pytest.raises(UnavailableError):
                    await listener.query("SELECT 'x'::text", SHORT)
                with pytest.raises(UnavailableError):
                    await listener.wait(3600)

    async def test_silent_network_does_not_hold_up_close(self, conformance: Conformance) -> None:
        """Nor does the goodbye wait for an answer, with a command under way or without."""
        async with conformance.proxied() as (proxy, engine):
            for with_command in (False, True):
                async with conformance.listening(engine) as listener:
                    proxy.silence()
                    command = asyncio.create_task(listener.ping(3600) if with_command else listener.wait(3600))
                    await asyncio.sleep(0)  # noqa: TID251  # let it begin
                    async with asyncio.timeout(LONG):
                        await listener.close()
                        with pytest.raises(UnavailableError):
                            await command
                    proxy.speak()
