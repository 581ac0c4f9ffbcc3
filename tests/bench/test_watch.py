"""What is seen in the server: one look, many looks, and the CPU of processes that are on this machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psycopg
import pytest

from riverq.bench import processes, watch
from riverq.bench.processes import busy_seconds, cores, cpu_seconds
from riverq.bench.watch import Doing, Sample, Watcher, doing, observe
from riverq.driver import AnyEngine
from riverq.errors import RiverqError
from riverq.query.measure import Backend, backends
from tests.fix_database import EngineMaker, Transact

COMPUTING = Backend(1, 0, "active", None, None)
IDLE = Backend(2, 0, "idle", "Client", "ClientRead")
SYNC = Backend(3, 0, "active", "IO", "WALSync")
LOCKED = Backend(4, 0, "active", "Lock", "tuple")


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (COMPUTING, Doing.COMPUTING),
        (IDLE, Doing.CLIENT),
        (Backend(1, 0, "idle in transaction", None, None), Doing.CLIENT),
        (Backend(1, 0, "idle", None, None), Doing.CLIENT),
        (Backend(1, 0, "unknown", None, None), Doing.CLIENT),
        (Backend(1, 0, "active", "Client", "ClientWrite"), Doing.CLIENT),
        (SYNC, Doing.WAL),
        (Backend(1, 0, "active", "IO", "WalSync"), Doing.WAL),
        (Backend(1, 0, "active", "LWLock", "WALWrite"), Doing.WAL),
        (Backend(1, 0, "active", "IPC", "SyncRep"), Doing.WAL),
        (Backend(1, 0, "active", "IO", "DataFileRead"), Doing.WAITING),
        (LOCKED, Doing.WAITING),
    ],
)
def test_what_a_connection_does(backend: Backend, expected: Doing) -> None:
    assert doing(backend) is expected


def test_looks_are_counted_and_not_connections() -> None:
    looks = [
        Sample(0.0, [COMPUTING, COMPUTING, IDLE], [1.0, None, None]),
        Sample(1.0, [SYNC, LOCKED], [None, None]),
        Sample(2.0, [SYNC, IDLE], [None, None]),
        Sample(3.0, [IDLE], [None]),
    ]
    found = observe(looks)
    assert (found.samples, found.computing, found.wal, found.waiting) == (4, 0.25, 0.5, 0.25)
    assert list(found.events.items()) == [("IO:WALSync", 2), ("Lock:tuple", 1)]
    assert found.cpu is None


def test_cpu_is_what_each_process_used_between_its_looks() -> None:
    other = COMPUTING._replace(pid=9)
    looks = [
        Sample(10.0, [COMPUTING], [5.0]),
        Sample(11.0, [COMPUTING, other], [5.5, 1.0]),
        Sample(12.0, [other], [1.7]),
    ]
    assert observe(looks).cpu == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize("looks", [[], [Sample(1.0, [COMPUTING], [5.0])], [Sample(1.0, [], []), Sample(2.0, [], [])]])
def test_too_few_looks_tell_no_cpu(looks: list[Sample]) -> None:
    assert observe(looks).cpu is None


def stat(folder: Path, *, name: str = "postgres", began: int = 1000) -> Path:
    """A /proc of a machine that was started at 5000, with process 77."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", *["0"] * 10, str(3 * ticks), str(2 * ticks), *["0"] * 6, str(began * ticks), "0"]
    (folder / "77").mkdir(parents=True)
    (folder / "77" / "stat").write_text(f"77 ({name}) {' '.join(fields)}\n")
    cpus = ["cpu  9999 0 50 900 10 3 4 5 0 0", "cpu0 100 0 50 900 10 3 4 5 0 0", "cpu1 9000 0 0 0 0 0 0 0 0 0"]
    (folder / "stat").write_text("\n".join([*cpus, "cpu2 7 0 0 0 0 0 0 0 0 0", "intr 1 2", "btime 5000", ""]))
    return folder


