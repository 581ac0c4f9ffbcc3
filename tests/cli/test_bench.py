"""`riverq bench` as a person and as a program run it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.cli.main import main, make_parser

SECRET = "geheim"
URLS = {
    "psycopg": "postgresql+psycopg",
    "psycopg_async": "postgresql+psycopg_async",
    "asyncpg": "postgresql+asyncpg",
    "pg8000": "postgresql+pg8000",
}
QUICK = ("-n", "200", "--duration", "1s")


def bench(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "riverq", "bench", "--database-url", url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80", "PYTHONWARNINGS": "default"},
    )


def with_driver(url: str, drivername: str) -> str:
    return sa.make_url(url).set(drivername=drivername).render_as_string(hide_password=False)


@pytest.fixture
def onlooker(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn
        assert schemas(conn) == []


def schemas(conn: psycopg.Connection) -> list[str]:
    rows = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'riverq\\_bench%'").fetchall()
    return [str(row[0]) for row in rows]


@pytest.mark.parametrize("adapter", URLS)
def test_json_is_all_that_stdout_has(database_url: str, onlooker: psycopg.Connection, adapter: str) -> None:
    process = bench(with_driver(database_url, URLS[adapter]), "--json", *QUICK)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    found = json.loads(out)
    assert found["adapter"] == adapter.removesuffix("_async")
    assert found["asynchronous"] is (adapter in ("psycopg_async", "asyncpg"))
    assert found["work"]["backlog"] == found["insert_by_copy"]["jobs"] == 200
    assert found["work"]["jobs"] == found["work"]["runs"] == 200
    assert found["latency"]["p50_ms"] <= found["latency"]["p95_ms"] <= found["latency"]["p99_ms"]
    assert found["settings"] == {"max_workers": 2000, "fetch_cooldown_ms": 2.0, "fetch_poll_interval_ms": 20.0}
    assert found["verdict"]["sentence"]
    assert 0 <= found["verdict"]["shares"]["client_cpu"] <= 1


def test_a_person_reads_a_table_and_a_verdict(database_url: str, onlooker: psycopg.Connection) -> None:
    process = bench(
        with_driver(database_url, URLS["psycopg"]), "--async", "--default-settings", "--workers", "5", *QUICK
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("riverq ")
    assert "psycopg (async), max_workers 5, fetch_cooldown 100 ms" in out
    for name in (
        "round trip",
        "commit",
        "insert one by one",
        "insert by COPY",
        "work a backlog",
        "from insert to start",
    ):
        assert f"\n  {name} " in out
    assert "\nverdict: " in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert [line.removeprefix("bench: ") for line in err.splitlines()] == [
        "making the schema",
        "round trips and commits",
        "inserting one by one",
        "inserting in batches",
        "inserting by COPY",
        "working the backlog",
        "from insert to start",
        "dropping the schema",
    ]


@pytest.mark.parametrize("has_rich", [True, False])
def test_a_terminal_shows_a_bar_where_rich_is_installed(
    database_url: str, onlooker: psycopg.Connection, has_rich: bool
) -> None:
    hide = "" if has_rich else "sys.modules['rich'] = sys.modules['rich.console'] = None; "
    call = f"import sys; {hide}from riverq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process, screen = on_terminal(["-c", call, "bench", "--json", "--database-url", database_url, *QUICK])
    shown: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(screen, shown))
    reader.start()
    out, _ = process.communicate(timeout=60)
    reader.join()
    text = b"".join(shown).decode()
    assert process.returncode == 0, text
    assert json.loads(out)["work"]["jobs"] == 200
    assert "working the backlog" in text
    assert ("\x1b[" in text) is has_rich
    assert ("bench: working the backlog" in text) is not has_rich


def on_terminal(arguments: list[str]) -> tuple[subprocess.Popen[str], int]:
    """The process, and what its terminal shows."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    return process, screen


def read_until(screen: int, words: bytes) -> None:
    shown = b""
    while words not in shown:
        shown += os.read(screen, 65536)


