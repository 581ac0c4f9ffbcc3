"""How a client lets others listen to what happens in it: `client.subscribe()` and the iterators that it returns.

`riverq.worker.subscription` says what is sent, and what becomes of a reader that does not keep up. The sync face's
iterator blocks its thread, which can be any but the one of the client's own event loop; the async face's belongs to
the client's loop.

A job cannot subscribe to the client that runs it. The stop of the client waits for the job, and the job would wait for
events that end with the stop; and a job that it waits for may be worked by another client, whose events nobody here
hears.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Self

from riverq.client.core import Core
from riverq.errors import ConfigError, UsageError
from riverq.event import Event, EventKind
from riverq.validation import duration, fail, integer, nearest
from riverq.worker.completer import Completer
from riverq.worker.context import refuse_in_own_job
from riverq.worker.subscription import Inbox, Subscriptions

BUFFER = 1000


def subscribe_to(core: Core, completer: Completer) -> None:
    """Pass on what the completer of a new run settles. Called in the loop of that run."""
    subscriptions = core.subscriptions
    subscriptions.loop = asyncio.get_running_loop()
    completer.subscribe(subscriptions.settled, subscriptions.wants)


class _Handle:
    """What both faces' subscriptions are made of."""

    def __init__(self, subscriptions: Subscriptions, inbox: Inbox, check: Callable[[], None]) -> None:
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._check = check

    def __repr__(self) -> str:
        kinds = "every kind" if self._inbox.kinds >= ALL_KINDS else ", ".join(sorted(self._inbox.kinds))
        return f"<{type(self).__name__} to {kinds}{', closed' if self._inbox.is_closed else ''}>"

    def __del__(self) -> None:
        inbox = self._inbox
        if not inbox.is_closed:
            inbox.abandon()
            words = f"{self!r} was never closed (use it in a with block)"
            warnings.warn(words, ResourceWarning, stacklevel=2, source=self)

    @property
    def lost(self) -> int:
        """How many events this subscription has lost so far because they were not read in time."""
        return self._inbox.lost

    def close(self) -> None:
        """Listen no more. What was not read yet can still be read; then the iterator ends."""
        self._subscriptions.drop(self._inbox)


