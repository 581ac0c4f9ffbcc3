"""How a test waits for something inside a service, without sleeping and at the price of one check in production."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class TestSignal(Generic[T]):
    """Silent until a test calls `watch()`; from then on every `signal(value)` can be awaited once."""

    __test__ = False  # pytest would take it for a test class

    def __init__(self) -> None:
        self._values: asyncio.Queue[T] | None = None

    def watch(self) -> TestSignal[T]:
        """Begin to keep what is signalled."""
        self._values = asyncio.Queue()
        return self

    def signal(self, value: T) -> None:
        """Something happened; only kept while watched. Called in the service's loop."""
        if self._values is not None:
            self._values.put_nowait(value)

    async def wait(self, timeout: float = 10.0) -> T:
        """The next signalled value. Raises TimeoutError, naming what was waited for, after `timeout` seconds."""
        if self._values is None:
            raise RuntimeError("call watch() before what you wait for can happen")
        try:
            return await asyncio.wait_for(self._values.get(), timeout)
        except TimeoutError:
            raise TimeoutError(f"nothing was signalled within {timeout:g} s") from None

    @property
    def waiting(self) -> int:
        """How many signals nobody has waited for yet."""
        return 0 if self._values is None else self._values.qsize()
