"""A PgBouncer that ends by itself: it comes back, its own bug costs no test, and any other end fails the test."""

from __future__ import annotations

import subprocess

import pytest

from tests.fix_pgbouncer import NO_PGBOUNCER, find_pgbouncer, watched_pgbouncer
from tests.fix_skips import skip_or_fail
from tests.pooler_process import Death

pytestmark = pytest.mark.slow  # whole test runs within the test

pytest_plugins = ("pytester",)

UP = "2026-01-01 10:00:00.000 UTC [7] LOG process up: PgBouncer {}, libevent 2.1.12-stable (epoll)\n"
BUG = (
    "2026-01-01 10:00:01.000 UTC [7] FATAL @src/server.c:583 in function server_proto(): "
    "server_proto: server in bad state: 11\n"
)
HUNG_UP = (
    "2026-01-01 10:00:01.000 UTC [7] FATAL @src/objects.c:1060 in function disconnect_client(): bad client state: 0\n"
)


@pytest.mark.parametrize(
    ("log", "is_known"),
    [
        (UP.format("1.18.0") + BUG, True),
        (UP.format("1.20.1") + BUG, True),
        (UP.format("1.17.0") + BUG, False),
        (UP.format("1.18.0") + HUNG_UP, True),
        (UP.format("1.21.0") + HUNG_UP, False),
        (UP.format("1.17.0") + HUNG_UP, False),
        (UP.format("1.18.0") + HUNG_UP.replace(": 0", ": 6"), False),
        (UP.format("1.21.0") + BUG, False),
        (UP.format("2.0.0") + BUG, False),
        (BUG, False),
        (UP.format("1.18.0"), False),
        (UP.format("1.18.0") + BUG + UP.format("1.18.0"), False),
        (UP.format("1.18.0") + BUG.replace(": 11", ": 1"), False),
        (UP.format("1.18.0") + BUG.replace("FATAL", "LOG"), False),
        (UP.format("1.18.0") + BUG.replace("server_proto", "disconnect_server"), False),
        ("", False),
    ],
)
def test_the_bug_is_told_from_everything_else(log: str, is_known: bool) -> None:
    death = Death(1, log)
    assert death.is_known is is_known
    assert ("not of the bug that is known" in str(death)) is not is_known


DYING_TESTS = """
import collections, os, signal
import psycopg
import sqlalchemy as sa
from tests import pooler_process

runs = collections.Counter()

def die(pooler, log):
    # What it wrote in this life is replaced; it must not write more before it ends.
    process = pooler.process
    os.kill(process.pid, signal.SIGSTOP)
    os.truncate(process.log, process._born_at)
    with process.log.open("a") as file:
        file.write(log)
    os.kill(process.pid, signal.SIGKILL)
    pooler_process.settle(after_failure=True)
    psycopg.connect(pooler.url).close()

def test_unlucky(pooler, transact):
    runs["unlucky"] += 1
    for adapter in ("psycopg", "asyncpg", "pg8000"):  # whose connections outlive the test
        transact(adapter, lambda connection: connection.execute(sa.text("SELECT 1")))
    if runs["unlucky"] == 1:
        die(pooler, KNOWN)
        raise AssertionError("cut off")

def test_most_unlucky(pooler):
    runs["most unlucky"] += 1
    die(pooler, KNOWN)
    raise AssertionError("cut off each time")

def test_does_not_mind(pooler):
    runs["does not mind"] += 1
    die(pooler, KNOWN)

def test_kills(pooler):
    runs["kills"] += 1
    die(pooler, "it was not the bug\\n")

def test_kills_and_fails(pooler):
    runs["kills and fails"] += 1
    die(pooler, "it was something else\\n")
    raise AssertionError("cut off once")

def test_wrong_itself(pooler):
    runs["wrong"] += 1
    raise AssertionError("simply wrong")

def test_each_was_run_as_often_as_it_may_be(pooler):
    assert runs == {
        "unlucky": 2, "most unlucky": 3, "does not mind": 1, "kills": 1, "kills and fails": 1, "wrong": 1,
    }
"""


@pytest.mark.pgbouncer
@pytest.mark.parametrize("how", [["-p", "no:xdist"], ["-n", "1"]], ids=["alone", "xdist"])
def test_only_what_the_bug_may_have_spoilt_is_run_again(
    pytester: pytest.Pytester, fresh_database: str, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    if find_pgbouncer() is None:
        skip_or_fail(NO_PGBOUNCER)
    monkeypatch.setenv("RIVERQ_TEST_DATABASE_URL", fresh_database)
    plugins = ("server", "pgbouncer", "reruns", "database", "leaks")
    pytester.makeconftest(f"pytest_plugins = {tuple(f'tests.fix_{name}' for name in plugins)}")
    known = UP.format("1.18.0") + BUG
    pytester.makepyfile(test_it=f"KNOWN = {known!r}\n{DYING_TESTS}")
    # No summary of the failed tests (-r N): where CI is set, pytest repeats their whole messages in it.
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-r", "N", "--pgbouncer", "session", *how)
    result.assert_outcomes(passed=4, failed=3, errors=1)
    bug = "PgBouncer died of a bug that it has, when a statement was cancelled"
    other = "PgBouncer ended (exit code -9), not of the bug that is known. Its log:"
    shown = result.stdout.str()
    for line in (
        f"test_it.py::test_unlucky: run 1: {bug}; passed in the end",
        f"test_it.py::test_most_unlucky: run 1: {bug}; run 2: {bug}; run 3: {bug}; failed in the end",
        f"test_it.py::test_does_not_mind: run 1: {bug}; passed in the end",
        f"test_it.py::test_kills: run 1: {other}; failed in the end",
        f"test_it.py::test_kills_and_fails: run 1: {other}; failed in the end",
    ):
        assert shown.count(line) == 1, line
    assert shown.count(f"{other}\nit was not the bug\n") == 1
    assert shown.count(f"{other}\nit was something else\n") == 1


@pytest.mark.pgbouncer
def test_a_real_log_tells_the_version(database_url: str) -> None:
    command = find_pgbouncer()
    if command is None:
        skip_or_fail(NO_PGBOUNCER)
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    minor = int(shown.removeprefix("PgBouncer 1.").partition(".")[0])
    with watched_pgbouncer(command, database_url, "session") as process:
        log = process.log.read_text()
    assert Death(1, log + BUG).is_known is (18 <= minor < 21)
