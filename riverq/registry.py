"""Which code works which kind of job. A kind is registered once, aliases included.

Comes before the clients (`Config(workers=…)`); the executor looks kinds up here, and the rescuer asks whether a kind is
known and which retry policy its worker has.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, overload

from riverq.errors import ConfigError, UnknownJobKindError
from riverq.hook import Middleware, check_middleware, work_middleware
from riverq.insert_opts import check_kind, check_worker_kind
from riverq.job import Job
from riverq.job_args import ArgsSpec, raw_spec, spec_for_kind, spec_of
from riverq.retry_policy import RetryPolicy
from riverq.validation import duration, fail, nearest

A = TypeVar("A")
F = TypeVar("F", bound=Callable[[Job[Any]], Any])

Retry = timedelta | datetime

NO_TIMEOUT: Final = timedelta(seconds=-1)
"""A worker's timeout that means: no limit, whatever the client's `job_timeout` says."""


class Worker(Generic[A]):
    """The class form of a worker: `class SendEmailWorker(riverq.Worker[SendEmail])`, with dependencies in `__init__`.

    Only `work` must be defined, as `def` (runs in a thread) or `async def` (runs in the event loop). One instance works
    all jobs of its kind, several at once.
    """

    def work(self, job: Job[A], /) -> Awaitable[None] | None:
        """Do the job. Return when it is done; raise to have it tried again, or JobSnooze, JobCancel, JobDiscard."""
        raise NotImplementedError

    def timeout(self, _job: Job[A], /) -> timedelta | None:
        """How long an attempt may take: None for the client's `job_timeout`, `riverq.NO_TIMEOUT` for no limit."""
        return None

    def next_retry(self, _job: Job[A], _error: BaseException, /) -> Retry | None:
        """When to try again after `_error`: a wait, or an aware datetime; None for the client's retry policy."""
        return None

    def middleware(self) -> Sequence[Middleware]:
        """Middleware for this worker alone, outside of the client's."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegisteredWorker:
    """One worker as the executor sees it.

    `kind` and `aliases` lead to it; `spec` decodes its args. `func` is called with the job: in a thread, or where
    `is_async` in the event loop. `timeout` is fixed, `timeout_of` asks the worker per job. `qualname` is
    `module:qualname`, by which another process can find it. `middleware` is the worker's own, outside the client's.
    """

    kind: str
    spec: ArgsSpec
    func: Callable[[Job[Any]], Any]
    is_async: bool
    qualname: str
    aliases: tuple[str, ...] = ()
    timeout: timedelta | None = None
    timeout_of: Callable[[Job[Any]], timedelta | None] | None = None
    retry_policy: RetryPolicy | None = None
    next_retry: Callable[[Job[Any], BaseException], Retry | None] | None = None
    middleware: tuple[Middleware, ...] = ()

    def timeout_for(self, job: Job[Any], default: timedelta | None) -> timedelta | None:
        """How long this attempt may take; None for no limit. `default` is the client's `job_timeout`."""
        found = self.timeout if self.timeout_of is None else self.timeout_of(job)
        if found is None:
            return default
        return None if found == NO_TIMEOUT else found


