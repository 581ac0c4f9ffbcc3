"""Every mistake in registering a worker is explained."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest

from riverq.errors import ConfigError, UnknownJobKindError
from riverq.hook import Middleware
from riverq.job import Job
from riverq.job_args import job_args
from riverq.registry import Worker, Workers
from tests.test_registry import EmailWorker, Other, PlainWorker, SendEmail, Undeclared

SECOND = timedelta(seconds=1)


def test_a_kind_has_one_worker_aliases_included() -> None:
    workers = Workers()
    workers.add(EmailWorker("me"))
    with pytest.raises(ConfigError, match=r"'send_email' has a worker already: .*EmailWorker, cannot add .*again"):

        @workers.work
        def again(_job: Job[SendEmail]) -> None:
            pass

    with pytest.raises(ConfigError, match="'mail' has a worker already"):

        @workers.work(kind="mail")
        def alias(_job: Job[dict[str, Any]]) -> None:
            pass

    @job_args("takes_alias", aliases=["fresh", "mail"])
    @dataclass
    class TakesAlias:
        pass

    with pytest.raises(ConfigError, match="'mail' has a worker already"):

        @workers.work
        def takes_alias(_job: Job[TakesAlias]) -> None:
            pass

    assert workers.kinds() == ["mail", "send_email"], "a refused worker leaves nothing behind"

    @job_args("twice_named", aliases=["twice_named"])
    @dataclass
    class Twice:
        pass

    with pytest.raises(ConfigError, match="names a kind twice"):

        @workers.work
        def twice(_job: Job[Twice]) -> None:
            pass


def test_unknown_kinds_are_told_their_nearest() -> None:
    workers = Workers()
    workers.add(EmailWorker("me"))
    assert workers.require("mail").kind == "send_email"
    with pytest.raises(UnknownJobKindError, match="did you mean 'send_email'"):
        workers.require("send_emial")


def test_kinds_are_validated_unless_told_not_to() -> None:
    with pytest.raises(ConfigError, match="skip_kind_validation"):

        @Workers().work(kind="has space")
        def strict(_job: Job[dict[str, Any]]) -> None:
            pass

    lenient = Workers(skip_kind_validation=True)

    @lenient.work(kind="has space")
    def work(_job: Job[dict[str, Any]]) -> None:
        pass

    assert lenient.kinds() == ["has space"]
    with pytest.raises(ConfigError, match="127"):
        lenient.work(kind="x" * 128)(lambda_worker)


def lambda_worker(_job: Job[dict[str, Any]]) -> None:
    pass


def no_parameter() -> None:
    pass


def no_annotation(_job) -> None:  # type: ignore[no-untyped-def]  # it is the point
    pass


def not_a_job(_job: SendEmail) -> None:
    pass


def bare_job(_job: Job) -> None:  # type: ignore[type-arg]  # it is the point
    pass


def unresolvable(_job: Job[Missing]) -> None:  # type: ignore[name-defined]  # noqa: F821  # it is the point
    pass


def needs_kind(_job: Job[dict[str, Any]]) -> None:
    pass


def undeclared(_job: Job[Undeclared]) -> None:
    pass


def union(_job: Job[SendEmail | Other]) -> None:
    pass


def generator(_job: Job[Other]) -> Iterator[int]:
    yield 1


async def async_generator(_job: Job[Other]) -> AsyncIterator[int]:
    yield 1


def keyword_only(*, _job: Job[Other]) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_parameter, "takes no job"),
        (keyword_only, "takes no job"),
        (no_annotation, "does not say which args"),
        (not_a_job, "to be a riverq.Job"),
        (bare_job, "to be a riverq.Job"),
        (unresolvable, "import it at run time"),
        (needs_kind, "needs a kind"),
        (undeclared, "declares no kind"),
        (union, "one args class"),
        (generator, "drop yield"),
        (async_generator, "drop yield"),
        (EmailWorker, "register an instance"),
        (5, "to be a function"),
    ],
)
def test_functions_that_cannot_work_are_explained(function: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workers().work(function)


class NoWork(Worker[Other]):
    pass


class NoArgs(Worker):  # type: ignore[type-arg]  # it is the point
    def work(self, job: Job[Any]) -> None:
        pass


class BadMiddleware(PlainWorker):
    def middleware(self) -> Sequence[Middleware]:
        return [cast("Middleware", object())]


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (EmailWorker, "to be an instance"),
        (5, "to be an instance"),
        (NoWork(), "defines no work"),
        (NoArgs(), "does not say which args"),
        (BadMiddleware(), "insert or work method"),
    ],
)
def test_workers_that_cannot_work_are_explained(worker: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workers().add(worker)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 5}, "timedelta"),
        ({"timeout": timedelta(0)}, "at least"),
        ({"timeout": -2 * SECOND}, "at least"),
        ({"retry_policy": object()}, "next_retry"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workers().work(**options)
