"""Error handlers for tests, and workers that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from riverq import ErrorResult
from riverq.job import JobRow
from riverq.worker.error_handling import ErrorHandler
from riverq.worker.executor import ExecutorConfig
from tests.worker.harness import House, Raw

Answer = Callable[[BaseException], Any]


class Told:
    """A handler of either style, for errors only; answers what `answer(error)` returns."""

    def __init__(self, style: str, answer: Answer = lambda _: None) -> None:
        self.calls: list[tuple[JobRow, BaseException]] = []
        self.threads: list[bool] = []
        self.answer = answer
        self.handle_error = self._handle_async if style == "async def" else self._handle

    async def _handle_async(self, row: JobRow, error: BaseException, /) -> Any:
        return self._handle(row, error)

    def _handle(self, row: JobRow, error: BaseException, /) -> Any:
        self.calls.append((row, error))
        self.threads.append(threading.current_thread() is threading.main_thread())
        return self.answer(error)


class Panics:
    """A handler that is told of panics separately."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.panics: list[tuple[BaseException, str]] = []

    def handle_error(self, row: JobRow, error: BaseException, /) -> ErrorResult | None:
        self.errors.append(error)
        return None

    async def handle_panic(self, row: JobRow, error: BaseException, trace: str, /) -> ErrorResult | None:
        self.panics.append((error, trace))
        return ErrorResult.CANCEL


def handled_by(house: House, handler: ErrorHandler) -> None:
    house.executor_config = ExecutorConfig(error_handler=handler)


def raising(error: BaseException) -> Callable[[Raw], None]:
    def work(job: Raw) -> None:
        raise error

    return work
