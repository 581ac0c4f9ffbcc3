"""`riverq worker --processes N` as processes: what dies is replaced, signals go through, renewing leaves N - 1."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import riverq
from tests.cli.app import Hold, Touch
from tests.cli.conftest import Start, WorkerProcess
from tests.cli.probing import PATIENCE, Prober
from tests.cli.terminal import Terminal
from tests.cli.test_worker import states, wait_for_state

pytestmark = pytest.mark.slow  # real processes come and go

APP = "tests.cli.app:async_client"


def supervise(start: Start, *arguments: str, app: str = APP) -> tuple[WorkerProcess, Prober]:
    """A supervisor whose workers are ready, and what tells of them."""
    process = start(app, "--health", ":0", "--log-level", "warning", *arguments)
    probe = Prober(process)
    probe.until(lambda found: bool(found["ready"]))
    return process, probe


def pids(probe: Prober) -> list[int]:
    return [int(worker["pid"]) for worker in probe.workers()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(gone: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(is_alive(pid) for pid in gone):
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Watch:
    """Asks again and again, from a thread, and keeps what it saw."""

    def __init__(self, probe: Prober) -> None:
        self.ready: list[int] = []
        self.live: list[bool] = []
        self._probe = probe
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            found = self._probe.ask()[1]
            self.ready.append(found["figures"]["ready"])
            self.live.append(found["live"])
            time.sleep(0.01)


# -- the ordinary


def test_all_work_under_names_of_their_own_and_one_leads(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    process, probe = supervise(start, "--processes", "3", "--client-id", "web")
    found = probe.until(lambda found: bool(found["leader"]))
    workers = found["figures"]["workers"]
    assert [worker["figures"]["client_id"] for worker in workers] == ["web_1", "web_2", "web_3"]
    assert sum(worker["leader"] for worker in workers) == 1
    assert all(os.getpgid(worker["pid"]) == worker["pid"] for worker in workers)  # out of a terminal's reach
    assert probe.ask("live")[0] == probe.ask("ready")[0] == probe.ask("leader")[0] == 200
    ids = [inserter.insert(Touch(str(number))).job.id for number in range(10)]
    for job_id in ids:
        wait_for_state(database_url, schema, job_id, "completed")
    process.signal()
    code, out, err = process.end()
    assert code == 0, err
    assert out.splitlines()[-1] == "riverq supervisor: stopped: 3 workers"
    wait_until_gone([worker["pid"] for worker in workers])


@pytest.mark.parametrize(("app", "beginning"), [("named_client", "named_"), ("sync_client", "")])
def test_names_differ_also_where_nobody_gave_them(start: Start, app: str, beginning: str) -> None:
    _, probe = supervise(start, "--processes", "2", app=f"tests.cli.app:{app}")
    names = [worker["figures"]["client_id"] for worker in probe.workers()]
    assert [name[-2:] for name in names] == ["_1", "_2"]
    assert all(name.startswith(beginning) for name in names)


def test_options_reach_the_workers(start: Start) -> None:
    process = start(APP, "--processes", "1", "--health", ":0", "--queues", "other", "--no-leader", "--json-logs")
    probe = Prober(process)
    (worker,) = probe.until(lambda found: bool(found["ready"]))["figures"]["workers"]
    assert [queue["name"] for queue in worker["figures"]["queues"]] == ["other"]
    assert worker["figures"]["leader"]["takes_part"] is False
    process.signal()
    _, _, err = process.end()
    assert all(line.startswith('{"time"') for line in err.splitlines())


# -- what dies


def test_a_killed_worker_is_followed_by_another(start: Start) -> None:
    process, probe = supervise(start, "--processes", "2")
    first, second = pids(probe)
    os.kill(second, signal.SIGKILL)
    line = process.line("riverq supervisor: worker 2 ended")
    assert line == "riverq supervisor: worker 2 ended (SIGKILL); starting another in 1 s"
    status, content = probe.ask("ready")
    pid = probe.workers()[1]["pid"]
    if pid is None:
        assert (status, content["why"]) == (503, "worker 2: not running")
    else:  # this test stood still until another was started
        assert pid not in (first, second)
    assert probe.ask("live")[0] == 200
    found = probe.until(lambda found: bool(found["ready"]))
    assert found["figures"]["workers"][0]["pid"] == first
    assert found["figures"]["workers"][1]["pid"] != second
    assert found["figures"]["workers"][1]["restarts"] == 1
    assert not is_alive(second)  # reaped
    process.signal()
    assert process.end()[0] == 0


def test_a_worker_that_was_told_to_stop_by_hand_is_followed_too(start: Start) -> None:
    process, probe = supervise(start, "--processes", "1")
    os.kill(pids(probe)[0], signal.SIGTERM)
    line = process.line("riverq supervisor: worker 1 ended")
    assert line == "riverq supervisor: worker 1 ended (exit code 0); starting another in 1 s"
    probe.until(lambda found: bool(found["ready"]))


def test_workers_end_when_their_supervisor_is_killed(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    process, probe = supervise(start, "--processes", "2", "--soft-stop-timeout", "100ms")
    job_id = inserter.insert(Hold()).job.id
    process.line(f"holding {job_id}")
    left = pids(probe)
    process.signal(signal.SIGKILL)
    _, out, _ = process.end()  # which waits for the workers, who have the same stdout
    assert "riverq worker 1: the supervisor is gone; stopping" in out
    assert "riverq worker 2: the supervisor is gone; stopping" in out
    wait_until_gone(left)
    assert states(database_url, schema)[job_id] == ("available", 0)  # stopped softly


def test_a_start_that_fails_is_tried_again_with_longer_waits(start: Start) -> None:
    process = start(APP, "--processes", "1", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    first = process.line("riverq supervisor: worker 1 failed to start")
    second = process.line("riverq supervisor: worker 1 failed to start")
    assert first.endswith("failed to start (exit code 1); starting another in 1 s")
    assert second.endswith("failed to start (exit code 1, 2 times in a row); starting another in 2 s")
    process.signal()
    code, out, _ = process.end()
    assert code == 1
    assert "riverq supervisor: stopped; 1 worker of 1 did not end cleanly" in out


def test_a_wrong_call_is_said_once_and_ends_everything(start: Start) -> None:
    code, out, err = start("tests.cli.app:clyent", "--processes", "4").end()
    assert code == 2
    assert err.count("\n") == 1
    assert "has no 'clyent'" in err
    assert "worker 2" not in out


def test_a_wrong_call_is_json_where_logs_are(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = start(APP, "--processes", "2", "--json-logs", "--health", f":{port}").end()
    assert code == 1
    assert json.loads(err)["message"].startswith("worker: Failed (error=cannot answer --health")


def test_modules_of_the_current_folder_hide_none_of_pythons(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('this is not the queue that you meant')")
    (tmp_path / "app.py").write_text("client = 42")
    script = Path(sys.executable).parent / "riverq"  # as `python -m riverq` Python itself puts the folder first
    ended = subprocess.run(
        [script, "worker", "app:client", "--processes", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("riverq: expected app:client to be a Client")


@pytest.mark.slow  # a worker must be silent for ten seconds before it is not ready
def test_a_worker_that_is_silent_is_not_ready(start: Start) -> None:
    _, probe = supervise(start, "--processes", "2")
    stopped = pids(probe)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        found = probe.until(lambda found: not found["ready"])
        assert found["live"] is True
        assert found["figures"]["workers"][0]["why"].startswith("silent for ")
    finally:
        os.kill(stopped, signal.SIGCONT)
    probe.until(lambda found: bool(found["ready"]))


# -- signals


def test_the_first_signal_waits_and_the_second_cancels(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    process, _ = supervise(start, "--processes", "2")
    job_id = inserter.insert(Hold()).job.id
    process.line(f"holding {job_id}")
    process.signal(signal.SIGINT)
    process.line("riverq supervisor: stopping; waiting for running jobs")
    assert states(database_url, schema)[job_id] == ("running", 1)
    process.signal()
    code, out, err = process.end()
    assert code == 0, out + err
    assert states(database_url, schema)[job_id] == ("available", 0)


@pytest.mark.parametrize("app", ["sync_client", "async_client"])
def test_the_third_signal_leaves_what_still_runs(
    start: Start, inserter: riverq.Client, database_url: str, schema: str, app: str
) -> None:
    process, probe = supervise(start, "--processes", "2", app=f"tests.cli.app:{app}")
    left = pids(probe)
    job_id = inserter.insert(Hold("deaf")).job.id
    process.line(f"holding {job_id}")
    process.signal()
    process.line("riverq supervisor: stopping")
    probe.until(lambda found: None in [worker["pid"] for worker in found["figures"]["workers"]])  # the other has ended
    process.signal()
    process.line("riverq supervisor: cancelling")
    process.signal()
    code, out, _ = process.end()
    assert code == 1, out
    assert "riverq supervisor: stopped; 1 worker of 2 did not end cleanly" in out
    assert states(database_url, schema)[job_id] == ("running", 1)
    wait_until_gone(left)


def test_a_worker_that_hears_nothing_is_killed_in_the_end(start: Start) -> None:
    process, probe = supervise(start, "--processes", "2")
    stopped, _ = pids(probe)
    os.kill(stopped, signal.SIGSTOP)
    for words in ("stopping", "cancelling"):
        process.signal()
        process.line(f"riverq supervisor: {words}")
    process.signal()
    code, out, _ = process.end()
    assert code == 1, out
    assert not is_alive(stopped)


@pytest.fixture
def on_terminal(database_url: str, schema: str) -> Iterator[Terminal]:
    terminal = Terminal({"DATABASE_URL": database_url, "TEST_SCHEMA": schema})
    yield terminal
    terminal.close()


def test_a_terminal_reaches_each_worker_once(
    inserter: riverq.Client, database_url: str, schema: str, on_terminal: Terminal
) -> None:
    job_id = inserter.insert(Hold()).job.id
    on_terminal.until(f"holding {job_id}")
    on_terminal.type(b"\x03")
    on_terminal.until("riverq supervisor: stopping; waiting for running jobs")
    on_terminal.until("riverq worker 1: stopping; waiting for running jobs")
    assert states(database_url, schema)[job_id] == ("running", 1)  # with a second one it would be cancelled
    on_terminal.type(b"\x03")
    assert on_terminal.end() == 0
    assert states(database_url, schema)[job_id] == ("available", 0)


def test_a_terminal_that_hangs_up_stops_and_does_not_renew(on_terminal: Terminal) -> None:
    on_terminal.until("riverq supervisor: ready")
    on_terminal.hang_up()
    assert on_terminal.end() == 0


# -- renewing


def test_hangup_renews_one_by_one(start: Start) -> None:
    process, probe = supervise(start, "--processes", "3", "--client-id", "web")
    before = pids(probe)
    with Watch(probe) as watch:
        process.signal(signal.SIGHUP)
        process.line("riverq supervisor: renewed 3 workers")
    assert min(watch.ready) >= 2
    assert all(watch.live)
    after = pids(probe)
    assert not set(before) & set(after)
    assert [worker["figures"]["client_id"] for worker in probe.workers()] == ["web_1", "web_2", "web_3"]
    assert "worker 1 ended" not in "\n".join(process.passed)
    process.signal()
    assert process.end()[0] == 0


def test_a_hangup_during_a_renewal_makes_another_follow(start: Start, inserter: riverq.Client) -> None:
    process, probe = supervise(start, "--processes", "1")
    job_id = inserter.insert(Hold()).job.id
    process.line(f"holding {job_id}")
    (first,) = pids(probe)
    process.signal(signal.SIGHUP)
    process.line("riverq supervisor: renewing 1 worker")
    process.signal(signal.SIGHUP)
    process.line("riverq supervisor: renewing once more after this")
    os.kill(first, signal.SIGTERM)  # its second order: the job is given back
    process.line("riverq supervisor: renewed 1 worker")
    process.line("riverq supervisor: renewing 1 worker")
    process.signal()
    process.line("riverq supervisor: stopping")
    process.signal()
    assert process.end()[0] == 0


def test_the_next_is_not_renewed_while_another_is_missing(start: Start) -> None:
    process, probe = supervise(start, "--processes", "2")
    first, second = pids(probe)
    os.kill(second, signal.SIGKILL)
    process.line("riverq supervisor: worker 2 ended")
    with Watch(probe) as watch:
        process.signal(signal.SIGHUP)
        process.line("riverq supervisor: renewed 2 workers")
    assert min(watch.ready) >= 1
    assert first not in pids(probe)


def test_a_stop_wins_over_a_renewal(start: Start, inserter: riverq.Client, database_url: str, schema: str) -> None:
    process, _ = supervise(start, "--processes", "2")
    ids = [inserter.insert(Hold()).job.id for _ in range(10)]  # as many as all workers have slots
    for _ in ids:
        process.line("holding ")
    process.signal(signal.SIGHUP)
    process.line("riverq worker 1: stopping")
    process.signal()
    process.line("riverq supervisor: renewing is given up")
    # The worker that was stopping already takes this as its first signal: its jobs go on.
    assert all(states(database_url, schema)[job_id] == ("running", 1) for job_id in ids)
    process.signal()
    code, out, _ = process.end()
    assert code == 0, out
    assert "renewed" not in out
    assert {states(database_url, schema)[job_id] for job_id in ids} == {("available", 0)}