class Subscription(_Handle):
    """What `Client.subscribe` returns: iterate over it, or `get` one event after the other, in a `with` block.

    Any thread may read, close, and read `lost`; several readers share the events between them. The iterator ends when
    the client has stopped, or the subscription was closed, and everything until then was read.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def get(self, timeout: timedelta | None = None) -> Event | None:
        """The next event, waiting for it if need be; None at the end.

        Raises TimeoutError when `timeout` passes first (zero: do not wait), UsageError in the event loop of the client
        itself, which would wait for its own events for ever, and in a forked child.
        """
        self._check()
        seconds = _seconds(timeout)
        event = self._inbox.take()
        if event is not None:
            return event
        self._refuse_in_loop()
        try:
            return self._inbox.wait(seconds)
        except TimeoutError:
            raise TimeoutError(f"there was no event within {timeout}") from None

    def _refuse_in_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is self._subscriptions.loop:
            raise UsageError("waiting for events here would block the event loop that sends them (use another thread)")


class AsyncSubscription(_Handle):
    """What `AsyncClient.subscribe` returns: iterate over it, or `get` one event after the other, in an `async with`.

    It belongs to the client's event loop; several tasks that read share the events between them. The iterator ends when
    the client has stopped, or the subscription was closed, and everything until then was read.
    """

    def __init__(self, subscriptions: Subscriptions, inbox: Inbox, check: Callable[[], None]) -> None:
        super().__init__(subscriptions, inbox, check)
        self._changed = asyncio.Event()
        inbox.on_change = self._changed.set

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.get()
        if event is None:
            raise StopAsyncIteration
        return event

    async def get(self, timeout: timedelta | None = None) -> Event | None:
        """The next event, waiting for it if need be; None at the end.

        Raises TimeoutError when `timeout` passes first (zero: do not wait), UsageError in another event loop than the
        client's. No event is lost by a wait that is cancelled.
        """
        self._check()
        try:
            async with asyncio.timeout(_seconds(timeout)):
                while (event := self._inbox.take()) is None and not self._inbox.is_closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"there was no event within {timeout}") from None
        return event


class Subscribing:
    """`Client.subscribe`."""

    _core: Core

    def subscribe(self, *kinds: EventKind | str, buffer: int = BUFFER) -> Subscription:
        """Listen, from now on, to what happens to the jobs and queues that this client works; without `kinds`, to all.

        `with client.subscribe("job_failed") as events:`, then iterate over `events` in any thread. Events come after
        the database has been written. A reader that leaves more than `buffer` events unread loses the newest, and finds
        one `events_lost` in their place; the client never waits for it.

        May be called before `start`. The iterator ends when the client has stopped; the next run needs a new one.

        Raises ConfigError for an unknown kind, a `buffer` below 1, or a client without workers, UsageError in a job of
        this client and in a forked child.
        """
        chosen = _checked(self._core, kinds, buffer)
        subscriptions = self._core.subscriptions
        return Subscription(subscriptions, subscriptions.open(chosen, buffer), self._core.check_process)


class AsyncSubscribing:
    """`AsyncClient.subscribe`."""

    _core: Core

    def subscribe(self, *kinds: EventKind | str, buffer: int = BUFFER) -> AsyncSubscription:
        """Listen, from now on, to what happens to the jobs and queues that this client works; without `kinds`, to all.

        `async with client.subscribe("job_failed") as events:`, then `async for event in events:`. Events come after
        the database has been written. A reader that leaves more than `buffer` events unread loses the newest, and finds
        one `events_lost` in their place; the client never waits for it.

        May be called before `start`. The iterator ends when the client has stopped; the next run needs a new one.

        Raises ConfigError for an unknown kind, a `buffer` below 1, or a client without workers, UsageError in a job of
        this client, in another event loop than the client's, and in a forked child.
        """
        chosen = _checked(self._core, kinds, buffer)
        self._check_in_loop()
        subscriptions = self._core.subscriptions
        return AsyncSubscription(subscriptions, subscriptions.open(chosen, buffer), self._check_in_loop)

    def _check_in_loop(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "an AsyncClient's subscription belongs to its event loop, and none runs here (call it in an async def)"
            ) from None
        self._check_use()

    def _check_use(self) -> None:
        raise NotImplementedError


# -- what both check

ALL_KINDS = frozenset(EventKind) - {EventKind.EVENTS_LOST}


def _checked(core: Core, kinds: Iterable[object], buffer: object) -> frozenset[EventKind]:
    """The kinds to listen to. Raises what `subscribe` raises."""
    chosen = frozenset(map(_kind, kinds)) or ALL_KINDS
    if not chosen & ALL_KINDS:
        raise fail("kinds", "to name what to listen to", EventKind.EVENTS_LOST.value, "these come by themselves")
    integer("buffer", buffer, 1)
    core.check_process()
    if core.config.workers is None:
        raise ConfigError("this client has no workers, so nothing happens in it (subscribe to one that works jobs)")
    try:
        refuse_in_own_job(core.client_id)
    except UsageError:
        raise UsageError(
            "a job cannot subscribe to the client that runs it, whose stop waits for the job (subscribe outside of it)"
        ) from None
    return chosen


def _kind(given: object) -> EventKind:
    try:
        return EventKind(given)  # type: ignore[arg-type]  # whatever it is
    except ValueError:
        known = [kind.value for kind in EventKind]
        hint = nearest(given, known) if isinstance(given, str) else "each as an argument of its own"
        raise fail("kind", "to be an EventKind", given, hint) from None


def _seconds(timeout: timedelta | None) -> float | None:
    if timeout is None:
        return None
    duration("timeout", timeout)
    return timeout.total_seconds()
