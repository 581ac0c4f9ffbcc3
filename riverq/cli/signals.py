"""Handle signals at once, whatever the event loop does and whichever thread the system gives them to.

Two things are needed, and neither does without the other:

- a handler of Python's own (`signal.signal`), because the loop's would wait for a job that blocks the loop;
- a wake-up file descriptor, because Python runs handlers on the main thread only, and the system may give a signal to
  any thread: it does when the main thread has one pending already. Then nothing interrupts the main thread's `select`,
  and the handler would wait until something else wakes the loop, which may take minutes.

A descriptor that is set already stays: only a loop that watches for signals itself sets one, and it wakes from it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

Handler = Callable[[int, FrameType | None], None]

_ENOUGH = 4096
"""Bytes read at once; one byte is written for each signal, and none is lost where they are more."""


@contextmanager
def handling(numbers: Sequence[int], handle: Handler) -> Iterator[None]:
    """Call `handle` for these signals while the block runs. On the main thread, with the loop running."""
    with _waking(asyncio.get_running_loop()):
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _waking(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let every signal wake the loop, in which the handlers then run as soon as it is back in Python."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        loop.add_reader(reader, _empty, reader)
        try:
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            if before != -1:
                signal.set_wakeup_fd(before)
            try:
                yield
            finally:
                now = signal.set_wakeup_fd(-1)
                if now != writer.fileno():
                    signal.set_wakeup_fd(now)
        finally:
            loop.remove_reader(reader)


def _empty(reader: socket.socket) -> None:
    with suppress(BlockingIOError):
        reader.recv(_ENOUGH)
