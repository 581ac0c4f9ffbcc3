"""Daemon threads: made when needed, never more than allowed, and never in the way of the process's end."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading

import pytest

from riverq.threads import DaemonThreads

LONG = 20.0


def test_runs_calls_and_hands_back_what_they_raise() -> None:
    threads = DaemonThreads(2, name="riverq_test")
    assert threads.submit(divmod, 7, 2).result(LONG) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(LONG)
    threads.shutdown()


def test_an_idle_thread_is_used_again() -> None:
    threads = DaemonThreads(8, name="riverq_test")
    names = {threads.submit(lambda: threading.current_thread().name).result(LONG) for _ in range(50)}
    assert len(names) <= 2  # a thread counts as busy until a moment after its result is known
    threads.shutdown()


def test_starts_no_more_threads_than_allowed_and_grows_on_request() -> None:
    threads = DaemonThreads(2, name="riverq_test")
    gate = threading.Barrier(4)
    futures = [threads.submit(gate.wait, LONG) for _ in range(3)]
    assert gate.n_waiting <= 2
    threads.grow(3)
    futures.append(threads.submit(lambda: 0))
    gate.wait(LONG)
    assert sorted(future.result(LONG) for future in futures[:3])
    threads.shutdown()


def test_calls_run_in_a_copy_of_the_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    variable.set("outside")
    threads = DaemonThreads(1, name="riverq_test")

    def change() -> str:
        before = variable.get()
        variable.set("inside")
        return before

    assert threads.submit(change).result(LONG) == "outside"
    assert threads.submit(variable.get).result(LONG) == "outside"
    assert variable.get() == "outside"
    threads.shutdown()


def test_refuses_calls_after_shutdown_and_drops_those_that_wait() -> None:
    threads = DaemonThreads(1, name="riverq_test")
    started, gate = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        gate.wait(LONG)

    running = threads.submit(block)
    assert started.wait(LONG)
    waiting = threads.submit(lambda: None)
    threads.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(lambda: None)
    gate.set()
    running.result(LONG)
    threads.shutdown()


def test_a_hung_call_does_not_keep_the_process_alive() -> None:
    script = (
        "import threading; from riverq.threads import DaemonThreads; started = threading.Event();"
        "DaemonThreads(1, name='x').submit(lambda: (started.set(), threading.Event().wait())); started.wait()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_lent_thread_is_one_more_until_it_is_taken_back() -> None:
    threads = DaemonThreads(1, name="riverq_test")
    hold = threading.Event()
    held = threads.submit(hold.wait, LONG)
    threads.lend()
    assert threads.submit(lambda: "beside it").result(LONG) == "beside it"
    threads.grow(2)  # of the number without what was lent
    gate = threading.Barrier(3)
    both = [threads.submit(gate.wait, LONG) for _ in range(2)]
    gate.wait(LONG)
    for future in both:
        future.result(LONG)
    hold.set()
    held.result(LONG)
    threads.take_back()
    full = [threads.submit(hold.wait, LONG) for _ in range(10)]
    assert all(future.result(LONG) for future in full)
    assert len(threads._threads) == 3
    threads.shutdown()
