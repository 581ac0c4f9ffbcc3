"""What `riverq worker` is told beside what it works: its name, leading, its logs, its health."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

import riverq
from tests.cli.app import Hold
from tests.cli.conftest import Start
from tests.cli.probing import Prober

CLIENTS = ["sync_client", "async_client", "psycopg_async_client", "pg8000_client"]


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_who_it_is_told_to_be_and_leads_only_if_it_may(start: Start, client: str) -> None:
    silent = start(f"tests.cli.app:{client}", "--client-id", "mine", "--no-leader", "--health", ":0")
    probe = Prober(silent)
    assert silent.line("riverq worker: ready").startswith("riverq worker: ready: mine works ")
    figures = probe.until(lambda found: bool(found["ready"]))["figures"]
    assert figures["client_id"] == "mine"
    assert figures["leader"]["takes_part"] is False
    leading = start(f"tests.cli.app:{client}", "--health", "127.0.0.1:0")
    Prober(leading).until(lambda found: bool(found["leader"]))
    assert probe.ask("leader")[0] == 503


def test_a_client_with_periodic_jobs_must_be_allowed_to_lead(start: Start) -> None:
    code, out, err = start("tests.cli.app:periodic_client", "--no-leader").end()
    assert code == 2
    assert err.startswith("riverq: periodic jobs need a client that may lead")
    assert out == ""


@pytest.mark.parametrize("client_id", ["", "x" * 101])
def test_an_id_that_cannot_be_is_one_sentence(start: Start, client_id: str) -> None:
    code, _, err = start("tests.cli.app:sync_client", "--client-id", client_id).end()
    assert code == 2
    assert err.startswith("riverq: expected client_id to be a text of 1 to 100 characters")


def test_the_probe_answers_in_every_state(start: Start, inserter: riverq.Client) -> None:
    worker = start("tests.cli.app:sync_client", "--health", ":0")
    probe = Prober(worker)
    assert probe.ask("live")[0] == 200
    worker.line("riverq worker: ready")
    probe.until(lambda found: bool(found["ready"]))
    job_id = inserter.insert(Hold()).job.id
    worker.line(f"holding {job_id}")
    probe.until(lambda found: found["figures"]["queues"][0]["running"] == 1)
    worker.signal()
    worker.line("riverq worker: stopping")
    status, content = probe.ask("ready")
    assert (status, content) == (503, {"ready": False, "why": "stopping"})
    assert probe.ask("live")[0] == 200
    worker.signal()
    assert worker.end()[0] == 0


def test_a_worker_that_still_starts_is_live_and_not_ready(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        worker = start("tests.cli.app:sync_client", "--health", ":0", DATABASE_URL=url)
        probe = Prober(worker)
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            assert probe.ask("live")[0] == 200
            assert probe.ask("ready") == (503, {"ready": False, "why": "starting"})
            assert probe.ask("leader")[0] == 503
            worker.signal()
            assert worker.end()[0] == 0


def test_a_blocked_loop_is_answered_for(start: Start, inserter: riverq.Client, tmp_path: Path) -> None:
    release = tmp_path / "release"
    worker = start("tests.cli.app:blocking_client", "--health", ":0")
    probe = Prober(worker)
    job_id = inserter.insert(Hold(str(release))).job.id
    worker.line(f"holding {job_id}")
    assert probe.ask("live")[0] == 200  # for how long it may be blocked is test_probe's
    release.touch()
    worker.signal()
    assert worker.end()[0] == 0


def test_a_port_in_use_is_found_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more in ([], ["--processes", "2"]):
            code, out, err = start("tests.cli.app:sync_client", "--health", f":{port}", *more).end()
            assert code == 1
            assert err.startswith(f"riverq: cannot answer --health at 127.0.0.1:{port}: Address already in use")
            assert out == ""


@pytest.mark.parametrize("client", CLIENTS)
def test_json_logs_are_one_object_a_line(start: Start, client: str) -> None:
    worker = start(f"tests.cli.app:{client}", "--json-logs")
    worker.line("riverq worker: ready")
    worker.signal()
    code, out, err = worker.end()
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0, err
    assert out.splitlines()[-1].startswith("riverq worker: stopped: ")
    assert any("Client: Started" in line["message"] for line in lines)
    assert {line["logger"] for line in lines} == {"riverq"}


def test_json_logs_hold_whatever_an_application_logs(start: Start) -> None:
    worker = start("tests.cli.app:noisy_client", "--json-logs")
    worker.line("riverq worker: ready")
    worker.signal(signal.SIGINT)
    _, _, err = worker.end()
    lines = [json.loads(line) for line in err.splitlines()]
    app = [line for line in lines if line["logger"] == "app"]
    assert app[0]["message"] == "café \0 ?"
    assert (app[0]["shape"], app[0]["level"], app[0]["level_"]) == ("nan", "info", "mine")
    assert app[1]["message"].startswith("two %s %d ")
    assert app[2]["exception"].endswith("RuntimeError: a\nb")
    assert any("careful" in line["message"] for line in lines if line["logger"] == "py.warnings")
    assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)


@pytest.mark.parametrize(("client", "code"), [("clyent", 2), ("broken", 1)])
def test_a_failed_start_is_json_too(start: Start, client: str, code: int) -> None:
    ended, _, err = start(f"tests.cli.app:{client}", "--json-logs").end()
    assert ended == code
    (line,) = [json.loads(line) for line in err.splitlines()]
    assert line["message"].startswith("worker: Failed (error=")
