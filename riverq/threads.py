"""Daemon threads, made when needed, for work that blocks.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter ends, so one hung statement or one job
that ignores its cancellation would keep the process alive for ever. These threads never do.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Call = tuple["Future[Any]", contextvars.Context, Callable[[], Any]]


class DaemonThreads(Executor):
    """An executor of at most `max_workers` daemon threads; a thread is started only when none is idle.

    Each call runs in a copy of the submitter's context variables. `lend` allows threads beyond that number for a while,
    for calls that hold theirs for longer than they should.
    """

    def __init__(self, max_workers: int, name: str) -> None:
        self._max_workers = max_workers
        self._lent = 0
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._outstanding = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` on a thread of this pool. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        context = contextvars.copy_context()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"cannot run {fn!r}: the threads of {self._name} were shut down")
            if len(self._threads) < min(self._outstanding + 1, self._max_workers + self._lent):
                self._start_thread()
            self._outstanding += 1
            self._calls.put((future, context, lambda: fn(*args, **kwargs)))
        return future

    def grow(self, max_workers: int) -> None:
        """Allow up to `max_workers` threads from now on; never shrinks."""
        with self._lock:
            self._max_workers = max(self._max_workers, max_workers)

    def lend(self) -> None:
        """Allow one thread more, until `take_back`."""
        with self._lock:
            self._lent += 1

    def take_back(self) -> None:
        """End one `lend`. A thread that was started meanwhile stays and serves: calls end in no special order."""
        with self._lock:
            self._lent -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # Executor's own signature
        """Take no more calls. With `wait`, returns when every running call has ended."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        if cancel_futures:
            self._drop_waiting()
        for _ in threads:
            self._calls.put(None)
        if wait:
            for thread in threads:
                thread.join()

    def _drop_waiting(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            if call is not None:
                call[0].cancel()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            future, context, fn = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(context.run(fn))
                except BaseException as error:  # noqa: BLE001  # handed to whoever waits for the future
                    future.set_exception(error)
            del call, future, context, fn  # else the last call's values live until the next one
            with self._lock:
                self._outstanding -= 1
