"""Registering workers: which kind, which code, and every mistake explained."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, Generic, TypedDict, TypeVar, cast

import pytest

from riverq.hook import Middleware, WorkNext
from riverq.job import Job, JobContext, JobRow
from riverq.job_args import job_args
from riverq.registry import NO_TIMEOUT, RegisteredWorker, Worker, Workers

T = TypeVar("T")
SECOND = timedelta(seconds=1)


@job_args("send_email", aliases=["mail"])
@dataclass
class SendEmail:
    to: str


@job_args("other_kind")
@dataclass
class Other:
    id: int = 1


@job_args("typed_dict_kind")
class SendDict(TypedDict):
    to: str


@dataclass
class Undeclared:
    id: int = 1


class Once:
    """A retry policy."""

    def next_retry(self, _row: JobRow, *, rng: Random) -> timedelta:
        return SECOND * rng.randint(1, 1)


class Around:
    """Work middleware."""

    def work(self, job: Job[Any], call_next: WorkNext) -> None:
        call_next(job)


def job(args: Any) -> Job[Any]:
    return Job(args, cast("JobContext", None))


def only(workers: Workers, kind: str) -> RegisteredWorker:
    found = workers.get(kind)
    assert found is not None
    return found


def test_a_functions_kind_comes_from_its_annotation() -> None:
    workers = Workers()

    @workers.work(timeout=SECOND, retry_policy=Once())
    def send(job: Job[SendEmail]) -> None:
        raise ValueError(job.args.to)

    @workers.work
    async def other(_job: Job[Other]) -> None:
        pass

    entry = only(workers, "send_email")
    assert (entry.kind, entry.aliases, entry.is_async, entry.timeout) == ("send_email", ("mail",), False, SECOND)
    assert (entry.spec.cls, entry.func) == (SendEmail, send)
    assert isinstance(entry.retry_policy, Once)
    assert entry.qualname == f"{__name__}:test_a_functions_kind_comes_from_its_annotation.<locals>.send"
    assert only(workers, "mail") is entry
    assert (only(workers, "other_kind").is_async, only(workers, "other_kind").timeout) == (True, None)
    assert workers.kinds() == ["mail", "other_kind", "send_email"]
    assert (len(workers), "mail" in workers, "post" in workers, workers.get("post")) == (3, True, False, None)
    assert repr(workers) == "<Workers of mail, other_kind, send_email>"


def test_classes_local_to_the_registering_function_are_found() -> None:
    @job_args("local_kind")
    @dataclass
    class Local:
        id: int

    workers = Workers()

    @workers.work()
    def work(_job: Job[Local]) -> None:
        pass

    assert only(workers, "local_kind").spec.cls is Local


def test_raw_workers_take_a_kind_and_a_dict() -> None:
    workers = Workers()

    @workers.work(kind="raw_kind")
    def raw(_job: Job[dict[str, Any]]) -> None:
        pass

    @workers.work(kind="any_kind")
    async def anything(_job: Job[Any]) -> None:
        pass

    assert only(workers, "raw_kind").spec.decode('{"a":1}') == {"a": 1}
    assert only(workers, "any_kind").spec.decode('{"a":1}') == {"a": 1}


def test_a_class_can_be_worked_under_another_kind() -> None:
    workers = Workers()

    @workers.work(kind="old_email")
    def old(_job: Job[SendEmail]) -> None:
        pass

    @workers.work(kind="undeclared")
    def undeclared(_job: Job[Undeclared]) -> None:
        pass

    @workers.work
    def typed(_job: Job[SendDict]) -> None:
        pass

    assert only(workers, "old_email").spec.decode('{"to":"a"}') == SendEmail("a")
    assert workers.kinds() == ["old_email", "typed_dict_kind", "undeclared"]


# -- the class form


class EmailWorker(Worker[SendEmail]):
    def __init__(self, sender: str) -> None:
        self.sender = sender

    async def work(self, job: Job[SendEmail]) -> None:
        raise ValueError(self.sender, job.args.to)

    def timeout(self, job: Job[SendEmail]) -> timedelta | None:
        return {"fast": SECOND, "never": NO_TIMEOUT}.get(job.args.to)

    def next_retry(self, _job: Job[SendEmail], _error: BaseException) -> timedelta | datetime | None:
        return SECOND

    def middleware(self) -> Sequence[Middleware]:
        return [Around()]


class PlainWorker(Worker[Other]):
    def work(self, job: Job[Other]) -> None:
        pass


class Middle(Worker[T], Generic[T]):
    pass


class Derived(Middle[Other]):
    def work(self, job: Job[Other]) -> None:
        pass


class MoreDerived(PlainWorker):
    pass


def test_the_class_form() -> None:
    workers = Workers()
    workers.add(EmailWorker("me"))
    workers.add(PlainWorker())
    entry, plain = only(workers, "mail"), only(workers, "other_kind")
    assert (entry.is_async, plain.is_async) == (True, False)
    assert entry.qualname == f"{__name__}:EmailWorker"
    assert entry.next_retry is not None
    assert entry.next_retry(job(SendEmail("a")), ValueError()) == SECOND
    assert [type(item) for item in entry.middleware] == [Around]
    assert (plain.next_retry, plain.timeout_of, plain.middleware) == (None, None, ())


def test_timeouts_come_from_worker_then_client() -> None:
    workers = Workers()
    workers.add(EmailWorker("me"))
    entry = only(workers, "send_email")
    default = timedelta(minutes=1)
    assert entry.timeout_for(job(SendEmail("fast")), default) == SECOND
    assert entry.timeout_for(job(SendEmail("never")), default) is None
    assert entry.timeout_for(job(SendEmail("other")), default) == default
    assert entry.timeout_for(job(SendEmail("other")), None) is None

    @workers.work(timeout=NO_TIMEOUT)
    def endless(_job: Job[Other]) -> None:
        pass

    assert only(workers, "other_kind").timeout_for(job(Other()), default) is None


@pytest.mark.parametrize("cls", [Derived, MoreDerived])
def test_bases_in_between_pass_the_args_on(cls: type[Worker[Other]]) -> None:
    workers = Workers()
    workers.add(cls())
    assert only(workers, "other_kind").spec.cls is Other


# -- other callables


class Service:
    def send(self, _job: Job[SendEmail]) -> None:
        pass

    async def __call__(self, _job: Job[Other]) -> None:
        pass


def with_prefix(_prefix: str, _job: Job[SendEmail]) -> None:
    pass


def test_methods_and_wrapped_functions_are_workers_too() -> None:
    service = Service()
    workers = Workers()
    workers.work(service.send)
    workers.work(service)
    assert (only(workers, "send_email").is_async, only(workers, "other_kind").is_async) == (False, True)
    assert only(workers, "send_email").qualname == f"{__name__}:Service.send"

    @functools.wraps(not_wrapped)
    def wrapper(job: Job[SendEmail]) -> None:
        not_wrapped(job)

    wrapped = Workers()
    wrapped.work(wrapper)
    wrapped.work(functools.partial(with_kind, _more=1))
    assert wrapped.kinds() == ["mail", "other_kind", "send_email"]


def not_wrapped(_job: Job[SendEmail]) -> None:
    pass


def with_kind(_job: Job[Other], _more: int) -> None:
    pass


def test_the_typing_examples_hold_at_run_time() -> None:
    examples = importlib.import_module("tests.typing_examples")
    assert examples.workers.kinds() == ["typing_dict", "typing_raw", "typing_resize", "typing_send_email"]
    assert only(examples.workers, "typing_dict").is_async
