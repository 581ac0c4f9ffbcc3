"""A listener for adapters that block: one thread of its own behind the event loop's interface.

The thread sleeps on two sockets, the connection's and a waker's, so that a notification, a command and the end each
wake it at once and an idle listener costs nothing. The thread is a daemon: a connection that hangs never keeps the
process from ending. `abort` works on a duplicate of the connection's socket, from another thread: `shutdown` on it
frees a thread that is blocked in a read, which nothing in the adapters' own interfaces does.
"""

from __future__ import annotations

import asyncio
import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from riverq.driver import Notification
from riverq.driver.inbox import Inbox
from riverq.driver.listening import quoted
from riverq.errors import UnavailableError

T = TypeVar("T")

THREAD_NAME = "riverq_listener"


def duplicate(fd: int) -> socket.socket:
    """A second handle on a connection's socket, which stays valid when the adapter closes its own."""
    return socket.socket(fileno=os.dup(fd))


def shut(line: socket.socket | None) -> None:
    """Break the connection behind `line` now; whoever reads or writes it sees its end."""
    if line is not None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)


class BlockingWire(Protocol):
    """One adapter's blocking connection. All of it is called on the listener's thread."""

    def open(self) -> None:
        """Connect."""
        ...

    def fileno(self) -> int:
        """The socket's descriptor."""
        ...

    def execute(self, statement: str) -> None:
        """Run a statement outside a transaction."""
        ...

    def query(self, statement: str) -> str | None:
        """The same, and its first value, which the statement gives as text."""
        ...

    def read(self, *, readable: bool) -> None:
        """Take in what arrived. Called before each sleep, and with `readable` when the socket has something to read.

        Must not leave anything in a buffer of its own: the socket would not show it. Raises when the connection ended.
        """
        ...

    def taken(self) -> list[Notification]:
        """What was heard since the last call, by `read` or during a statement. Never waits, never raises."""
        ...

    def close(self) -> None:
        """Let the connection go; called once, even if `open` failed."""
        ...


_Command = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class ThreadedWire:
    """A `riverq.driver.listening.Wire` that runs a `BlockingWire` on a thread."""

    def __init__(self, blocking: BlockingWire) -> None:
        self._blocking = blocking
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closing = False
        self._line: socket.socket | None = None

    async def open(self, inbox: Inbox) -> None:
        """Start the thread and connect on it. When cancelled, the thread closes the connection once it has it."""
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)
        self._waker.setblocking(False)
        threading.Thread(target=self._main, name=THREAD_NAME, daemon=True).start()
        try:
            await self._call(self._open)
        except BaseException:
            self._closing = True
            self._wake()
            raise

    async def listen(self, channel: str) -> None:
        """LISTEN on `channel`."""
        await self._call(lambda: self._blocking.execute(f"LISTEN {quoted(channel)}"))

    async def unlisten(self, channel: str) -> None:
        """UNLISTEN `channel`."""
        await self._call(lambda: self._blocking.execute(f"UNLISTEN {quoted(channel)}"))

    async def ping(self) -> None:
        """One round trip."""
        await self._call(lambda: self._blocking.execute("SELECT 1"))

    async def query(self, statement: str) -> str | None:
        """Run one statement outside a transaction; its first value."""
        return await self._call(lambda: self._blocking.query(statement))

    def abort(self) -> None:
        """Break the connection now, which frees the thread."""
        shut(self._line)

    async def close(self) -> None:
        """Let the thread close the connection and end."""
        self._closing = True
        self._wake()
        await asyncio.wait({self._ended})

    # -- the event loop's side

    async def _call(self, fn: Callable[[], T]) -> T:
        if self._ended.done():  # between the end and whoever has not heard of it yet
            raise UnavailableError("the listener's connection ended")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._commands.put((fn, future))
        self._wake()
        return await future

    def _wake(self) -> None:
        with suppress(OSError):  # full: the thread is awake; closed: it has ended
            self._waker.send(b"x")

    def _settle(self, future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _broken(self, error: Exception) -> None:
        failure = UnavailableError(f"the listener's connection ended: {error}")
        failure.__cause__ = error
        self._inbox.fail(failure)

    def _end(self) -> None:
        for future in list(self._waiting):
            self._settle(future, None, UnavailableError("the listener's connection ended"))
        self._close_sockets()
        if not self._ended.done():
            self._ended.set_result(None)

    def _close_sockets(self) -> None:
        for sock in (self._awake, self._waker, self._line):
            if sock is not None:
                sock.close()

    # -- the thread's side

    def _main(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  # handed to whoever waits for notifications
            self._post(self._broken, error)
        finally:
            with suppress(Exception):
                self._blocking.close()
            if not self._post(self._end):
                self._close_sockets()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._awake, selectors.EVENT_READ)
            readable = False
            while not self._closing:
                self._run_commands()
                if self._line is not None and not self._closing:
                    if self._line not in selector.get_map():
                        selector.register(self._line, selectors.EVENT_READ)
                    try:
                        self._blocking.read(readable=readable)
                    finally:
                        self._hand_over()
                ready = {key.fileobj for key, _ in selector.select()}
                readable = self._line in ready
                if self._awake in ready:
                    with suppress(OSError):
                        self._awake.recv(4096)

    def _run_commands(self) -> None:
        while True:
            try:
                fn, future = self._commands.get_nowait()
            except queue.Empty:
                return
            result: object = None
            failure: Exception | None = None
            try:
                result = fn()
            except Exception as error:  # noqa: BLE001  # handed to whoever gave the command
                failure = error
            self._hand_over()  # first what was heard, then the error: nobody asks again after an error
            self._post(self._settle, future, result, failure)

    def _hand_over(self) -> None:
        heard = self._blocking.taken()
        if heard:
            self._post(self._inbox.put, heard)

    def _open(self) -> None:
        self._blocking.open()
        self._line = duplicate(self._blocking.fileno())

    def _post(self, fn: Callable[..., object], *args: Any) -> bool:
        """Call `fn` in the event loop; False when there is no loop any more."""
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            return False
        return True
