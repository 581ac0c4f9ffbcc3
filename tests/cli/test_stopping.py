"""What the levels of stopping do where two of them end at the same moment."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from riverq.cli.stopping import CANCEL, LEAVE, SOFT, Stopping


class Running:
    """A runtime whose ordinary stop ends as soon as an abort has begun, and whose abort takes a little longer."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()

    async def stop(self) -> None:
        await self._is_over.wait()

    async def abort(self, _grace: timedelta) -> list[int]:
        self._is_over.set()
        for _ in range(10):
            await asyncio.sleep(0)
        return [7]

    def cancel_jobs(self) -> None: ...

    def summary(self) -> str:
        return "0 jobs worked"


@pytest.mark.parametrize(("level", "code"), [(CANCEL, 0), (LEAVE, 1)])
async def test_a_stop_that_ends_while_jobs_are_left_is_no_clean_one(
    level: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()
    monkeypatch.setattr("riverq.cli.stopping.os._exit", lambda _: left.set())
    monkeypatch.setattr("riverq.cli.stopping._leave_soon", lambda: None)
    running: Any = Running()

    async def start() -> Any:
        return running

    said: list[str] = []
    stopping = Stopping(asyncio.create_task(start()), said.append)
    await stopping.started()
    stopping.order(level)
    if level < LEAVE:
        await asyncio.sleep(0)
        running._is_over.set()
    found = await stopping.wait()
    if level == LEAVE:
        await left.wait()
    assert found == code
    assert ("left running, for rescue: 7" in said) is (level == LEAVE)


async def test_a_signal_between_the_end_of_the_start_and_whoever_awaits_it_is_not_lost() -> None:
    running: Any = Running()
    running._is_over.set()

    async def start() -> Any:
        return running

    starting = asyncio.create_task(start())
    stopping = Stopping(starting, lambda _: None)
    await asyncio.wait({starting})  # it has ended, and `started` has not seen it
    stopping.order(SOFT)
    await asyncio.sleep(0)
    assert await stopping.started() is running
    async with asyncio.timeout(10):
        assert await stopping.wait() == 0


async def test_a_signal_after_a_failed_start_changes_nothing() -> None:
    async def start() -> Any:
        raise ValueError("no such database")

    starting = asyncio.create_task(start())
    stopping = Stopping(starting, lambda _: None)
    await asyncio.wait({starting})
    stopping.order(SOFT)
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="no such database"):
        await stopping.started()
