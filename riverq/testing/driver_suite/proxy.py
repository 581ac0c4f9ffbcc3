"""A TCP proxy that can fall silent, or hold things back: the network at its worst, on demand.

Neither end is closed and nothing is refused; bytes just stop arriving, which is what a firewall does that has forgotten
a connection, or a host whose cable was pulled. Or what the server sends is held, and arrives all at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Self


class SilentProxy:
    """Forwards to `host`:`port`; `silence()` swallows both directions, `hold()` keeps what the server sends."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._speaking = True
        self._held: bytes | None = None
        self._held_for: asyncio.StreamWriter | None = None
        self._grown = asyncio.Event()
        self._accepted = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Refuse new connections and end the old ones."""
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def silence(self) -> None:
        """Forward nothing more, on old connections and on new ones."""
        self._speaking = False

    def speak(self) -> None:
        """Forward again; what was swallowed stays lost."""
        self._speaking = True

    async def until_accepted(self) -> None:
        """Until somebody has connected."""
        await self._accepted.wait()

    def hold(self) -> None:
        """Keep what the server sends from now on; for a proxy with one connection."""
        self._held = b""

    async def until_held(self, data: bytes) -> None:
        """Until `data` is among what was kept."""
        while data not in (self._held or b""):
            self._grown.clear()
            await self._grown.wait()

    def release(self) -> None:
        """Send what was kept, in one piece, and keep nothing more."""
        if self._held_for is not None and self._held:
            self._held_for.write(self._held)
        self._held = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._accepted.set()
        if not self._speaking:
            self._start(self._swallow(reader))
            return
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        self._writers.append(server_writer)
        self._held_for = writer
        for source, target in ((reader, server_writer), (server_reader, writer)):
            self._start(self._pump(source, target))

    def _start(self, pump: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(pump)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _swallow(self, source: asyncio.StreamReader) -> None:
        # Closing with something unread would be a reset, which is not silence.
        with suppress(OSError):
            while await source.read(65536):
                pass

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self._held is not None and target is self._held_for:
                    self._held += data
                    self._grown.set()
                elif self._speaking:
                    target.write(data)
                    await target.drain()
            if self._speaking:
                target.close()
