from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from riverq.worker.cancellation import Cancellation, CancelReason
from riverq.worker.run_loop import call_cancellable, run_in_loop


def test_the_first_reason_stays() -> None:
    signal = Cancellation()
    assert (signal.reason, signal.is_set()) == (None, False)
    assert signal.set(CancelReason.TIMEOUT)
    assert not signal.set(CancelReason.LOST)
    assert signal.reason == "timeout"
    with pytest.raises(asyncio.CancelledError):
        signal.raise_if_set()


def test_waiting_threads_are_woken() -> None:
    signal = Cancellation()
    woken = threading.Barrier(4, timeout=10)

    def wait() -> None:
        assert signal.wait(10)
        woken.wait()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not signal.wait(0)
    signal.set(CancelReason.STOPPING)
    woken.wait()
    assert signal.wait()
    for thread in threads:
        thread.join()


async def test_a_worker_that_returns_leaves_no_cancellation_behind() -> None:
    signal = Cancellation()

    async def work() -> None:
        signal.set(CancelReason.STOPPING)  # from its own step: delivered at the next await, and there is none

    async def job() -> str:
        assert await call_cancellable(work, signal) is None
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return "reported"

    assert await asyncio.create_task(job()) == "reported"


async def test_a_worker_that_swallows_its_cancellation_has_returned() -> None:
    signal = Cancellation()
    asleep = asyncio.Event()

    async def work() -> None:
        try:
            asleep.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return

    task = asyncio.create_task(call_cancellable(work, signal))
    await asleep.wait()
    signal.set(CancelReason.LOST)
    assert await task is None


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), ValueError("x")])
async def test_what_a_worker_raises_is_handed_back(error: BaseException) -> None:
    async def work() -> None:
        raise error

    assert await asyncio.create_task(call_cancellable(work, Cancellation())) is error


async def test_middleware_sees_a_timeout_as_an_error_and_goes_on() -> None:
    signal = Cancellation()
    seen: list[str] = []

    async def middleware() -> None:
        try:
            await run_in_loop(lambda: asyncio.sleep(3600), signal, timedelta(milliseconds=1))
        except asyncio.CancelledError:
            async with asyncio.timeout(10):  # would be confused by a task that is still being cancelled
                await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    error = await asyncio.create_task(call_cancellable(middleware, signal))
    assert isinstance(error, asyncio.CancelledError)
    assert (seen, signal.reason) == (["cleaned up"], CancelReason.TIMEOUT)
