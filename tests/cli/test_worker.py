"""`riverq worker` as a process: what it prints, what signals do, how it exits."""

from __future__ import annotations

import signal

import psycopg
import pytest

import riverq
from tests.cli.app import Hold, Touch
from tests.cli.conftest import Start, WorkerProcess
from tests.client.faces import jobs

CLIENTS = {
    "psycopg": "sync_client",
    "psycopg_async": "psycopg_async_client",
    "asyncpg": "async_client",
    "pg8000": "pg8000_client",
}


def states(url: str, schema: str) -> dict[int, tuple[str, int]]:
    return {row["id"]: (row["state"], row["attempt"]) for row in jobs(url, schema)}


@pytest.mark.parametrize("adapter", CLIENTS)
def test_says_when_it_is_ready_and_when_it_stopped(
    start: Start, inserter: riverq.Client, database_url: str, schema: str, adapter: str
) -> None:
    inserted = inserter.insert(Touch("a"))
    worker = start(f"tests.cli.app:{CLIENTS[adapter]}")
    ready = worker.line("riverq worker: ready")
    assert "default (5)" in ready
    assert "other (1)" in ready
    assert "connections" in ready
    wait_for_state(database_url, schema, inserted.job.id, "completed")
    worker.signal()
    code, out, err = worker.end()
    assert code == 0, err
    assert "riverq worker: stopped: 1 job worked" in out
    assert "Traceback" not in err


def wait_for_state(url: str, schema: str, job_id: int, state: str) -> None:
    """Poll the row; the time limit only bounds a failure."""
    with psycopg.connect(url, autocommit=True) as conn:
        for _ in range(1500):
            row = conn.execute(
                f'SELECT state::text FROM "{schema}".river_job WHERE id = %s',
                (job_id,),
            ).fetchone()
            if row == (state,):
                return
            conn.execute("SELECT pg_sleep(0.02)")
    raise AssertionError(f"job {job_id} is not {state} but {row}")


def until_ready_and_holding(worker: WorkerProcess, job_id: int) -> None:
    """The job may begin while another queue still starts; what stops a start is not what is tried here."""
    worker.line(f"holding {job_id}")
    if not any(line.startswith("riverq worker: ready") for line in worker.passed):
        worker.line("riverq worker: ready")


def test_the_first_signal_waits_for_running_jobs_and_the_second_gives_them_back(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    job_id = inserter.insert(Hold()).job.id
    worker = start("tests.cli.app:async_client")
    until_ready_and_holding(worker, job_id)
    worker.signal()
    worker.line("riverq worker: stopping")
    assert states(database_url, schema)[job_id] == ("running", 1)
    worker.signal(signal.SIGINT)
    code, _, err = worker.end()
    assert code == 0, err
    assert states(database_url, schema)[job_id] == ("available", 0)


def test_soft_stop_timeout_gives_them_back_without_a_second_signal(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    job_id = inserter.insert(Hold()).job.id
    worker = start("tests.cli.app:async_client", "--soft-stop-timeout", "100ms")
    until_ready_and_holding(worker, job_id)
    worker.signal()
    code, _, err = worker.end()
    assert code == 0, err
    assert states(database_url, schema)[job_id] == ("available", 0)


def test_the_third_signal_leaves_and_names_what_still_runs(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    job_id = inserter.insert(Hold("deaf")).job.id
    worker = start("tests.cli.app:sync_client", TEST_HARD_EXIT="10")  # it is told after a quarter of that
    until_ready_and_holding(worker, job_id)
    worker.signal()
    worker.line("riverq worker: stopping")
    worker.signal()
    worker.line("riverq worker: cancelling")
    worker.signal()
    code, out, _ = worker.end()
    assert code == 1
    assert f"left running, for rescue: {job_id}" in out
    assert states(database_url, schema)[job_id] == ("running", 1)


def test_the_third_signal_leaves_though_a_job_blocks_the_loop(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    job_id = inserter.insert(Hold("deaf")).job.id
    worker = start("tests.cli.app:async_client")
    worker.line(f"holding {job_id}")
    for _ in range(2):
        worker.signal()
        worker.line("handled")  # two signals at the same moment are one to the kernel
    worker.signal()
    code, _, _ = worker.end()
    assert code == 1
    assert states(database_url, schema)[job_id] == ("running", 1)


def test_works_only_the_queues_that_are_named(
    start: Start, inserter: riverq.Client, database_url: str, schema: str
) -> None:
    left = inserter.insert(Touch("left"))
    worked = inserter.insert(Touch("worked"), queue="other")
    worker = start("tests.cli.app:sync_client", "--queues", "other")
    assert "default" not in worker.line("riverq worker: ready")
    wait_for_state(database_url, schema, worked.job.id, "completed")
    worker.signal()
    assert worker.end()[0] == 0
    assert states(database_url, schema)[left.job.id] == ("available", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no_such_module:client"], 2, "no module named 'no_such_module'"),
        (["tests.cli.app:clyent"], 2, "has no 'clyent'"),
        (["tests.cli.app"], 2, "expected module:attribute"),
        (["tests.cli.app:not_a_client"], 2, "to be a Client"),
        (["tests.cli.app:broken"], 1, "the settings are missing"),
        (["tests.cli.app:sync_client", "--queues", "othre"], 2, "did you mean 'other'?"),
        (["tests.cli.app:sync_client", "--soft-stop-timeout", "soon"], 2, "expected a time"),
    ],
)
def test_what_is_called_wrongly_gets_one_sentence(start: Start, arguments: list[str], code: int, words: str) -> None:
    ended, _, err = start(*arguments).end()
    assert ended == code, err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("client", ["sync_client", "async_client", "psycopg_async_client", "pg8000_client"])
def test_a_database_that_is_not_there_gets_one_sentence(start: Start, client: str) -> None:
    worker = start(f"tests.cli.app:{client}", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    code, _, err = worker.end()
    assert code == 1
    assert err.startswith("riverq: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_schema_gets_the_command(start: Start, empty_schema: str) -> None:
    code, _, err = start("tests.cli.app:sync_client", TEST_SCHEMA=empty_schema).end()
    assert code == 1
    assert f"riverq migrate-up --schema {empty_schema}" in err
