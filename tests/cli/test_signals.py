"""A signal is handled at once, also where the system gives it to a thread that is not the main one."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from riverq.cli.bench import Interrupts
from riverq.cli.signals import handling
from riverq.cli.stopping import Stopping

PATIENCE = 10.0
HANDLED, GAVE_UP = "handled", "gave up"


class Elsewhere:
    """A thread that takes a signal as soon as the main thread has nothing to do; long after, it wakes the loop."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._main_goes_idle = threading.Event()
        self._handled = threading.Event()

    def handle(self, *_: Any) -> None:
        """What the test's handler calls; from any thread."""
        self._handled.set()
        self._loop.call_soon_threadsafe(self._end, HANDLED)

    async def take(self, number: signal.Signals) -> list[str]:
        """What came first."""
        thread = threading.Thread(target=self._run, args=(number,))
        thread.start()
        # The main thread holds the interpreter from here until its `select`, so nothing happens in between.
        self._loop.call_soon(self._main_goes_idle.set)
        await self._over.wait()
        thread.join()
        return self.order

    def _run(self, number: signal.Signals) -> None:
        self._main_goes_idle.wait()
        signal.pthread_kill(threading.get_ident(), number)
        if not self._handled.wait(PATIENCE):
            self._loop.call_soon_threadsafe(self._end, GAVE_UP)

    def _end(self, how: str) -> None:
        self.order.append(how)
        self._over.set()


@pytest.fixture
async def elsewhere() -> Elsewhere:
    return Elsewhere()


async def test_a_signal_that_another_thread_was_given_wakes_the_loop(elsewhere: Elsewhere) -> None:
    with handling([signal.SIGUSR1], elsewhere.handle):
        assert await elsewhere.take(signal.SIGUSR1) == [HANDLED]


async def test_so_does_one_that_stops_a_bench(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    place: Any = None
    interrupts = Interrupts(place)
    monkeypatch.setattr(interrupts, "_act", elsewhere.handle)
    with interrupts.handled():
        assert await elsewhere.take(signal.SIGTERM) == [HANDLED]


async def test_so_does_one_that_stops_a_worker(elsewhere: Elsewhere) -> None:
    starting: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait())
    starting.add_done_callback(elsewhere.handle)
    with Stopping(starting, print).on_signals():
        assert await elsewhere.take(signal.SIGTERM) == [HANDLED]
    assert starting.cancelled()


def wakeup_fd() -> int:
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found


def nobody(*_: Any) -> None: ...


async def test_everything_is_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with handling([signal.SIGUSR1], nobody):
        assert signal.getsignal(signal.SIGUSR1) is nobody
        assert wakeup_fd() != -1
    assert signal.getsignal(signal.SIGUSR1) is before
    assert wakeup_fd() == -1


def of_the_loop() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)


@pytest.mark.parametrize("when", ["before", "inside"])
async def test_a_loop_that_watches_for_signals_itself_goes_on(elsewhere: Elsewhere, when: str) -> None:
    begin: dict[str, Callable[[], None]] = {when: of_the_loop}
    block: AbstractContextManager[None] = handling([signal.SIGUSR1], elsewhere.handle)
    begin.get("before", nobody)()
    with block:
        begin.get("inside", nobody)()
        assert await elsewhere.take(signal.SIGUSR1) == [HANDLED]
    assert wakeup_fd() != -1
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)
    assert wakeup_fd() == -1
