"""Both halves of the child protocol, with a contender that only pretends to work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.contenders.registry import ROOT
from benchmarks.harness import process
from benchmarks.harness.process import ChildFailed, ChildProcess, ChildUnsupported

COMMAND = [sys.executable, "-m", "tests.bench_harness.fake_contender"]
PATIENCE = 30.0

Start = Callable[..., ChildProcess]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "contender.log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(name: str, **fields: object) -> ChildProcess:
            task = {"task": name, "url": "postgresql://nowhere", "settings": "tuned", **fields}
            return stack.enter_context(ChildProcess(COMMAND, task, log, ROOT))

        yield start


def _wait_until_executed(child: ChildProcess, count: int) -> None:
    while child.executed < count:
        assert child.progressed.wait(PATIENCE), f"{child.executed} of {count} were told"
        child.progressed.clear()
        child.check()


def _shell(script: str, log: Path) -> ChildProcess:
    return ChildProcess(["/bin/sh", "-c", script], {"task": "x"}, log, ROOT)


def test_a_task_is_answered(start: Start) -> None:
    child = start("migrate")
    child.ready()
    child.go()
    result = child.expect("result", PATIENCE)
    assert (result["tuned"], result["url"]) == (True, "postgresql://nowhere")


def test_a_child_waits_for_the_clock(start: Start) -> None:
    child = start("migrate")
    child.ready()
    with pytest.raises(TimeoutError, match="no 'result'"):
        child.expect("result", 0.05)
    child.go()
    child.expect("result", PATIENCE)


@pytest.mark.parametrize("until", [1, 2, 10_001])
def test_the_last_job_is_told_at_once_and_all_are_counted(start: Start, until: int) -> None:
    """`work` runs no timer: what is told is told because the last job is done, whichever thread ran it."""
    child = start("work", until=until)
    child.ready()
    child.go()
    _wait_until_executed(child, until)
    assert child.stop() == until + 1


def test_progress_short_of_the_end_comes_from_the_timer(start: Start) -> None:
    child = start("unfinished", until=5)
    child.ready()
    child.go()
    _wait_until_executed(child, 3)
    assert child.stop() == 3


def test_what_a_contender_prints_goes_to_the_log(start: Start, log: Path) -> None:
    child = start("chatty")
    child.ready()
    child.go()
    child.expect("result", PATIENCE)
    with pytest.raises(ChildFailed, match="exit code 0"):  # the end: also what was printed last is in the log now
        child.expect("stopped", PATIENCE)
    text = log.read_text()
    assert all(line in text for line in ("a library's own", "a subprocess", "not from us"))


def test_an_error_brings_its_message_and_the_end_of_the_log(start: Start) -> None:
    child = start("broken")
    child.ready()
    child.go()
    with pytest.raises(ChildFailed, match=r"ValueError: no such luck: .*ValueError: no such luck"):
        child.expect("result", PATIENCE)


def test_an_error_is_seen_while_others_are_waited_for(start: Start) -> None:
    child = start("broken")
    child.ready()
    child.check()
    child.go()
    child._process.wait()
    child._reader.join()
    with pytest.raises(ChildFailed, match="no such luck"):
        child.check()


def test_what_a_contender_cannot_do_is_no_failure(start: Start) -> None:
    child = start("unable")
    child.ready()
    child.go()
    with pytest.raises(ChildUnsupported, match=r"^it has no COPY$"):
        child.expect("result", PATIENCE)
    assert child._process.wait() == 0


def test_a_task_that_a_contender_does_not_know_is_unsupported(start: Start) -> None:
    with pytest.raises(ChildUnsupported, match="no task 'juggle'"):
        start("juggle").ready()


def test_a_child_that_dies_at_work_is_a_failure(start: Start) -> None:
    child = start("dying")
    child.ready()
    child.go()
    with pytest.raises(ChildFailed, match=r"ended early \(exit code 7\): out of memory"):
        child.expect("result", PATIENCE)


def test_a_child_that_never_gets_ready_is_a_failure(start: Start) -> None:
    with pytest.raises(ChildFailed, match=r"ended early \(exit code 8\): it said nothing"):
        start("dying_unready").ready()


def test_a_child_that_does_not_stop_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.05)
    with start("deaf") as child:
        child.ready()
        child.go()
        assert child.stop() == -1
    assert child._process.poll() is not None


def test_no_child_outlives_its_block(start: Start) -> None:
    with start("deaf") as child:
        child.ready()
    assert child._process.poll() is not None


def test_postgres_variables_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    """They would lead a contender elsewhere."""
    monkeypatch.setenv("PGHOST", "elsewhere")
    with _shell('read task; echo "{\\"event\\": \\"${PGHOST:-none}\\"}"', log) as child:
        child.expect("none", PATIENCE)


def test_a_line_that_is_no_json_is_a_failure(log: Path) -> None:
    with (
        _shell("read task; echo hello; read word", log) as child,
        pytest.raises(ChildFailed, match="not a line of the"),
    ):
        child.ready()


# -- what a contender may do that ends more than its own round


@pytest.mark.parametrize("word", ["go", "stop"])
def test_speaking_to_a_child_that_is_gone_is_its_failure(log: Path, word: str) -> None:
    child = _shell("read task; exit 3", log)
    assert child._process.stdout is not None
    child._process.wait()
    with child._process.stdout, pytest.raises(ChildFailed, match="is gone"), child:
        getattr(child, word)()


@pytest.mark.parametrize("line", ["5", "[]", "{}"])
def test_json_that_is_no_event_is_a_failure(log: Path, line: str) -> None:
    with _shell(f"read task; echo '{line}'; read word", log) as child, pytest.raises(ChildFailed):
        child.expect("ready", PATIENCE)


def test_a_child_ends_with_the_harness() -> None:
    """Also one that waits to be stopped."""
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"task": "migrate", "url": ""}\n')
        child.stdin.flush()
        child.stdout.readline()
        child.stdin.close()
        try:
            child.wait(PATIENCE)
        finally:
            child.kill()