def read_all(screen: int, shown: list[bytes]) -> None:
    """Until the other side is closed, which Linux tells as an error."""
    try:
        while data := os.read(screen, 65536):
            shown.append(data)
    except OSError:
        pass
    os.close(screen)


# -- signals


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the bench ended without saying {words!r}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("adapter", URLS)
def test_a_signal_drops_the_schema(
    database_url: str, onlooker: psycopg.Connection, adapter: str, number: signal.Signals, code: int
) -> None:
    process = bench(with_driver(database_url, URLS[adapter]), "--schema", "riverq_bench_signalled")
    wait_for(process, "inserting one by one")
    assert schemas(onlooker) == ["riverq_bench_signalled"]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert err.splitlines() == [
        "bench: dropping the schema",
        "riverq: interrupted; schema 'riverq_bench_signalled' is dropped",
    ]
    assert schemas(onlooker) == []


def test_a_signal_drops_the_schema_when_nobody_reads_any_more(database_url: str, onlooker: psycopg.Connection) -> None:
    with bench(database_url, "--schema", "riverq_bench_unread") as process:
        wait_for(process, "inserting one by one")
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    assert schemas(onlooker) == []


def test_a_signal_drops_the_schema_when_the_terminal_was_closed(
    database_url: str, onlooker: psycopg.Connection
) -> None:
    call = ["-m", "riverq", "bench", "--database-url", database_url, "--schema", "riverq_bench_closed"]
    process, screen = on_terminal(call)
    with process:
        read_until(screen, b"inserting one by one")
        os.close(screen)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    assert schemas(onlooker) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_signal_while_it_connects_is_told_that_nothing_was_made(driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        process = bench(f"postgresql+{driver}://u@127.0.0.1:{server.getsockname()[1]}/x")
        connection, _ = server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "riverq: interrupted; nothing was made"


HELD = "riverq_bench_held"


@pytest.fixture
def holder(database_url: str, onlooker: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection that may hold a lock for which dropping the schema HELD waits."""
    with psycopg.connect(database_url) as conn:
        yield conn
    onlooker.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(HELD)))


def hold(conn: psycopg.Connection) -> None:
    conn.execute(SQL("SELECT FROM {}").format(Identifier(HELD, "river_queue")))


def test_a_second_signal_asks_for_patience_and_a_third_leaves(database_url: str, holder: psycopg.Connection) -> None:
    process = bench(database_url, "--schema", HELD)
    wait_for(process, "inserting one by one")
    hold(holder)
    process.send_signal(signal.SIGINT)
    wait_for(process, "bench: dropping the schema")
    process.send_signal(signal.SIGINT)
    wait_for(process, "riverq: still ending (once more ends at once)")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == ""
    assert err.startswith(f"riverq: ended at once; schema '{HELD}' may be left behind (if its comment is 'made by ")
    assert err.endswith(f'\': DROP SCHEMA "{HELD}" CASCADE)\n')


def test_a_third_signal_leaves_when_nobody_reads_any_more(database_url: str, holder: psycopg.Connection) -> None:
    with bench(database_url, "--schema", HELD) as process:
        wait_for(process, "inserting one by one")
        hold(holder)
        process.send_signal(signal.SIGHUP)
        wait_for(process, "bench: dropping the schema")
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143


def test_a_third_signal_gives_the_terminal_its_cursor_back(database_url: str, holder: psycopg.Connection) -> None:
    process, screen = on_terminal(["-m", "riverq", "bench", "--database-url", database_url, "--schema", HELD])
    with process:
        read_until(screen, b"inserting one by one")
        hold(holder)
        process.send_signal(signal.SIGINT)
        read_until(screen, b"dropping the schema")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        shown: list[bytes] = []
        read_all(screen, shown)
        assert process.wait(timeout=60) == 143
    assert b"riverq: ended at once" in b"".join(shown)
    assert b"".join(shown).endswith(b"\x1b[?25h")


def test_a_signal_keeps_its_code_when_the_schema_cannot_be_dropped(
    database_url: str, holder: psycopg.Connection
) -> None:
    url = sa.make_url(database_url).update_query_dict({"options": "-c lock_timeout=200"})
    process = bench(with_driver(url.render_as_string(hide_password=False), URLS["psycopg"]), "--schema", HELD)
    wait_for(process, "inserting one by one")
    hold(holder)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    dropping, failed, interrupted = err.splitlines()
    assert dropping == "bench: dropping the schema"
    assert failed.startswith("riverq: the schema cannot be dropped: ")
    assert interrupted.startswith(f"riverq: interrupted; schema '{HELD}' may be left behind (if its comment is ")


# -- what goes wrong


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.splitlines()[-1]
    assert last.startswith("riverq: ")
    for boilerplate in ("Traceback", "Background on this error", SECRET):
        assert boilerplate not in shown.err
    return last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "expected --workers to be from 1 to 10000, got: 0"),
        (["-n", "0"], "expected -n to be at least 1, got: 0"),
        (["-n", "many"], "invalid int value: 'many'"),
        (["--duration", "soon"], "expected a time such as 30s, 500ms or 1m30s, got: 'soon'"),
        (["--duration", "3s4"], "got: '3s4'"),
        (["--duration", "-3s"], "expected"),
        (["--duration", "0"], "more than 0 and at most a day, got: '0'"),
        (["--duration", "9" * 400], "at most a day"),
        (["--schema", "with space"], "expected schema to be at most"),
        (["--schema", "mine"], "expected --schema to start with 'riverq_bench', got: 'mine'"),
        (["--database-url", f"postgresql+pg8000://u:{SECRET}@h/x", "--async"], "pg8000 has no async face"),
        (["--database-url", f"postgresql+pg8000_async://u:{SECRET}@h/x"], "pg8000_async has no async face"),
        (["--database-url", f"mysql://u:{SECRET}@h/x"], "expected a Postgres URL"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", *arguments])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else -1
    assert code == 2
    assert words in one_sentence(capsys)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "pg8000"])
def test_a_server_that_is_not_there_is_one_sentence(driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--database-url", f"postgresql+{driver}://u:{SECRET}@127.0.0.1:1/shop"]) == 1
    assert "the database 'shop' at 127.0.0.1:1 is not available: " in one_sentence(capsys)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "pg8000"])
def test_an_option_that_the_adapter_does_not_know_is_one_sentence(
    database_url: str, driver: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}", query={"colour": "blue"})
    assert main(["bench", "--database-url", url.render_as_string(hide_password=False)]) in (1, 2)
    assert "colour" in one_sentence(capsys)


def test_a_mistake_of_its_own_is_not_put_on_the_url(
    database_url: str, onlooker: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def mistaken(*_arguments: object) -> None:
        raise TypeError("f() got an unexpected keyword argument 'colour'")

    monkeypatch.setattr("riverq.bench.run.measure_trips", mistaken)
    assert main(["bench", "--database-url", database_url, *QUICK]) == 1
    assert "unexpected TypeError: f() got" in one_sentence(capsys)


def test_a_schema_that_exists_is_called_wrongly(
    database_url: str, onlooker: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "riverq_bench_there"
    onlooker.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
    assert main(["bench", "--database-url", database_url, "--schema", name, *QUICK]) == 2
    onlooker.execute(SQL("DROP SCHEMA {}").format(Identifier(name)))
    assert f"schema '{name}' exists already" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("10", 10),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1h", 3600),
        ("1.5m", 90),
        ("1m500ms", 60.5),
    ],
)
def test_durations_are_written_as_in_go(text: str, seconds: float) -> None:
    assert make_parser().parse_args(["bench", "--duration", text]).duration == seconds


def test_the_number_of_jobs_has_rivers_name() -> None:
    assert make_parser().parse_args(["bench", "--num-total-jobs", "7"]).num_total_jobs == 7
    assert make_parser().parse_args(["bench", "-n", "7"]).num_total_jobs == 7