class Workers:
    """The workers of a client. `skip_kind_validation` lets kinds pass that River would refuse."""

    def __init__(self, *, skip_kind_validation: bool = False) -> None:
        self._skip_kind_validation = skip_kind_validation
        self._by_kind: dict[str, RegisteredWorker] = {}

    def __contains__(self, kind: str) -> bool:
        return kind in self._by_kind

    def __len__(self) -> int:
        return len(self._by_kind)

    def __repr__(self) -> str:
        return f"<Workers of {', '.join(self.kinds()) or 'no kind'}>"

    @overload
    def work(self, func: F) -> F: ...
    @overload
    def work(
        self, *, kind: str | None = None, timeout: timedelta | None = None, retry_policy: RetryPolicy | None = None
    ) -> Callable[[F], F]: ...
    def work(
        self,
        func: Callable[[Job[Any]], Any] | None = None,
        *,
        kind: str | None = None,
        timeout: timedelta | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> Any:
        """Register a function as the worker of the kind that its parameter names: `job: riverq.Job[SendEmail]`.

        `def` runs in a thread, `async def` in the event loop. `timeout` overrides the client's `job_timeout` (None:
        the client's; `riverq.NO_TIMEOUT`: no limit), `retry_policy` the client's. With `kind` it works that kind
        instead; `kind` with `Job[dict[str, Any]]` is a raw worker, whose args are the decoded object.

        Raises ConfigError where the parameter names no args, or the kind has a worker already.
        """
        _check_timeout(timeout)
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise fail("retry_policy", "to have next_retry(row, *, rng)", retry_policy)
        scope = dict(sys._getframe(1).f_locals)  # for classes that are local to the function which registers

        def register(target: F) -> F:
            spec = _spec(_args_of_function(target, scope), kind, _qualname(target))
            entry = RegisteredWorker(
                kind=spec.kind,
                aliases=spec.aliases,
                spec=spec,
                func=target,
                is_async=_is_async(target),
                qualname=_qualname(target),
                timeout=timeout,
                retry_policy=retry_policy,
            )
            self._register(entry)
            return target

        return register if func is None else register(func)

    def add(self, worker: Worker[Any], *, kind: str | None = None) -> None:
        """Register an instance of a `Worker` subclass. Raises ConfigError as `work` does."""
        if not isinstance(worker, Worker):
            raise fail("worker", "to be an instance of a riverq.Worker subclass", worker)
        cls = type(worker)
        if cls.work is Worker.work:
            raise ConfigError(f"{cls.__qualname__} defines no work(job)")
        spec = _spec(_args_of_class(cls), kind, _qualname(cls))
        middleware = tuple(worker.middleware())
        for item in middleware:
            check_middleware(item)
        entry = RegisteredWorker(
            kind=spec.kind,
            aliases=spec.aliases,
            spec=spec,
            func=worker.work,
            is_async=_is_async(worker.work),
            qualname=_qualname(cls),
            timeout_of=None if cls.timeout is Worker.timeout else worker.timeout,
            next_retry=None if cls.next_retry is Worker.next_retry else worker.next_retry,
            middleware=tuple(work_middleware(middleware)),
        )
        self._register(entry)

    def get(self, kind: str) -> RegisteredWorker | None:
        """The worker of `kind`, which may be an alias; None where there is none."""
        return self._by_kind.get(kind)

    def require(self, kind: str) -> RegisteredWorker:
        """The worker of `kind`. Raises UnknownJobKindError, with the nearest known kind."""
        found = self._by_kind.get(kind)
        if found is None:
            raise UnknownJobKindError(f"no worker for kind {kind!r} ({nearest(kind, self._by_kind)})")
        return found

    def kinds(self) -> list[str]:
        """All kinds that have a worker, aliases included, sorted."""
        return sorted(self._by_kind)

    def _register(self, entry: RegisteredWorker) -> None:
        names = (entry.kind, *entry.aliases)
        for name in names:
            (check_kind if self._skip_kind_validation else check_worker_kind)(name)
            taken = self._by_kind.get(name)
            if taken is not None:
                raise ConfigError(f"kind {name!r} has a worker already: {taken.qualname}, cannot add {entry.qualname}")
        if len(set(names)) < len(names):
            raise ConfigError(f"{entry.qualname} names a kind twice: {', '.join(names)}")
        self._by_kind.update(dict.fromkeys(names, entry))


def _check_timeout(timeout: timedelta | None) -> None:
    if timeout is not None and timeout != NO_TIMEOUT:
        duration("timeout", timeout, timedelta(milliseconds=1))


def _spec(args: Any, kind: str | None, qualname: str) -> ArgsSpec:
    origin = get_origin(args) or args
    if origin is dict or origin is Any:
        if kind is None:
            raise ConfigError(f"{qualname} takes raw args and needs a kind: @workers.work(kind='…')")
        return raw_spec(kind)
    if not isinstance(args, type):
        raise ConfigError(
            f"{qualname} takes Job[{args}], which is no class that riverq can decode (use one args class)"
        )
    return spec_of(args) if kind is None else spec_for_kind(args, kind)


def _args_of_function(func: Callable[..., Any], scope: dict[str, Any]) -> Any:
    """`X` of the first parameter's annotation `Job[X]`."""
    name = _qualname(func)
    plain = inspect.unwrap(_code_of(func))
    if not callable(func) or isinstance(func, type):
        raise fail("worker", "to be a function", func, "register an instance of a Worker with workers.add(…)")
    parameters = list(inspect.signature(func).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ConfigError(f"{name} takes no job (write: def worker(job: riverq.Job[YourArgs]) -> None)")
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        raise ConfigError(
            f"{name} does not say which args it works (annotate its parameter: job: riverq.Job[YourArgs])"
        )
    held = SimpleNamespace(__annotations__={"job": annotation})
    try:
        annotation = typing.get_type_hints(held, getattr(plain, "__globals__", {}), scope)["job"]
    except NameError as error:
        raise ConfigError(
            f"cannot read the annotation {annotation!r} of {name}: {error} "
            "(import it at run time, not under TYPE_CHECKING, and define it before the worker)"
        ) from error
    if get_origin(annotation) is not Job:
        raise ConfigError(f"expected the parameter of {name} to be a riverq.Job[YourArgs], got: {annotation!r}")
    return get_args(annotation)[0]


def _args_of_class(cls: type) -> Any:
    """`X` of the base `Worker[X]`, through base classes in between that pass it on."""
    found = _worker_argument(cls)
    if found is None or isinstance(found, TypeVar):
        raise ConfigError(
            f"{_qualname(cls)} does not say which args it works (write: class …(riverq.Worker[YourArgs]))"
        )
    return found


def _worker_argument(cls: type) -> Any:
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin, given = get_origin(base) or base, get_args(base)
        if origin is Worker:
            return given[0] if given else None
        if isinstance(origin, type) and issubclass(origin, Worker):
            inner = _worker_argument(origin)
            names = getattr(origin, "__parameters__", ())
            return given[names.index(inner)] if given and inner in names else inner
    return None


def _is_async(func: Callable[..., Any]) -> bool:
    plain = _code_of(func)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigError(f"{_qualname(func)} is a generator, and its body would never run (drop yield)")
    return inspect.iscoroutinefunction(plain)


def _code_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """The function or method behind a partial or a callable object."""
    plain: Callable[..., Any] = func.func if isinstance(func, functools.partial) else func
    return plain if inspect.isroutine(plain) or not callable(plain) else type(plain).__call__


def _qualname(target: object) -> str:
    plain = target.func if isinstance(target, functools.partial) else target
    if not hasattr(plain, "__qualname__"):
        plain = type(plain)
    return f"{getattr(plain, '__module__', '?')}:{getattr(plain, '__qualname__', repr(plain))}"
