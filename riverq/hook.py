"""Middleware: the application's code around inserting and around working, and how it is chained.

The first in `Config.middleware` is the outermost. A middleware has `insert`, `work` or both, each `def` or `async def`.
An `AsyncClient` takes both kinds; a `Client` takes `def` only. Around an asynchronous inside, a `def` middleware runs
in a greenlet of its own, in the event loop's thread, so that `call_next` can look synchronous to it; it must not block.
Nothing here costs anything while the list is empty.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]  # it ships no types

from riverq.errors import ConfigError, UsageError
from riverq.insert_opts import InsertParams
from riverq.job import InsertResult, Job

P = TypeVar("P")
R = TypeVar("R")

InsertNext = Callable[[Sequence[InsertParams]], list[InsertResult]]
AsyncInsertNext = Callable[[Sequence[InsertParams]], Awaitable[list[InsertResult]]]
WorkNext = Callable[[Job[Any]], None]
AsyncWorkNext = Callable[[Job[Any]], Awaitable[None]]


@runtime_checkable
class InsertMiddleware(Protocol):
    """Around inserting, for both clients."""

    def insert(self, params: Sequence[InsertParams], call_next: InsertNext, /) -> list[InsertResult]:
        """Called once per insert, with the whole batch. Return what `call_next(params)` returns.

        `params` may be replaced (`dataclasses.replace`); their unique keys are computed already. The results must stay
        as many and in the order of the jobs.
        """
        ...


@runtime_checkable
class AsyncInsertMiddleware(Protocol):
    """Around inserting, for `AsyncClient`."""

    async def insert(self, params: Sequence[InsertParams], call_next: AsyncInsertNext, /) -> list[InsertResult]:
        """As `InsertMiddleware.insert`; await `call_next(params)`."""
        ...


@runtime_checkable
class WorkMiddleware(Protocol):
    """Around each attempt of each job; runs where the worker runs, if that is a thread."""

    def work(self, job: Job[Any], call_next: WorkNext, /) -> None:
        """Call `call_next(job)`, which raises what the worker raised."""
        ...


@runtime_checkable
class AsyncWorkMiddleware(Protocol):
    """Around each attempt of each job, in the event loop."""

    async def work(self, job: Job[Any], call_next: AsyncWorkNext, /) -> None:
        """Await `call_next(job)`, which raises what the worker raised."""
        ...


Middleware = InsertMiddleware | AsyncInsertMiddleware | WorkMiddleware | AsyncWorkMiddleware


def check_middleware(item: object) -> None:
    """Raises ConfigError for what has neither `insert` nor `work`, or is a class and no instance."""
    if isinstance(item, type) or not (_method(item, "insert") or _method(item, "work")):
        raise ConfigError(f"expected middleware to be an object with an insert or work method, got: {item!r}")


def is_async(item: object) -> bool:
    """Whether any of its methods is `async def`, so that a sync `Client` cannot run it."""
    methods = (_method(item, "insert"), _method(item, "work"))
    return any(method is not None and inspect.iscoroutinefunction(method) for method in methods)


def work_middleware(middleware: Iterable[object]) -> list[WorkMiddleware | AsyncWorkMiddleware]:
    """Those that have `work`, in order."""
    return [item for item in middleware if isinstance(item, (WorkMiddleware, AsyncWorkMiddleware))]


def chain_insert_sync(middleware: Iterable[object], write: InsertNext) -> InsertNext:
    """`write` with the `insert` of all `middleware` around it. Raises UsageError for an `async def` one."""
    return _chain_sync(middleware, "insert", write)


def chain_insert_async(middleware: Iterable[object], write: AsyncInsertNext) -> AsyncInsertNext:
    """`write` with the `insert` of all `middleware` around it, of either kind."""
    return _chain_async(middleware, "insert", write)


def chain_work_sync(middleware: Iterable[object], work: WorkNext) -> WorkNext:
    """`work` with the `work` of all `middleware` around it, in one thread. Raises UsageError for an `async def` one."""
    return _chain_sync(middleware, "work", work)


def chain_work_async(middleware: Iterable[object], work: AsyncWorkNext) -> AsyncWorkNext:
    """`work` with the `work` of all `middleware` around it, of either kind."""
    return _chain_async(middleware, "work", work)


def _method(item: object, name: str) -> Callable[..., Any] | None:
    method = getattr(item, name, None)
    return method if callable(method) else None


def _methods(middleware: Iterable[object], name: str) -> list[Callable[..., Any]]:
    found = (_method(item, name) for item in middleware)
    return [method for method in found if method is not None]


def _chain_sync(middleware: Iterable[object], name: str, inside: Callable[[P], R]) -> Callable[[P], R]:
    for method in reversed(_methods(middleware, name)):
        if inspect.iscoroutinefunction(method):
            raise UsageError(f"{method!r} is async and cannot be run here (make it def, or use AsyncClient)")
        inside = partial(_with_next, method, inside)
    return inside


def _with_next(method: Callable[[P, Callable[[P], R]], R], call_next: Callable[[P], R], given: P) -> R:
    return method(given, call_next)


def _chain_async(
    middleware: Iterable[object], name: str, inside: Callable[[P], Awaitable[R]]
) -> Callable[[P], Awaitable[R]]:
    for method in reversed(_methods(middleware, name)):
        if inspect.iscoroutinefunction(method):
            inside = partial(_with_next, method, inside)
        else:
            inside = partial(_in_greenlet, method, inside)
    return inside


async def _in_greenlet(
    method: Callable[[P, Callable[[P], R]], R], call_next: Callable[[P], Awaitable[R]], given: P
) -> R:
    """Run a `def` middleware whose inside is asynchronous: its `call_next` leaves the greenlet until that is done."""
    outside = getcurrent()

    def wait(value: P) -> R:
        if getcurrent() is not inner:
            raise UsageError(
                f"call_next of {method!r} was called outside of it (call it before you return, in its thread)"
            )
        answer: R = outside.switch(call_next(value))
        return answer

    inner = greenlet(method, outside)
    inner.gr_context = outside.gr_context
    result: Any = inner.switch(given, wait)
    while not inner.dead:
        try:
            done = await result
        except BaseException:  # noqa: BLE001  # cancellation too belongs to whoever called `call_next`
            result = inner.throw(*sys.exc_info())
        else:
            result = inner.switch(done)
    final: R = result
    return final
