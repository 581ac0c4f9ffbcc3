"""What the command line answers to a wrong call: one line, the right exit code, no traceback, no password."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.cli.main import COMMANDS, main, make_parser

SECRET = "geheim"
DRIVERS = ("psycopg", "asyncpg", "pg8000")


def riverq(*arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "riverq", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


def one_sentence(error: str) -> str:
    assert error.startswith("riverq: ")
    assert error.count("\n") == 1, error
    for boilerplate in ("Traceback", "Background on this error", SECRET, "{'S'"):
        assert boilerplate not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND (see riverq --help)"),
        (["migrateup"], "unknown command 'migrateup': did you mean 'migrate-up'?"),
        (["wroker", "x:y"], "unknown command 'wroker': did you mean 'worker'?"),
        (["xyzzy"], "unknown command 'xyzzy': known: bench, demo, leader, migrate-down,"),
        (["queues"], "required: ACTION (see riverq queues --help)"),
        (["queues", "lst"], "unknown action 'lst' of queues: did you mean 'list'?"),
        (["--debug", "leader", "shwo"], "unknown action 'shwo' of leader: did you mean 'show'?"),
        (["queues", "update", "a", "--metadata", "3"], "expected a JSON object, got: '3'"),
        (["queues", "update", "*", "--metadata", "{}"], "metadata is set queue by queue, got: '*'"),
        (["queues", "update", "a"], "required: --metadata"),
        (["queues", "pause", "a", "--for", "0"], "expected a time of more than 0, got: '0'"),
        (["queues", "pause", "a", "--until", "2026-11-21T18:00:00"], "expected a time with its zone"),
        (["queues", "pause", "a", "--until", "2020-01-01T00:00:00Z"], "expected --until to be a time to come"),
        (["worker", "os:path", "--processes", "2", "--client-id", ""], "expected --client-id to be a text of 1 to 100"),
        (["queues", "pause", "a", "--until", "2031-11-21T18:00:00Z", "--for", "1h"], "not allowed with argument"),
        (["periodic", "list", "os:path", "--schema", "x"], "a client has its own database"),
        (["worker", "os:path", "--processes", "0"], "expected a number of at least 1, got: '0'"),
        (["worker", "os:path", "--health", "localhost"], "expected HOST:PORT"),
        (["worker"], "required: MODULE:ATTRIBUTE"),
        (["worker", ".x:y"], "expected module:attribute, got: '.x:y'"),
        (["worker", "os:path", "--soft-stop-timeout", "1e400h"], "expected a time such as 30s, 500ms or 5m"),
        (["validate", "--database-url", f"mysql://u:{SECRET}@h/x"], "expected a Postgres URL, got one for 'mysql'"),
        (["validate", "--database-url", f"no url {SECRET}"], "the database URL cannot be read"),
        (["validate", "--database-url", f"postgresql://u:{SECRET}@h:port/x"], "the database URL cannot be read"),
        (["validate", "--bogus"], "unrecognized arguments: --bogus"),
        (["migrate-get", "--version", "x"], "expected versions such as 3 or 3,4, got: 'x'"),
        (["migrate-get", "--version", "99"], "unknown version of migration line 'main': 99"),
        (["demo", "--files", "0"], "expected --files to be at least 1, got: 0"),
        (["demo", "--database-url", f"postgresql://u:{SECRET}@h:port/x"], "the database URL cannot be read"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else -1
    assert code == 2
    assert words in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("command", ["validate", "migrate-up", "migrate-down", "migrate-list"])
def test_a_server_that_is_not_there(command: str, driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"postgresql+{driver}://u:{SECRET}@127.0.0.1:1/shop"
    assert main([command, "--database-url", url]) == 1
    assert "the database 'shop' at 127.0.0.1:1 is not available: " in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"database": "riverq_no_such_database"}, 'database "riverq_no_such_database" does not exist'),
        ({"username": "riverq_no_such_role"}, "riverq_no_such_role"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid"),
        ({"query": {"colour": "blue"}}, "colour"),
    ],
)
def test_a_database_that_cannot_be_used(
    database_url: str, driver: str, change: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}")._replace(password=SECRET, **change)
    assert main(["validate", "--database-url", url.render_as_string(hide_password=False)]) in (1, 2)
    assert words in one_sentence(capsys.readouterr().err)


def test_a_broken_module_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("leaves.py", "w", encoding="utf-8") as file:
        file.write("import sys; sys.exit(3)")
    code, _, error = riverq("worker", "leaves:client")
    assert code == 1
    assert "cannot import leaves: SystemExit: 3" in one_sentence(error)


def test_the_commands_that_are_known_are_those_that_exist() -> None:
    shown = make_parser().format_help()
    assert all(f"\n    {name}" in shown for name in COMMANDS)


def test_the_version_is_said() -> None:
    assert riverq("version")[0] == 0
    assert riverq("--version")[1] == riverq("version")[1]


def test_a_signal_during_the_start_ends_the_worker_cleanly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        app = (
            "import riverq, sqlalchemy as sa\n"
            f"engine = sa.create_engine('postgresql+psycopg://u@127.0.0.1:{silent.getsockname()[1]}/x')\n"
            "queues = {'default': riverq.QueueConfig(max_workers=1)}\n"
            "client = riverq.Client(engine, riverq.Config(workers=riverq.Workers(), queues=queues))\n"
        )
        (tmp_path / "silent_app.py").write_text(app)
        worker = subprocess.Popen(
            [sys.executable, "-m", "riverq", "worker", "silent_app:client"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            worker.send_signal(signal.SIGTERM)
            out, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0
    assert out == "riverq worker: stopped: nothing was started\n"
