"""The thread behind a blocking listener, at moments that a real adapter meets too seldom to be tested with."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from riverq.driver import Notification
from riverq.driver.inbox import Inbox
from riverq.driver.threaded import BlockingWire, ThreadedWire
from riverq.errors import UnavailableError

LONG = 20.0


class FakeWire:
    """A connection that ends when its other side is closed."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def open(self) -> None:
        self.ours.setblocking(False)

    def fileno(self) -> int:
        return self.ours.fileno()

    def execute(self, statement: str) -> None:
        pass

    def query(self, statement: str) -> str | None:
        return statement

    def read(self, *, readable: bool) -> None:
        if readable and not self.ours.recv(1):
            raise ConnectionResetError("gone")

    def taken(self) -> list[Notification]:
        return []

    def close(self) -> None:
        self.ours.close()


async def test_a_command_after_the_end_is_refused_and_never_forgotten() -> None:
    """The thread has ended, and nobody would ever serve the command."""
    fake = FakeWire()
    wire = ThreadedWire(cast(BlockingWire, fake))
    inbox = Inbox()
    await wire.open(inbox)
    assert await wire.query("x") == "x"
    fake.theirs.close()
    async with asyncio.timeout(LONG):
        with pytest.raises(UnavailableError):
            await inbox.wait(LONG)
        await wire.close()
        for command in (wire.ping(), wire.query("x")):
            with pytest.raises(UnavailableError):
                await command
