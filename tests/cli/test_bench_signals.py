"""`riverq bench` when it is told to end: what it leaves behind, and what it says of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

from riverq.bench.plan import Phase
from tests.cli.benching import URLS, bench, on_terminal, read_all, read_until, schemas, wait_for, with_driver

pytestmark = pytest.mark.slow  # whole measurements, interrupted

MEASURING = [phase.value for phase in Phase if phase is not Phase.DROP]


def after_phases(err: str) -> list[str]:
    """What was said but the phases of the measurement: where a test stalls, the bench is further than it knows."""
    return [line for line in err.splitlines() if line.removeprefix("bench: ") not in MEASURING]


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
    assert after_phases(err) == [
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


_SIGNALLED_ELSEWHERE = """
import signal, sys, threading
from riverq.cli.main import main

def take_signals():
    for _ in sys.stdin:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=take_signals, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


def test_signals_count_too_when_another_thread_is_given_them(database_url: str, holder: psycopg.Connection) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SIGNALLED_ELSEWHERE, "bench", "--database-url", database_url, "--schema", HELD],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    patience = threading.Timer(60, process.kill)
    patience.start()
    assert process.stdin is not None
    wait_for(process, "inserting one by one")
    hold(holder)
    process.stdin.write("\n")
    wait_for(process, "bench: dropping the schema")
    process.stdin.write("\n")
    wait_for(process, "riverq: still ending (once more ends at once)")
    process.stdin.write("\n")
    process.communicate(timeout=60)
    patience.cancel()
    assert process.returncode == 130


def until_taken(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until one of the process's threads has been given a signal: two at once may go to two, in any order."""
    status = Path(f"/proc/{process.pid}/status")
    while status.exists():
        pending = re.findall(r"(?:Sig|Shd)Pnd:\s*([0-9a-f]+)", status.read_text())
        if not any(int(each, 16) >> (number - 1) & 1 for each in pending):
            return
        time.sleep(0.01)


def test_a_third_signal_leaves_when_nobody_reads_any_more(database_url: str, holder: psycopg.Connection) -> None:
    with bench(database_url, "--schema", HELD) as process:
        wait_for(process, "inserting one by one")
        hold(holder)
        process.send_signal(signal.SIGHUP)
        wait_for(process, "bench: dropping the schema")
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        until_taken(process, signal.SIGINT)
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
        until_taken(process, signal.SIGHUP)
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
    dropping, failed, interrupted = after_phases(err)
    assert dropping == "bench: dropping the schema"
    assert failed.startswith("riverq: the schema cannot be dropped: ")
    assert interrupted.startswith(f"riverq: interrupted; schema '{HELD}' may be left behind (if its comment is ")