def test_a_process_is_the_servers_if_it_is_a_postgres_of_the_same_age(tmp_path: Path) -> None:
    backend = Backend(77, 6001 * 1_000_000, "active", None, None)
    assert cpu_seconds(backend, stat(tmp_path / "same")) == 5.0
    assert cpu_seconds(backend, stat(tmp_path / "name", name="my (bad) shell")) is None
    assert cpu_seconds(backend, stat(tmp_path / "age", began=900)) is None
    assert cpu_seconds(backend._replace(pid=78), stat(tmp_path / "none")) is None
    assert cpu_seconds(backend, tmp_path / "no such folder") is None


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run on the first and the third."""
    monkeypatch.setattr(processes, "_allowed", lambda: {0, 2})


def group(folder: Path, limit: str) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup in which this process is in the group a/b, which used 2.5 s."""
    proc, groups = stat(folder / "proc"), folder / "groups"
    (proc / "self").mkdir()
    (proc / "self" / "cgroup").write_text("4:memory:/a\n0::/a/b\n")
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "a" / "b" / "cpu.max").write_text(f"{limit}\n")
    (groups / "a" / "b" / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    return proc, groups


@pytest.mark.usefixtures("two_cores")
def test_what_is_not_idling_on_our_cores_is_busy(tmp_path: Path) -> None:
    proc = stat(tmp_path)
    assert cores(proc, tmp_path) == 2
    assert busy_seconds(proc, tmp_path) == pytest.approx((162 + 7) / os.sysconf("SC_CLK_TCK"))
    assert busy_seconds(tmp_path / "nowhere", tmp_path) is None


@pytest.mark.usefixtures("two_cores")
def test_a_control_group_has_fewer_cores_and_is_busy_by_itself(tmp_path: Path) -> None:
    limited = group(tmp_path, "150000 100000")
    assert (cores(*limited), busy_seconds(*limited)) == (1.5, 2.5)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("limit", ["max 100000", "200000 100000", "nonsense"])
def test_a_control_group_that_does_not_limit_is_nothing(tmp_path: Path, limit: str) -> None:
    free = group(tmp_path, limit)
    assert cores(*free) == 2
    assert busy_seconds(*free) == busy_seconds(free[0], tmp_path / "no groups")


def test_the_cores_are_those_that_this_process_may_run_on(tmp_path: Path) -> None:
    assert cores(tmp_path, tmp_path) == len(os.sched_getaffinity(0))


def test_a_real_servers_cpu_grows(transact: Transact, database_url: str) -> None:
    """Only where the server's processes are on this machine; elsewhere there is nothing to read."""
    with psycopg.connect(database_url, autocommit=True, application_name="riverq_burner") as conn:
        [backend] = transact("psycopg", backends, "", "riverq_burner")
        before = cpu_seconds(backend)
        if before is None:
            assert not Path(f"/proc/{backend.pid}/stat").exists()
            return
        used = 0.0
        for _ in range(100):
            conn.execute("SELECT count(*) FROM generate_series(1, 300000)")
            used = (cpu_seconds(backend) or 0.0) - before
            if used > 0:
                break
        assert used > 0


async def test_a_watcher_sees_on_every_adapter(make_engine: EngineMaker, adapter: str, database_url: str) -> None:
    def engine() -> AnyEngine:
        return make_engine(adapter)

    watcher = Watcher(engine, "riverq_watched")
    with psycopg.connect(database_url, autocommit=True, application_name="riverq_watched"):
        async with watcher.watching():
            pass
    found = watcher.between(float("-inf"), float("inf"))
    assert found.samples >= 1
    assert (found.computing, found.error) == (0, None)
    assert watcher.between(0, 0).samples == 0


async def test_a_watcher_that_cannot_look_says_why(make_engine: EngineMaker, adapter: str, database_url: str) -> None:
    missing = database_url.rpartition("/")[0] + "/riverq_no_such_database"
    watcher = Watcher(lambda: make_engine(adapter, url=missing), "riverq_watched")
    async with watcher.watching():
        pass
    found = watcher.between(float("-inf"), float("inf"))
    assert found.samples == 0
    assert "riverq_no_such_database" in (found.error or "")


async def test_after_a_look_that_failed_there_are_no_more(
    make_engine: EngineMaker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def second_fails(_conn: object, _schema: str, name: str) -> list[Backend]:
        looks.append(name)
        if len(looks) == 2:
            raise RiverqError("gone for a moment")
        return [COMPUTING]

    monkeypatch.setattr(watch, "backends", second_fails)
    watcher = Watcher(lambda: make_engine("asyncpg"), "riverq_watched")
    async with watcher.watching():
        for _ in range(1000):
            if not watcher._thread.is_alive():
                break
            await asyncio.sleep(0.01)
    found = watcher.between(float("-inf"), float("inf"))
    assert (len(looks), found.samples, found.error) == (2, 1, "gone for a moment")
