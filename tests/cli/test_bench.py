"""`riverq bench` as a person and as a program run it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import threading

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.cli.main import main, make_parser
from tests.cli.benching import QUICK, URLS, bench, on_terminal, read_all, with_driver

pytestmark = pytest.mark.slow  # whole measurements

SECRET = "geheim"


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
